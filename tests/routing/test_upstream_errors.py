"""upstream_errors.py: the client's error for each failure of a provider."""

from __future__ import annotations

from typing import Any

import pytest

from errors import (
    ByokRejected,
    InternalError,
    InvalidRequest,
    ModelNotFound,
    RateLimited,
    RequestTooLarge,
    SluiceError,
    Unavailable,
    UnsupportedParameter,
    UpstreamError,
    UpstreamTimeout,
)
from routing.retries import classify
from routing.upstream_errors import public_error
from tests.routing.test_router import a_target


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        *((UpstreamError("", upstream_status=status), True)
          for status in (None, 408, 409, 425, 429, 500, 501, 502, 503, 504, 529)),
        *((UpstreamError("", upstream_status=status), False)
          for status in (400, 401, 402, 403, 404, 413, 422)),
        *((UpstreamTimeout(phase, 1), True) for phase in ("connect", "first_event", "idle")),
        (RateLimited("The credential's circuit is open.", retry_after=1), True),
        (Unavailable("The target's circuit is open."), True),
        (InvalidRequest(""), False),
        (InternalError(), False),
    ],
)  # fmt: skip
def test_only_failures_that_another_target_may_avoid_are_retryable(
    error: SluiceError, expected: bool
) -> None:
    assert classify(error).try_next is expected


NO_RETRY = {"x-should-retry": "false"}
RETRY_IN_5 = {"Retry-After": "5"}


@pytest.mark.parametrize(
    ("failure", "byok", "kind", "headers", "says"),
    [
        ({"upstream_status": 400}, False, InvalidRequest, {}, "sim/m-1 rejected the request."),
        ({"upstream_status": 422, "upstream_message": "n is odd"}, False, InvalidRequest, {},
         "sim/m-1 rejected the request: n is odd"),
        ({"upstream_status": 400, "upstream_message": "Validation failed"}, False, InvalidRequest,
         {}, "sim/m-1 rejected the request: Validation failed"),
        ({"upstream_status": 413}, False, RequestTooLarge, {}, "sim/m-1 rejected the request."),
        ({"upstream_status": 401}, False, UpstreamError, NO_RETRY,
         "sim rejected the API key that this server sent."),
        ({"upstream_status": 403}, False, UpstreamError, NO_RETRY, "sim rejected the API key"),
        ({"upstream_status": 401}, True, ByokRejected, {}, "sim rejected your own key"),
        ({"upstream_status": 403}, True, ByokRejected, {}, "sim rejected your own key"),
        ({"upstream_status": 402}, False, UpstreamError, NO_RETRY, "sim has no credit left."),
        ({"upstream_status": 429, "upstream_code": "insufficient_quota"}, False, UpstreamError,
         NO_RETRY, "sim has no credit left."),
        ({"upstream_status": 404, "upstream_message": "provider says no"}, False, ModelNotFound,
         {}, "Model 'sim/m-1' was not found."),
        ({"upstream_status": 429}, False, RateLimited, RETRY_IN_5, "Try again in 5 s."),
        ({"upstream_status": 429, "retry_after": 90}, False, RateLimited,
         {"Retry-After": "90", **NO_RETRY}, "Try again in 90 s."),
        ({"upstream_status": 429, "retry_after": 0.2}, False, RateLimited, {"Retry-After": "1"},
         "Try again in 1 s."),
        ({"upstream_status": 500}, False, UpstreamError, {}, "It broke."),
        ({"upstream_status": None}, False, UpstreamError, {}, "It broke."),
        ({"upstream_status": 418}, False, UpstreamError, {}, "It broke."),
    ],
)  # fmt: skip
def test_upstream_status_and_code_decide_the_public_error(
    failure: dict[str, Any],
    byok: bool,
    kind: type[SluiceError],
    headers: dict[str, str],
    says: str,
) -> None:
    error = public_error(UpstreamError("It broke.", **failure), a_target(byok=byok, key="k-1"))
    assert type(error) is kind
    assert says in error.message
    assert error.headers == headers
    assert error.details is not None
    assert error.details["provider"] == "sim"
    assert error.details["model"] == "m-1"
    assert error.details["upstream_status"] == failure["upstream_status"]


ITS_OWN_URL = "sim's base_url is Sluice itself: set base_url in sluice.toml to where sim listens."


@pytest.mark.parametrize(
    ("status", "reason", "key", "says"),
    [
        (401, None, None, "sim wants an API key, and none is set (status 401)."),
        (403, None, None, "sim wants an API key, and none is set (status 403)."),
        (401, "itself", None, ITS_OWN_URL),
        (404, "itself", None, ITS_OWN_URL),
        (404, "itself", "k-1", ITS_OWN_URL),
        # This may be another Sluice.
        (401, "itself", "k-1", "sim rejected the API key that this server sent."),
    ],
)
def test_an_error_says_if_no_key_was_sent_or_if_sluice_called_itself(
    status: int, reason: str | None, key: str | None, says: str
) -> None:
    error = UpstreamError("", upstream_status=status, reason=reason)
    found = public_error(error, a_target(key=key))
    assert (type(found), found.message, found.headers) == (UpstreamError, says, NO_RETRY)


