"""The failures of a call's targets, as the client and the log see them.

- A client learns which targets were tried, and why each failed. The message names a few of them in
  short, and the error's details name all.
- A reason is Sluice's own text or a status: never the provider's message, which may quote a prompt.
- The functions are pure, except that `name_targets` changes its argument.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from typing import Any, Final

from errors import (
    ITSELF,
    RateLimited,
    SluiceError,
    Unavailable,
    UpstreamError,
    whole_seconds,
)
from providers.base import Target
from routing.upstream_errors import public_error, rate_limited
from streams.stream import Stream

MOST_NAMED: Final = 4
"""The most targets that a message names."""
MOST_LISTED: Final = 64
LONGEST_NAME, LONGEST_REASON = 60, 100
LONGEST_LINE: Final = 2000
MISLEADING: Final = {404: ("provider",), 503: ("model", "business-plan")}
"""Words by which the official client chooses its exception, by status. Names of targets and hosts
may contain them. (endpoints/native.py handles those of a 400.)"""
KEY_REJECTED: Final = (401, 403)


def reason_of(failure: SluiceError) -> str:
    """Return the reason for a target's failure, as a clause."""
    if isinstance(failure, UpstreamError):
        if failure.reason == ITSELF:
            return f"status {failure.upstream_status}: its base_url is Sluice itself"
        if failure.upstream_status in KEY_REJECTED:
            return f"status {failure.upstream_status}: it rejected the API key"
        if failure.upstream_status is not None:
            return f"status {failure.upstream_status}"
    elif isinstance(failure, Unavailable):
        return "paused, because it keeps failing"
    elif isinstance(failure, RateLimited):
        return "paused, because it has limited the request rate"
    return failure.message.removeprefix("The upstream ").rstrip(".")


def listed(failures: Mapping[str, SluiceError]) -> list[dict[str, Any]]:
    """Return the failures for an error's details."""
    return [
        {
            "target": name,
            "code": failure.code,
            "upstream_status": getattr(failure, "upstream_status", None),
            "reason": reason_of(failure),
        }
        for name, failure in islice(failures.items(), MOST_LISTED)
    ]


def line(failures: Mapping[str, SluiceError]) -> str:
    """Return the failures for the log."""
    text = "; ".join(f"{name}: {reason_of(failure)}" for name, failure in failures.items())
    return shortened(text, LONGEST_LINE)


def name_targets(error: SluiceError, failures: Mapping[str, SluiceError]) -> None:
    """Add the targets that were tried to the error of a call, if there were several.

    They are added after the error's own sentences, whose words clients look for. If a name would
    add such a word, the message only has their number.
    """
    if len(failures) < 2:
        return
    error.details = {**(error.details or {}), "tried": listed(failures)}
    text = tried(failures)
    if any(word in text.lower() for word in MISLEADING.get(error.status, ())):
        text = f"Tried {len(failures)} targets, which are in details.tried."
    error.message = f"{error.message} {text}"


def tried(failures: Mapping[str, SluiceError]) -> str:
    """Return a sentence that names some of the targets."""
    found = [
        f"{shortened(name, LONGEST_NAME)} ({shortened(reason_of(failure), LONGEST_REASON)})"
        for name, failure in islice(failures.items(), MOST_NAMED)
    ]
    rest = len(failures) - len(found)
    more = f"; and {rest} more" if rest else ""
    return f"Tried: {'; '.join(found)}{more}."


def shortened(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 3] + "..."


def paused_error(target: Target, seconds: float, *, limited: bool) -> SluiceError:
    """Return the error for a target that must not be called for some seconds.

    Args:
        limited: True after a 429, False if the target keeps failing.
    """
    if limited:
        return rate_limited(seconds, target, {"provider": target.provider.name})
    return Unavailable(
        f"{target.name} is failing. Calls to it are paused for {whole_seconds(seconds)} s.",
        retry_after=seconds,
    )


def error_for_client(stream: Stream, failure: SluiceError) -> SluiceError:
    """Return the error for the client, without the key of the target that failed.

    The provider's message may quote that key. The target isn't necessarily the last one.
    """
    if not isinstance(failure, UpstreamError):
        return failure
    found = (attempt.target for attempt in stream.attempts if attempt.failure is failure)
    return public_error(failure, next(found, stream.target))
