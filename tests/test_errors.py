"""errors.py: each class has a status and a code, and no message misleads a client library."""

from __future__ import annotations

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

import errors
from errors import (
    NO_RETRY,
    InternalError,
    RateLimited,
    SluiceError,
    StreamExists,
    Unauthorized,
    Unavailable,
    UpstreamError,
    UpstreamTimeout,
    retry_headers,
)


def tree(root: type[SluiceError], depth: int = 0) -> list[tuple[int, type[SluiceError]]]:
    """Return each class of the tree with its depth, in depth-first order."""
    found = [(depth, root)]
    for child in root.__subclasses__():
        if child.__module__ == "errors":
            found += tree(child, depth + 1)
    return found


CLASSES = [kind for _, kind in tree(SluiceError)]


def test_the_docstring_draws_the_real_error_tree() -> None:
    line = re.compile(r"^    ([│├└─ ]*)([A-Z]\w+)(?: (\d{3}) (\w+))?", re.MULTILINE)
    drawn = [(len(f[1]) // 4, f[2], f[3], f[4]) for f in line.finditer(errors.__doc__ or "")]
    assert drawn[0] == (0, "SluiceError", None, None)
    real = [(depth, k.__name__, str(k.status), k.code) for depth, k in tree(SluiceError)[1:]]
    assert sorted(drawn[1:]) == sorted(real)


def test_a_code_means_one_status_and_one_class() -> None:
    codes = [kind.code for kind in CLASSES if kind is not SluiceError]
    assert sorted(codes) == sorted(set(codes))
    assert all(re.fullmatch(r"[a-z_]+", code) for code in codes)


def test_an_unclassified_error_is_a_500_internal_error() -> None:
    assert (SluiceError.status, SluiceError.code) == (500, "internal_error")


def test_an_error_carries_its_message_param_details_and_headers() -> None:
    error = errors.InvalidRequest(
        "n: got 0.", param="n", details={"least": 1}, headers={"Allow": "GET"}
    )
    assert (str(error), error.message, error.param) == ("n: got 0.", "n: got 0.", "n")
    assert (error.details, error.headers) == ({"least": 1}, {"Allow": "GET"})
    plain = errors.InvalidRequest("No.")
    assert (plain.param, plain.details, plain.headers) == (None, None, {})


def test_an_error_copies_its_headers_argument() -> None:
    given_headers = {"Allow": "GET"}
    error = errors.InvalidRequest("No.", headers=given_headers)
    error.headers["More"] = "1"
    assert given_headers == {"Allow": "GET"}
    StreamExists("s").headers["More"] = "1"
    assert NO_RETRY == {"x-should-retry": "false"}


@pytest.mark.parametrize(
    ("key_sent", "challenge"),
    [
        (False, 'Bearer realm="sluice"'),
        (True, 'Bearer realm="sluice", error="invalid_token"'),
    ],
)
def test_an_invalid_key_changes_the_challenge_but_not_the_message(
    key_sent: bool, challenge: str
) -> None:
    error = Unauthorized(key_sent=key_sent)
    assert error.headers == {"WWW-Authenticate": challenge}
    assert error.message == Unauthorized(key_sent=not key_sent).message


@pytest.mark.parametrize(
    ("seconds", "headers"),
    [
        (-1, {"Retry-After": "1"}),
        (0, {"Retry-After": "1"}),
        (0.2, {"Retry-After": "1"}),
        (1.2, {"Retry-After": "2"}),
        (60, {"Retry-After": "60"}),
        (60.1, {"Retry-After": "61", "x-should-retry": "false"}),
        (86400, {"Retry-After": "86400", "x-should-retry": "false"}),
    ],
)
def test_retry_after_is_whole_seconds_and_a_long_wait_forbids_retries(
    seconds: float, headers: dict[str, str]
) -> None:
    assert retry_headers(seconds) == headers
    assert RateLimited("Slow.", retry_after=seconds).headers == headers
    assert Unavailable("Away.", retry_after=seconds).headers == headers


@given(st.floats(-1e6, 1e9))
def test_retry_after_rounds_the_wait_up_to_whole_seconds(seconds: float) -> None:
    retry_after = int(retry_headers(seconds)["Retry-After"])
    assert retry_after >= 1
    assert retry_after >= seconds
    assert retry_after < max(1, math.ceil(seconds)) + 1


def test_a_rate_limit_carries_its_details() -> None:
    assert RateLimited("Slow.", retry_after=1, details={"limit": 3}).details == {"limit": 3}


def test_stream_exists_names_the_stream_and_forbids_retries() -> None:
    error = StreamExists("abc")
    assert "'abc'" in error.message
    assert error.param == "stream_id"
    assert error.headers == NO_RETRY


def test_unavailable_asks_to_retry_after_one_second() -> None:
    assert Unavailable("Away.").headers == {"Retry-After": "1"}


def test_an_internal_error_mentions_the_request_id_and_has_no_details() -> None:
    assert "request id" in InternalError().message
    assert InternalError().details is None


def test_an_upstream_error_keeps_the_provider_message_apart() -> None:
    error = UpstreamError(
        "The upstream failed.",
        upstream_status=500,
        upstream_code="boom",
        upstream_message="it broke",
        retry_after=2.5,
    )
    assert error.message == "The upstream failed."
    kept = (error.upstream_status, error.upstream_code, error.upstream_message, error.retry_after)
    assert kept == (500, "boom", "it broke", 2.5)


@pytest.mark.parametrize(
    ("phase", "words", "headers"),
    [
        ("connect", "did not accept the connection within 1.5 s", {}),
        ("first_event", "did not start to answer within 1.5 s", {}),
        ("idle", "sent nothing for 1.5 s", {}),
        ("total", "did not finish within 1.5 s", NO_RETRY),
    ],
)
def test_a_timeout_names_its_phase_and_only_total_forbids_retries(
    phase: str, words: str, headers: dict[str, str]
) -> None:
    error = UpstreamTimeout(phase, 1.5)
    assert words in error.message
    assert error.phase == phase
    assert error.details == {"phase": phase, "seconds": 1.5}
    assert error.headers == headers
    assert error.upstream_status is None


FIXED_WORDS = [
    Unauthorized(key_sent=True),
    StreamExists("s"),
    errors.ClientGone(),
    InternalError(),
    *(UpstreamTimeout(phase, 1) for phase in ("connect", "first_event", "idle", "total")),
]


@pytest.mark.parametrize("error", FIXED_WORDS, ids=lambda error: type(error).__name__)
def test_fixed_messages_avoid_words_that_mislead_the_official_client(
    error: SluiceError,
) -> None:
    for word in ("model", "provider", "validation"):
        assert word not in error.message.lower()
