"""The parameters of a request that a target supports, and how Sluice treats the others.

- No parameter is dropped silently.
- If an unsupported parameter would change the result, the target is skipped. If no target is left,
  the request is refused.
- If Sluice can produce exactly the parameter's effect, it emulates the parameter.
- If the parameter is a hint, it is dropped, and its name is reported to the caller.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn, Protocol

import msgspec

from completion import (
    CompletionRequest,
    asked_for,
    utf8_size,
)
from concurrency.yielding import Yielder
from errors import InvalidRequest, UnsupportedParameter
from gateway import field_names, fill_in, host_stops
from gateway.host_stops import StopLimit
from gateway.stop_automaton import StopAutomaton
from providers import fim_rules, registry
from providers.base import Target

HINTS = frozenset(
    (
        *("seed", "logit_bias", "frequency_penalty", "presence_penalty", "user"),
        *("temperature", "top_p", "extra", "openai_extra"),
    )
)
"""Parameters whose absence still leaves a valid answer (see docs/decisions/0005-hints.md)."""


MOST_ECHOED_MIB = 4
"""The most that an answer may repeat of its prompts, in all choices together."""
BYTES_PER_TOKEN = 4  # about
MOST_SPLIT_MIB = 16
"""The most that a split call may send beside its prompts: the other fields go with each prompt."""

EMULATED = frozenset(("echo", "prompt_list", "choice_list", "stop", "blank_stop"))
"""Parameters that Sluice emulates exactly for targets without them."""


class Candidate(msgspec.Struct, frozen=True):
    """A target, and the request adapted to the parameters that it supports."""

    target: Target
    request: CompletionRequest
    dropped: tuple[str, ...] = ()
    """The names of the hints that the request lost."""
    echo: bool = False
    """True if Sluice must put the prompt before the text."""
    split: bool = False
    """True if each prompt needs a separate upstream call."""
    singly: bool = False
    """True if each choice of each prompt needs one. `split` is then True as well."""
    stop_limit: StopLimit | None = None
    """The host's limit for stop sequences if the request exceeds it. `prepared` applies it."""
    stops: StopAutomaton | None = None
    """The stop sequences to emulate; None if there are none, or before `prepared`."""


class Fit(Protocol):
    """A function such as `fit`."""

    def __call__(
        self, request: CompletionRequest, target: Target, *, strict: bool
    ) -> Candidate: ...


def candidates(
    request: CompletionRequest, targets: list[Target], *, strict: bool, fit_one: Fit | None = None
) -> list[Candidate]:
    """Return a candidate for each target that supports the request.

    Args:
        strict: refuse hints that a target doesn't support, instead of dropping them.
        fit_one: adapts the request to one target; None for `fit`.

    Raises:
        UnsupportedParameter: no target supports the request. The error names the first target.
        InvalidRequest: the answer would be too long, or a field has a name that no target may get.
    """
    if request.echo:
        check_echo(request)
    fitting = []
    refusal: UnsupportedParameter | None = None
    yielder = Yielder()
    for target in targets:
        yielder.yield_if_due()  # each target's body takes milliseconds if the fields are long
        try:
            fitting.append((fit_one or fit)(request, target, strict=strict))
        except UnsupportedParameter as error:
            refusal = refusal or error
    if not fitting and refusal is not None:
        raise refusal
    return fitting


def fit(
    request: CompletionRequest,
    target: Target,
    *,
    strict: bool,
    left_out: tuple[str, ...] | None = None,
) -> Candidate:
    """Adapt the request to one target.

    Args:
        strict: refuse hints that the target doesn't support, instead of dropping them.
        left_out: the names of what fill_in.py has already left out; None if it hasn't seen the
            request.

    Raises:
        UnsupportedParameter: the target can't serve the request.
        InvalidRequest: a field has a name that no target may get, or contradicts another one.
    """
    if request.suffix is not None and left_out is None:
        return fit_gap(request, target, strict=strict)
    if request.extra or request.openai_extra:
        refuse_host_names(request, target)
    asked = wanted(request)
    unsupported_here = registry.dialect(target.dialect).unsupported(target)
    lacking = asked & unsupported_here
    lacking |= frozenset([name for name in target.exclusive if name in asked][1:])
    echo = "echo" in lacking and asked.isdisjoint(("echo_logprobs", "token_ids"))
    singly = "choice_list" in unsupported_here and (request.n or 1) > 1
    split = singly or "prompt_list" in lacking
    hints = lacking & HINTS
    refuse(at_fault(lacking, request, echo=echo), target, gap=request.suffix == "")
    check_limits(request, target, hints)
    limit = host_stops.limit_of(request, target, lacking) if request.stop else None
    if limit is not None:
        if request.max_tokens == 0:  # there is no text to end
            request, limit = msgspec.structs.replace(request, stop=()), None
        elif words := host_stops.refused(request, limit):
            unsupported("stop", words, target)
    if split:
        check_split(request, target)
    dropped = tuple(sorted({*names_of(request, hints), *request.unused, *(left_out or ())}))
    if strict and dropped:
        unsupported(dropped[0], dropped[0], target)
    if hints or echo:
        request = without(request, hints, echo=echo)
    if request.extra or request.openai_extra:
        check_body(request, target)
    return Candidate(target, request, dropped, echo, split, singly, limit)


