"""failures.py: the targets of a call that failed, in its error and in the log."""

from __future__ import annotations

from typing import Any

import pytest

from errors import (
    ModelNotFound,
    RateLimited,
    SluiceError,
    Unavailable,
    UpstreamError,
    UpstreamTimeout,
)
from gateway.failures import (
    LONGEST_LINE,
    LONGEST_REASON,
    MOST_LISTED,
    MOST_NAMED,
    line,
    name_targets,
    reason_of,
)

UNREACHED = "The upstream h.example:443 could not be reached: the connection was refused."

CASES: list[tuple[SluiceError, str]] = [
    (UpstreamError(UNREACHED), "h.example:443 could not be reached: the connection was refused"),
    (UpstreamError("", upstream_status=503, upstream_message="the prompt"), "status 503"),
    (UpstreamError("", upstream_status=401), "status 401: it rejected the API key"),
    (UpstreamError("", upstream_status=404, reason="itself"),
     "status 404: its base_url is Sluice itself"),
    (UpstreamTimeout("idle", 3), "sent nothing for 3 s"),
    (Unavailable("a/x is failing."), "paused, because it keeps failing"),
    (RateLimited("", retry_after=1), "paused, because it has limited the request rate"),
]  # fmt: skip


@pytest.mark.parametrize(("failure", "expected"), CASES)
def test_a_reason_is_a_clause_without_the_providers_words(
    failure: SluiceError, expected: str
) -> None:
    assert reason_of(failure) == expected


def test_an_error_names_each_target_that_was_tried_and_why_it_failed() -> None:
    error = UpstreamError("The upstream reported an error in its response.")
    error.details = {"provider": "b"}
    name_targets(error, {"a/x": UpstreamError(UNREACHED), "b/y": error})
    assert error.message == (
        "The upstream reported an error in its response. Tried: a/x (h.example:443 could not be "
        "reached: the connection was refused); b/y (reported an error in its response)."
    )
    assert error.details["provider"] == "b"
    tried: list[dict[str, Any]] = error.details["tried"]
    assert [one["target"] for one in tried] == ["a/x", "b/y"]
    assert tried[0] == {
        "target": "a/x",
        "code": "provider_error",
        "upstream_status": None,
        "reason": "h.example:443 could not be reached: the connection was refused",
    }


def test_the_error_of_a_single_target_is_unchanged() -> None:
    error = UpstreamError(UNREACHED)
    name_targets(error, {"a/x": error})
    assert (error.message, error.details) == (UNREACHED, None)


@pytest.mark.parametrize(
    ("error", "name", "named"),
    [
        (ModelNotFound("Model 'b/y' was not found."), "a/x", True),
        (ModelNotFound("Model 'b/y' was not found."), "my-Provider/x", False),
        (Unavailable("b/y is failing."), "a/x", True),
        (Unavailable("b/y is failing."), "a/my-model", False),
        (UpstreamError("It broke."), "my-provider/my-model", True),
    ],
)
def test_a_name_adds_no_word_that_misleads_the_official_client(
    error: SluiceError, name: str, named: bool
) -> None:
    before = error.message
    name_targets(error, {name: UpstreamError("", upstream_status=500), "b/y": error})
    assert error.message.startswith(f"{before} Tried")
    assert (name in error.message) is named
    assert error.details is not None
    assert error.details["tried"][0]["target"] == name


def test_a_message_is_short_and_the_details_are_whole() -> None:
    many: dict[str, SluiceError] = {
        f"a/{'m' * 500}{n}": UpstreamError("w" * 500) for n in range(MOST_LISTED + 10)
    }
    error = UpstreamError("")
    name_targets(error, many)
    assert len(error.message) < MOST_NAMED * 200
    assert error.message.endswith(f"; and {len(many) - MOST_NAMED} more.")
    assert error.details is not None
    assert len(error.details["tried"]) == MOST_LISTED
    assert len(error.details["tried"][0]["reason"]) > LONGEST_REASON
    assert len(line(many)) == LONGEST_LINE
