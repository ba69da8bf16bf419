"""One tree of errors. Each class knows its HTTP status and code; the faces only encode them.

    SluiceError
    ├── InvalidRequest 400 invalid_request
    │   └── UnsupportedParameter 400 unsupported_parameter
    ├── Unauthorized 401 unauthorized
    ├── InsufficientCredits 402 insufficient_credits
    ├── ModelForbidden 403 model_forbidden
    ├── ByokRejected 403 byok_rejected
    ├── NotFound 404 not_found
    │   ├── ProviderNotFound 404 provider_not_found
    │   ├── ModelNotFound 404 model_not_found
    │   └── StreamNotFound 404 stream_not_found
    ├── MethodNotAllowed 405 method_not_allowed
    ├── RequestTimeout 408 request_timeout
    ├── StreamExists 409 stream_exists
    ├── RequestTooLarge 413 request_too_large
    ├── UnsupportedMediaType 415 unsupported_media_type
    ├── RateLimited 429 rate_limited
    ├── ClientGone 499 client_gone (nobody is there to read it)
    ├── InternalError 500 internal_error
    ├── UpstreamError 502 provider_error
    │   └── UpstreamTimeout 504 provider_timeout
    └── Unavailable 503 unavailable

Rules that hold here: a message is a sentence for the person who made the call and never holds a
key. The official client chooses its exception by words in it (see the API docs), so only
ModelNotFound says "Model", only ProviderNotFound says "Provider", no 400 says "validation".
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

NO_RETRY = {"x-should-retry": "false"}
LONGEST_RETRY_S = 60
"""One SDK sleeps however long Retry-After says; above this it is told not to retry by itself."""


class SluiceError(Exception):
    """What a client is told.

    message: a sentence. param: the field at fault. details: machine-readable particulars.
    headers: extra response headers.
    """

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        details: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.details = details
        self.headers = dict(headers or {})


class InvalidRequest(SluiceError):
    status, code = 400, "invalid_request"


class UnsupportedParameter(InvalidRequest):
    code = "unsupported_parameter"


class Unauthorized(SluiceError):
    """No key, an unknown, a disabled or an expired one: the same words for all of them."""

    status, code = 401, "unauthorized"

    def __init__(self, *, key_sent: bool) -> None:
        challenge = 'Bearer realm="sluice"' + (', error="invalid_token"' if key_sent else "")
        super().__init__(
            "A valid API key is needed: send it as 'Authorization: Bearer KEY'.",
            headers={"WWW-Authenticate": challenge},
        )


class InsufficientCredits(SluiceError):
    status, code = 402, "insufficient_credits"


class ModelForbidden(SluiceError):
    status, code = 403, "model_forbidden"


class ByokRejected(SluiceError):
    status, code = 403, "byok_rejected"


class NotFound(SluiceError):
    status, code = 404, "not_found"


class ProviderNotFound(NotFound):
    code = "provider_not_found"


class ModelNotFound(NotFound):
    code = "model_not_found"


class StreamNotFound(NotFound):
    code = "stream_not_found"


class MethodNotAllowed(SluiceError):
    status, code = 405, "method_not_allowed"


class RequestTimeout(SluiceError):
    status, code = 408, "request_timeout"


class StreamExists(SluiceError):
    status, code = 409, "stream_exists"

    def __init__(self, stream_id: str) -> None:
        super().__init__(
            f"A stream with the id {stream_id!r} is active. Choose another stream_id, or stop it.",
            param="stream_id",
            headers=NO_RETRY,
        )


class RequestTooLarge(SluiceError):
    status, code = 413, "request_too_large"


class UnsupportedMediaType(SluiceError):
    status, code = 415, "unsupported_media_type"


class RateLimited(SluiceError):
    """retry_after: seconds; sent in whole seconds, at least 1."""

    status, code = 429, "rate_limited"

    def __init__(
        self, message: str, *, retry_after: float, details: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(message, details=details, headers=retry_headers(retry_after))


class ClientGone(SluiceError):
    """The client hung up before there was an answer; for the records only."""

    status, code = 499, "client_gone"

    def __init__(self) -> None:
        super().__init__("The client closed the connection.")


class InternalError(SluiceError):
    """Ours. What happened is in the log, under the request id."""

    def __init__(self) -> None:
        super().__init__("Something went wrong on our side. The request id finds it in the log.")


class Unavailable(SluiceError):
    status, code = 503, "unavailable"

    def __init__(self, message: str, *, retry_after: float = 1) -> None:
        super().__init__(message, headers=retry_headers(retry_after))


class UpstreamError(SluiceError):
    """A provider refused the call, failed, or sent what its format doesn't allow.

    upstream_status: the HTTP status it gave (None: it never answered, or broke off, or its body
    wasn't the format). upstream_code, upstream_message: its own words, shown in details only.
    retry_after: seconds it asked to wait. `routing.upstream_errors.public_error` decides what the
    client is told.
    """

    status, code = 502, "provider_error"

    def __init__(
        self,
        message: str,
        *,
        upstream_status: int | None = None,
        upstream_code: str | None = None,
        upstream_message: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.upstream_status = upstream_status
        self.upstream_code = upstream_code
        self.upstream_message = upstream_message
        self.retry_after = retry_after


class UpstreamTimeout(UpstreamError):
    """phase: connect, first_event, idle or total."""

    status, code = 504, "provider_timeout"

    def __init__(self, phase: str, seconds: float) -> None:
        what = {
            "connect": "did not accept the connection",
            "first_event": "did not begin to answer",
            "idle": "fell silent",
            "total": "did not finish",
        }[phase]
        super().__init__(f"The upstream {what} within {seconds:g} s.")
        self.phase = phase
        self.details = {"phase": phase, "seconds": seconds}
        if phase == "total":
            self.headers.update(NO_RETRY)


def limit_details(
    kind: str, limit: int | None, retry_after: float | None, reset_time: str | None = None
) -> dict[str, Any]:
    """The details of a limit that was reached. retry_after: seconds; None: no waiting helps."""
    return {
        "limit_type": kind,
        "limit": limit,
        "reset_time": reset_time,
        "retry_after": retry_after,
    }


def whole_seconds(seconds: float) -> int:
    """A wait as Retry-After has it: whole seconds, at least 1."""
    return max(1, math.ceil(seconds))


def retry_headers(seconds: float) -> dict[str, str]:
    """Retry-After; a long one also asks SDKs not to sleep it out."""
    headers = {"Retry-After": str(whole_seconds(seconds))}
    if seconds > LONGEST_RETRY_S:
        headers.update(NO_RETRY)
    return headers


def forget_frames(error: BaseException) -> None:
    """Of an error that is kept: its frames hold all that a call held, and who keeps it as well, so
    that it would stay until garbage is looked for."""
    error.__traceback__ = error.__cause__ = error.__context__ = None