def without(request: CompletionRequest, hints: frozenset[str], *, echo: bool) -> CompletionRequest:
    """Return a request without these hints, and without echo if Sluice emulates it (`echo`)."""
    changes: dict[str, Any] = {name: EMPTY.get(name) for name in hints}
    if echo:
        changes["echo"] = False
    return msgspec.structs.replace(request, **changes)


def prepared(candidate: Candidate) -> Candidate:
    """Return a candidate that has a stop limit as an attempt needs it.

    Its request has only the stop sequences that the host gets. If some are emulated, so is echo:
    the prompt isn't searched.
    """
    request, limit = candidate.request, candidate.stop_limit
    if limit is None:
        return candidate
    stops, sent = host_stops.divided(request.stop, limit)
    echo = candidate.echo or (stops is not None and request.echo)
    return msgspec.structs.replace(
        candidate,
        request=msgspec.structs.replace(request, stop=sent, echo=request.echo and not echo),
        echo=echo,
        stop_limit=None,
        stops=stops,
    )


def single_choices(request: CompletionRequest) -> list[CompletionRequest]:
    """Return a request for each choice. With one seed, all choices would be equal."""
    seed = request.seed
    return [
        msgspec.structs.replace(
            request, prompts=(prompt,), n=None, seed=None if seed is None else seed + number
        )
        for prompt in request.prompts
        for number in range(request.n or 1)
    ]


def fit_gap(request: CompletionRequest, target: Target, *, strict: bool) -> Candidate:
    """Adapt a request with a suffix to one target. Raises as `fit` does."""
    all_stops = host_stops.obstacle(request) is None
    request, target, left_out = fill_in.adapted(request, target, all_stops=all_stops)
    if request.infill:  # it passes through
        check_limits(request, target, frozenset())
        check_body(request, target)
        return Candidate(target, request)
    return fit(request, target, strict=strict, left_out=left_out)


def at_fault(lacking: frozenset[str], request: CompletionRequest, *, echo: bool) -> frozenset[str]:
    """Return the parameters to blame for a refusal, which are those without a remedy.

    Echo has a remedy, except together with log probabilities or token ids. If the target lacks
    those anyway, they alone are to blame.

    Args:
        lacking: the parameters that the request uses and the target lacks.
        echo: True if Sluice emulates echo.
    """
    found = lacking - HINTS - EMULATED
    if "echo" in lacking and not echo:
        found |= {"echo_token_ids" if request.logprobs is None else "echo_logprobs"}
    if "logprobs" in found:
        found -= {"echo_logprobs"}
    return found - {"echo_token_ids"} if "token_ids" in found else found


def refuse(names: frozenset[str], target: Target, *, gap: bool = False) -> None:
    """Raise UnsupportedParameter for the first of the names, if there are any.

    Args:
        gap: True for an empty suffix, which the caller may not have sent: the endpoints for editors
            add it.
    """
    if not names:
        return
    name = min(names)
    words = "fill-in-the-middle" if gap and name == "suffix" else PARAMETER_WORDS.get(name, name)
    if target.fim:
        plain = msgspec.structs.replace(target, fim=None)
        if name not in registry.dialect(plain.dialect).unsupported(plain):
            words += " together with suffix"
    unsupported(name, words, target, fill_in.advice(target) if name == "suffix" else "")


def refuse_host_names(request: CompletionRequest, target: Target) -> None:
    """Raise InvalidRequest if a passed-on field has the host's own name for a counted field.

    The row says that name, and sluice.toml can name a row's fields freely.
    """
    if not target.names:
        return
    sent = {field_names.fold(name): name for name in (*request.extra, *request.openai_extra)}
    for ours, theirs in target.names.items():
        name = sent.get(field_names.fold(theirs))
        if name is not None and (ours in field_names.OTHER_NAMES or name != theirs):
            raise InvalidRequest(f"Unknown field: {name}. Did you mean {ours}?", param=name)