def test_an_upstream_wait_of_zero_becomes_a_retry_after_of_one_second() -> None:
    failure = UpstreamError("It broke.", upstream_status=429, retry_after=0)
    assert public_error(failure, a_target()).headers == {"Retry-After": "1"}


def test_the_error_message_and_the_retry_after_header_give_equal_waits() -> None:
    failure = UpstreamError("It broke.", upstream_status=429, retry_after=1.4)
    error = public_error(failure, a_target())
    assert f"in {error.headers['Retry-After']} s" in error.message


def test_an_upstream_rate_limit_has_the_details_of_every_429() -> None:
    failure = UpstreamError("It broke.", upstream_status=429, retry_after=2, upstream_code="rpm")
    assert public_error(failure, a_target()).details == {
        "provider": "sim",
        "model": "m-1",
        "upstream_status": 429,
        "upstream_code": "rpm",
        "upstream_message": None,
        "limit_type": "provider",
        "limit": None,
        "reset_time": None,
        "retry_after": 2,
    }


def test_the_details_name_the_host_that_could_not_be_reached_and_the_reason() -> None:
    failure = UpstreamError("It broke.", host="h.example:443", reason="refused")
    details = public_error(failure, a_target()).details or {}
    assert (details["host"], details["reason"]) == ("h.example:443", "refused")


def test_an_upstream_timeout_keeps_its_type_and_reports_its_phase() -> None:
    error = public_error(UpstreamTimeout("idle", 3), a_target())
    assert isinstance(error, UpstreamTimeout)
    assert error.details == {
        "phase": "idle",
        "seconds": 3,
        "provider": "sim",
        "model": "m-1",
        "upstream_status": None,
        "upstream_code": None,
        "upstream_message": None,
    }


@pytest.mark.parametrize("status", [400, 401, 402, 403, 404, 413, 422, 429, 500, None])
@pytest.mark.parametrize("byok", [True, False])
def test_no_public_error_shows_the_key_or_text_that_looks_like_a_key(
    status: int | None, byok: bool
) -> None:
    words = "You sent word-of-mine, and Bearer abc.def; the account's is sk-proj-****wxyz12."
    failure = UpstreamError("It broke.", upstream_status=status, upstream_message=words)
    error = public_error(failure, a_target(key="word-of-mine", byok=byok))
    for text in (error.message, repr(error.details)):
        for part in ("word-of-mine", "abc.def", "wxyz12"):
            assert part not in text


@pytest.mark.parametrize("status", [400, 404, 422, 500])
def test_a_long_upstream_message_is_truncated(status: int) -> None:
    failure = UpstreamError("It broke.", upstream_status=status, upstream_message="x" * 5000)
    error = public_error(failure, a_target())
    assert error.details is not None
    assert error.details["upstream_message"] == "x" * 1000
    assert len(error.message) < 1200


def test_a_target_without_a_key_shows_the_upstream_message() -> None:
    failure = UpstreamError("It broke.", upstream_status=400, upstream_message="plain words")
    assert public_error(failure, a_target()).message.endswith(": plain words")


def test_a_parameter_that_the_host_refuses_is_unsupported_with_the_words_of_the_host() -> None:
    failure = UpstreamError(
        "It broke.", upstream_status=400, upstream_message="no suffix here", unsupported="suffix"
    )
    error = public_error(failure, a_target())
    assert type(error) is UnsupportedParameter
    assert (error.status, error.param) == (400, "suffix")
    assert error.message == "sim/m-1 doesn't support suffix: no suffix here"
    assert error.details is not None
    assert error.details["parameter"] == "suffix"


@pytest.mark.parametrize(
    ("name", "param", "says"),
    [("n", "n", 'set cannot = ["n"] in [providers.sim]'),
     ("prompt_list", "prompt", 'set cannot = ["prompt_list"] in [providers.sim]')],
)  # fmt: skip
def test_a_parameter_that_the_host_ignores_is_unsupported_with_the_setting_that_says_so(
    name: str, param: str, says: str
) -> None:
    failure = UpstreamError("The upstream sent 1 of the 2 choices.", unsupported=name)
    error = public_error(failure, a_target())
    assert type(error) is UnsupportedParameter
    assert (error.param, says in error.message) == (param, True)
    assert "1 of the 2" in error.message


def test_a_501_without_a_named_parameter_is_unsupported() -> None:
    error = public_error(UpstreamError("It broke.", upstream_status=501), a_target())
    assert type(error) is UnsupportedParameter
    assert error.param is None


@pytest.mark.parametrize("status", [None, 400, 422, 501])
@pytest.mark.parametrize("name", ["n", ""])
def test_an_unsupported_parameter_is_tried_elsewhere_and_is_no_failure_of_the_host(
    status: int | None, name: str
) -> None:
    verdict = classify(UpstreamError("", upstream_status=status, unsupported=name))
    assert verdict == (False, True, "nothing")
