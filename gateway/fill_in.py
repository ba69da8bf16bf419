"""Fill-in-the-middle: how a request with a suffix becomes one that its target serves.

- A host that takes a suffix gets it. For other hosts, the text and the suffix become one prompt, by
  the template of the model's family.
- llama.cpp's own body goes to a llama.cpp server as it came. For other targets, what only
  llama.cpp knows is left out, and its names are reported.
- Requests without a suffix never come here.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from completion import CompletionRequest, Prompt
from providers import fim_rules, fim_templates, registry
from providers.base import Fim, Target
from providers.fim_templates import FimTemplate

UNDERSTOOD: Final = frozenset(
    (
        *("input_prefix", "input_suffix", "input_extra", "prompt", "n_predict", "n_cmpl"),
        *("temperature", "top_p", "frequency_penalty", "presence_penalty", "stop", "seed"),
    )
)
"""The fields of llama.cpp's body that the other fields of a request hold too."""


def adapted(
    request: CompletionRequest, target: Target, *, all_stops: bool = True
) -> tuple[CompletionRequest, Target, tuple[str, ...]]:
    """Return the request and the target for a request with a suffix.

    Args:
        all_stops: whether any number of stop sequences works. Otherwise only those of a template
            are used that the host takes besides the caller's.

    Returns:
        The request, the target, and the names of the caller's fields that were left out.
    """
    rule = fim_rules.usable(target)
    if rule is not None:
        target = msgspec.structs.replace(target, fim=rule)
    if request.infill and target.dialect == "infill":
        return request, target, ()
    request, left_out = without_llamacpp(request, target)
    if rule is not None and rule.only:
        request, more = with_known_fields(request, rule)
        left_out += more
    template = None
    if rule is not None and rule.by_template:
        template = fim_rules.template_of(rule, target.model)
    if template is not None:
        most = None if all_stops else target.limits.get("stop")
        request = by_template(request, template, most)
    elif request.files:
        left_out += ("input_extra",)
    if request.files or request.infill:
        request = msgspec.structs.replace(request, files=(), infill={})
    return request, target, left_out


def without_llamacpp(
    request: CompletionRequest, target: Target
) -> tuple[CompletionRequest, tuple[str, ...]]:
    """Return the request for a target that isn't llama.cpp, and the names of what it lost."""
    if not request.infill:
        return request, ()
    lost = [name for name in request.infill if name not in UNDERSTOOD]
    changes: dict[str, Any] = {}
    if request.max_tokens == 0:  # only fills the cache; other hosts refuse 0 tokens
        changes["max_tokens"] = 1
    if request.n is not None and "n" in registry.dialect(target.dialect).unsupported(target):
        changes["n"] = None
        lost.append("n_cmpl")
    if changes:
        request = msgspec.structs.replace(request, **changes)
    return request, tuple(lost)


def with_known_fields(
    request: CompletionRequest, rule: Fim
) -> tuple[CompletionRequest, tuple[str, ...]]:
    lost = tuple(name for name in request.openai_extra if name not in rule.only)
    if not lost:
        return request, ()
    kept = {name: value for name, value in request.openai_extra.items() if name in rule.only}
    return msgspec.structs.replace(request, openai_extra=kept), lost


def by_template(
    request: CompletionRequest, template: FimTemplate, most_stops: float | None
) -> CompletionRequest:
    """Return the request with its texts in one prompt, and without a suffix.

    The template's stop strings come first, so that the host gets those if it doesn't take all.

    Args:
        most_stops: how many stop strings there may be; None for any number.
    """
    suffix, files = request.suffix or "", request.files
    prompts = tuple(
        fim_templates.build(template, prompt, suffix, files) if isinstance(prompt, str) else prompt
        for prompt in request.prompts
    )
    ends = [text for text in fim_templates.stops(template, files) if text not in request.stop]
    if most_stops is not None:
        ends = ends[: max(0, int(most_stops) - len(request.stop))]
    return msgspec.structs.replace(
        request, prompts=prompts, suffix=None, stop=(*ends, *request.stop)
    )


def as_sent(request: CompletionRequest) -> tuple[Prompt, ...]:
    """Return the prompts of a request, each with the other texts that its host reads.

    An estimate of the input needs them.
    """
    if request.suffix is None:
        return request.prompts
    more = request.suffix + "".join(file.path + file.text for file in request.files)
    return tuple(prompt + more if isinstance(prompt, str) else prompt for prompt in request.prompts)


def advice(target: Target) -> str:
    """Return a sentence for a target that can't fill in, on what its operator can set."""
    if target.provider.dialect != "openai" or target.fim is not None:
        return ""
    row = f"[providers.{target.provider.name}] of sluice.toml"
    if not target.legacy:
        return (
            " If the host has an endpoint for it, the server's operator can set fim in "
            f"{row}; with /completions also completions."
        )
    return f" If it was trained to fill in the middle, the server's operator can set fim in {row}."
