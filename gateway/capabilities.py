"""What a target can honour of a request.

Rules that hold here: a parameter that can't be had is never dropped in silence. What would change
the result refuses the target; what can be done exactly is emulated; a hint is dropped by name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

import msgspec

from completion import Batch, CompletionRequest, Delta, Started, asked_for
from errors import UnsupportedParameter
from providers import registry
from providers.base import Target, matches

HINTS = frozenset(
    (
        *("seed", "logit_bias", "frequency_penalty", "presence_penalty", "user"),
        *("temperature", "top_p", "extra", "openai_extra"),
    )
)
"""Parameters without which the answer is still an answer to the request."""


EMULATED = frozenset(("echo", "prompt_list"))
"""Parameters that are done exactly where a target lacks them."""


class Candidate(msgspec.Struct, frozen=True):
    """A target, and the request as it can honour it."""

    target: Target
    request: CompletionRequest
    dropped: tuple[str, ...] = ()
    """Hints that it can't honour, by name."""
    echo: bool = False
    """The prompt is put before the text by us."""
    split: bool = False
    """Each prompt is a call of its own."""


def candidates(
    request: CompletionRequest, targets: list[Target], *, strict: bool
) -> list[Candidate]:
    """Those targets that can honour the request. Raises UnsupportedParameter when none can."""
    fitting = []
    refusal: UnsupportedParameter | None = None
    for target in targets:
        try:
            fitting.append(fit(request, target, strict=strict))
        except UnsupportedParameter as error:
            refusal = refusal or error
    if not fitting and refusal is not None:
        raise refusal
    return fitting


def fit(request: CompletionRequest, target: Target, *, strict: bool) -> Candidate:
    """The request as one target can honour it. Raises UnsupportedParameter."""
    fim = target.provider.fim
    if request.suffix and fim and matches(target.model, fim.models):
        target = msgspec.structs.replace(target, fim=fim)
    asked = wanted(request)
    lacking = asked & registry.dialect(target.dialect).unsupported(target)
    lacking |= frozenset([name for name in target.exclusive if name in asked][1:])
    echo = "echo" in lacking and asked.isdisjoint(("echo_logprobs", "token_ids"))
    split = "prompt_list" in lacking
    hints = lacking & HINTS
    kept = EMULATED if echo or "echo_logprobs" in lacking else EMULATED - {"echo"}
    for name in sorted(lacking - HINTS - kept):
        unsupported(name, PARAMETER_WORDS.get(name, name), target)
    check_limits(request, target, hints)
    dropped = names_of(request, hints)
    if strict and dropped:
        unsupported(dropped[0], dropped[0], target)
    changes: dict[str, Any] = {name: EMPTY.get(name) for name in hints}
    if echo:
        changes["echo"] = False
    if changes:
        request = msgspec.structs.replace(request, **changes)
    return Candidate(target, request, dropped, echo, split)


def check_limits(request: CompletionRequest, target: Target, hints: frozenset[str]) -> None:
    """Raises UnsupportedParameter for a value above what the host takes; hints are left out."""
    for name, most in target.limits.items():
        if name in hints:
            continue
        value = getattr(request, name)
        amount = len(value) if isinstance(value, tuple) else value
        if amount is not None and amount > most:
            unsupported(name, f"{name} above {most:g}", target)


def unsupported(name: str, words: str, target: Target) -> NoReturn:
    field = FIELDS.get(name, name)
    raise UnsupportedParameter(
        f"{words} can't be had from {target.name}.",
        param=field,
        details={"parameter": field, "target": target.name},
    )


def names_of(request: CompletionRequest, hints: frozenset[str]) -> tuple[str, ...]:
    """The hints by the names that the caller gave them."""
    names: set[str] = set()
    for hint in hints:
        names |= getattr(request, hint).keys() if hint in BAGS else {hint}
    return tuple(sorted(names))


PARAMETER_WORDS = {
    "token_ids": "A prompt of token ids",
    "echo_logprobs": "echo together with logprobs",
}
FIELDS = {"token_ids": "prompt", "echo_logprobs": "logprobs"}
"""The field of a request that a name stands for, where it is none itself."""
BAGS = frozenset(("extra", "openai_extra"))
"""Parameters whose names are the caller's."""
EMPTY: Mapping[str, Any] = {"logit_bias": {}, "extra": {}, "openai_extra": {}}


def wanted(request: CompletionRequest) -> frozenset[str]:
    """The parameters that a request asks for, by the names that `Dialect.unsupported` uses."""
    names = asked_for(request).keys() - {"prompts", "stream"}
    if any(not isinstance(prompt, str) for prompt in request.prompts):
        names.add("token_ids")
    if len(request.prompts) > 1:
        names.add("prompt_list")
    if request.logprobs is not None:
        names.add("logprobs")
        if request.echo:
            names.add("echo_logprobs")
    return frozenset(names)


def shortcomings(target: Target) -> tuple[list[str], list[str], list[str]]:
    """Parameters that a target lacks: those emulated, those dropped by name, those refused. All
    others it has."""
    lacks = registry.dialect(target.dialect).unsupported(target) - BAGS
    fim = target.provider.fim
    if fim is not None and matches(target.model, fim.models):
        lacks -= {"suffix"}
    refused = lacks - EMULATED - HINTS
    return sorted(lacks & EMULATED), sorted(lacks & HINTS), sorted(refused)


def echoed(batches: Iterator[Batch], request: CompletionRequest) -> Iterator[Batch]:
    """Put each prompt before its choices' text: echo, for targets that lack it."""
    n = request.n or 1
    prompts: Batch = [
        Delta(prompt_index * n + choice, prompt)
        for prompt_index, prompt in enumerate(request.prompts)
        if isinstance(prompt, str)
        for choice in range(n)
    ]
    for batch in batches:
        if prompts:
            head = [event for event in batch if isinstance(event, Started)]
            batch = head + prompts + [event for event in batch if not isinstance(event, Started)]
            prompts = []
        yield batch