def check_body(request: CompletionRequest, target: Target) -> None:
    """Raise InvalidRequest if a passed-on field contradicts a field that Sluice writes."""
    one = msgspec.structs.replace(request, prompts=request.prompts[:1])
    try:
        # The reader encodes the body again, with a smaller stack.
        msgspec.json.encode(registry.dialect(target.dialect).body(one, target))
    except RecursionError:
        raise InvalidRequest("The body is nested too deeply.") from None


def check_limits(request: CompletionRequest, target: Target, hints: frozenset[str]) -> None:
    """Raise UnsupportedParameter if a value exceeds the host's limit and isn't a dropped hint.

    Stop sequences beyond the limit are emulated.
    """
    for name, most in target.limits.items():
        if name in hints or name == "stop":
            continue
        value = getattr(request, name)
        if value is not None and value > most:
            unsupported(name, f"{name} above {most:g}", target)


def check_echo(request: CompletionRequest) -> None:
    """Raise InvalidRequest if the answer would repeat too much of the prompts."""
    size = (request.n or 1) * sum(
        utf8_size(prompt) if isinstance(prompt, str) else BYTES_PER_TOKEN * len(prompt)
        for prompt in request.prompts
    )
    if size > MOST_ECHOED_MIB << 20:
        raise InvalidRequest(
            f"echo would repeat {size} bytes of prompts in {request.choices} choices; the limit is "
            f"{MOST_ECHOED_MIB} MiB.",
            param="echo",
        )


def check_split(request: CompletionRequest, target: Target) -> None:
    """Raise UnsupportedParameter if the calls for a list of prompts would send too much."""
    count = len(request.prompts)
    beside = len(msgspec.json.encode(msgspec.structs.replace(request, prompts=())))
    if count * beside > MOST_SPLIT_MIB << 20:
        raise UnsupportedParameter(
            f"{target.name} takes one prompt per call. {count} calls with {beside} bytes of other "
            f"fields each exceed the limit of {MOST_SPLIT_MIB} MiB.",
            param="prompt",
            details={"parameter": "prompt", "target": target.name},
        )


def unsupported(name: str, words: str, target: Target, advice: str = "") -> NoReturn:
    field = FIELDS.get(name, name)
    raise UnsupportedParameter(
        f"{target.name} doesn't support {words}.{advice}",
        param=field,
        details={"parameter": field, "target": target.name},
    )


def names_of(request: CompletionRequest, hints: frozenset[str]) -> tuple[str, ...]:
    """Return the names that the caller used for the hints."""
    names: set[str] = set()
    for hint in hints:
        names |= getattr(request, hint).keys() if hint in BAGS else {hint}
    return tuple(sorted(names))


PARAMETER_WORDS = {
    "token_ids": "a prompt of token ids",
    "echo_logprobs": "echo together with logprobs",
    "echo_token_ids": "echo together with a prompt of token ids",
}
FIELDS = {"token_ids": "prompt", "echo_logprobs": "logprobs", "echo_token_ids": "echo"}
"""The request fields behind the names that aren't fields themselves."""
BAGS = frozenset(("extra", "openai_extra"))
"""Fields that hold parameters under names that the caller chose."""
EMPTY: Mapping[str, Any] = {"logit_bias": {}, "extra": {}, "openai_extra": {}}


def wanted(request: CompletionRequest) -> frozenset[str]:
    """Return the parameters that a request uses, under the names of `Dialect.unsupported`."""
    names = asked_for(request).keys() - {"prompts", "stream", "unused"}
    if any(not isinstance(prompt, str) for prompt in request.prompts):
        names.add("token_ids")
    if len(request.prompts) > 1:
        names.add("prompt_list")
    if request.stop and not all(map(str.strip, request.stop)):
        names.add("blank_stop")
    if request.logprobs is not None:
        names.add("logprobs")
        if request.echo:
            names.add("echo_logprobs")
    return frozenset(names)


def shortcomings(target: Target) -> tuple[list[str], list[str], list[str]]:
    """Return the parameters that a target lacks: those emulated, those dropped, those refused."""
    lacks = registry.dialect(target.dialect).unsupported(target) - BAGS
    by_template = any(rule.by_template for rule in target.provider.fim)
    if by_template or fim_rules.usable(target) is not None:
        lacks -= {"suffix"}
    refused = lacks - EMULATED - HINTS
    return sorted(lacks & EMULATED), sorted(lacks & HINTS), sorted(refused)
