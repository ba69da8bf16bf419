"""The names of fields at hosts: those that Sluice writes, and other names of the fields it counts.

- A name that differs from a known one only in letter case is never passed on: hosts that ignore
  letter case would read it instead of Sluice's own field.
- A host's other name for max_tokens, n or best_of counts as that field, so that callers can't
  bypass budgets and limits.
- The module is pure.

Sources: the API references of the hosts in docs/guides/providers.md, and of Hugging Face's TGI,
AI21, SambaNova and NVIDIA Triton (read 2026-11); Go's encoding/json for letters that differ only in
case.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

LONGEST_KNOWN: Final = 64
"""The maximum length of a known name in characters."""


def camel_case(name: str) -> str:
    return re.sub("_([a-z])", lambda match: match[1].upper(), name)


OTHER_NAMES: Final[Mapping[str, tuple[str, ...]]] = {
    "max_tokens": (
        *("max_completion_tokens", "max_new_tokens", "max_output_tokens", "max_tokens_to_sample"),
        *("max_tokens_to_generate", "max_gen_len", "max_token_count", "max_decode_steps"),
        *("tokens_to_generate", "request_output_len", "n_predict", "num_predict"),
    ),
    "n": (
        *("candidate_count", "num_return_sequences", "num_generations", "num_results"),
        *("num_completions", "n_cmpl"),
    ),
    "best_of": (),
}
"""The fields that limits and budgets count, and hosts' other names for them, in snake case."""

AMBIGUOUS: Final = {"max_length": "max_tokens", "max_total_tokens": "max_tokens"}
"""Names whose meaning depends on the host: the length includes the prompt, or doesn't. They are
refused, and the message names the field to use."""

WRAPPERS: Final = frozenset(
    spelling
    for name in (
        *("options", "parameters", "generation_config", "inference_config", "sampling_params"),
        *("text_generation_config", "additional_model_request_fields", "model_kwargs"),
    )
    for spelling in (name, camel_case(name))
)
"""Objects in which hosts accept these fields. Such an object may be inside another one."""

COUNTED: Final = {
    spelling: field
    for field, others in OTHER_NAMES.items()
    for name in (field, *others)
    for spelling in (name, camel_case(name))
}
"""The field of OTHER_NAMES for each of its spellings."""

WRITTEN: Final = frozenset(
    (
        *("model", "prompt", "messages", "stream", "stream_options"),
        *("temperature", "top_p", "stop", "seed", "frequency_penalty", "presence_penalty"),
        *("logit_bias", "user", "logprobs", "top_logprobs", "echo", "suffix"),
        *("include_usage", "continuous_usage_stats"),
        *("random_seed", "stop_sequences", "metadata", "p", "modelId"),
        *("contents", "topP", "stopSequences", "frequencyPenalty", "presencePenalty"),
        *("responseLogprobs", "input_prefix", "input_suffix"),
    )
)
"""Names of other fields that Sluice writes into requests to hosts. A test compares them with the
requests of each dialect."""

FACES: Final = frozenset(
    (
        *("provider", "fallbacks", "byok_api_key", "stream_id", "additional_params", "models"),
        *("resumable", "background"),
        *("api_key", "base_url", "url", "headers", "timeout"),
        *("extra_headers", "extra_body", "extra_query"),
    )
)
"""Other fields of a request to Sluice, some of which it refuses."""

KNOWN: Final = frozenset((*COUNTED, *AMBIGUOUS, *WRAPPERS, *WRITTEN, *FACES))


def fold(name: str) -> str:
    """Return a name as a host that ignores letter case may see it.

    Some other letters become ASCII ones, too: the Kelvin sign and the long s in Go, the i with and
    without a dot in Java.
    """
    return name.upper().casefold().replace("\N{COMBINING DOT ABOVE}", "")


def bare(name: str) -> str:
    """Return a folded name without separators."""
    return re.sub("[_. -]", "", fold(name))


FOLDED: Final = {
    fold(name): COUNTED.get(name) or AMBIGUOUS.get(name, name) for name in sorted(KNOWN)
}
BARE: Final = {bare(name): field for names in (COUNTED, AMBIGUOUS) for name, field in names.items()}


def meant(name: str) -> str | None:
    """Return the field to use instead of a name; None if the name may be passed on."""
    if name in AMBIGUOUS:
        return AMBIGUOUS[name]
    if name in KNOWN or len(name) > LONGEST_KNOWN:
        return None
    return FOLDED.get(fold(name)) or BARE.get(bare(name))
