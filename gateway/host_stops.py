"""The stop sequences of a request that a host gets, and those that Sluice emulates.

Long stop sequences take a tenth of a second to divide. So a request is only checked when it is
admitted, and its stop sequences are divided when an attempt needs them: calls above a rate limit
cost little.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from completion import CompletionRequest
from gateway.stop_automaton import SHORT, StopAutomaton, compiled, effective, for_host, turn
from providers.base import Target

NEED_ALL_STOPS: Final = (
    *("min_tokens", "use_beam_search"),
    *("include_stop_str_in_output", "no_stop_trim"),
)
"""Parameters of hosts with which stop sequences can't be emulated: the host compares texts that end
at them, or it alone knows where it may stop, and what it then sends."""
BLANK: Final = "a stop of white space only"


class StopLimit(NamedTuple):
    """A host's limit for stop sequences."""

    most: int
    """The number of stop sequences that the host takes."""
    blank: bool
    """False if the host takes no stop sequence of white space only."""

    def takes(self, stops: Sequence[str]) -> bool:
        return len(stops) <= self.most and (self.blank or all(map(str.strip, stops)))


def limit_of(
    request: CompletionRequest, target: Target, lacking: frozenset[str]
) -> StopLimit | None:
    """Return a target's limit if the request's stop sequences exceed it, else None.

    Args:
        lacking: the parameters that the request uses and the target lacks.
    """
    count = len(request.stop)
    most = 0 if "stop" in lacking else target.limits.get("stop", count)
    blank = "blank_stop" not in lacking
    return None if count <= most and blank else StopLimit(int(most), blank)


def obstacle(request: CompletionRequest) -> str | None:
    """Return what keeps stop sequences from being emulated exactly, or None."""
    if request.echo and request.logprobs is not None:
        return "echo and logprobs"
    if request.echo and not all(isinstance(prompt, str) for prompt in request.prompts):
        return "echo and a prompt of token ids"
    if request.best_of is not None:
        return "best_of"
    extra = request.extra | request.openai_extra
    return next((name for name in NEED_ALL_STOPS if extra.get(name)), None)


def refused(request: CompletionRequest, limit: StopLimit) -> str | None:
    """Return what the host doesn't take and Sluice can't emulate, in words, or None.

    Stop sequences that never come first don't count, unless all of them together are long: to find
    them would then take too much time for a request that may be refused.
    """
    reason = obstacle(request)
    if reason is None:
        return None
    found = tuple(dict.fromkeys(request.stop))
    if sum(map(len, found)) <= SHORT:
        found = effective(found)
    if limit.takes(found):
        return None
    which = f"stop above {limit.most}" if limit.most else "stop"
    return f"{which if len(found) > limit.most else BLANK} together with {reason}"


def divided(
    stops: tuple[str, ...], limit: StopLimit
) -> tuple[StopAutomaton | None, tuple[str, ...]]:
    """Return the stop sequences to emulate, if any, and those that the host gets."""
    with turn(stops):
        found = effective(stops)
        if limit.takes(found):
            return None, found
        return compiled(stops), for_host(found, limit.most, blank=limit.blank)
