"""The tree of errors. Each class defines its HTTP status and code; the faces only encode them.

    SluiceError
    ├── InvalidRequest 400 invalid_request
    │   └── UnsupportedParameter 400 unsupported_parameter
    ├── Unauthorized 401 unauthorized
    ├── InsufficientCredits 402 insufficient_credits
    ├── ModelForbidden 403 model_forbidden
    ├── ByokRejected 403 byok_rejected
    ├── AdminRequired 403 admin_required
    ├── NotFound 404 not_found
    │   ├── ProviderNotFound 404 provider_not_found
    │   ├── ModelNotFound 404 model_not_found
    │   ├── KeyNotFound 404 key_not_found
    │   └── StreamNotFound 404 stream_not_found
    ├── MethodNotAllowed 405 method_not_allowed
    ├── RequestTimeout 408 request_timeout
    ├── StreamExists 409 stream_exists
    ├── KeyExists 409 key_exists
    ├── KeysReadOnly 409 keys_read_only
    ├── LastAdminKey 409 last_admin_key
    ├── StreamTrimmed 410 stream_trimmed
    ├── KeyChanged 412 key_changed
    ├── RequestTooLarge 413 request_too_large
    ├── UnsupportedMediaType 415 unsupported_media_type
    ├── RateLimited 429 rate_limited
    ├── ClientGone 499 client_gone (only in the ledger: the client can't read it)
    ├── InternalError 500 internal_error
    ├── StreamInterrupted 500 interrupted
    ├── UpstreamError 502 provider_error
    │   └── UpstreamTimeout 504 provider_timeout
    └── Unavailable 503 unavailable

- A message is a sentence for the caller. It never contains a key.
- The official client chooses its exception by words in the message (see the API docs). So only
  ModelNotFound says "Model", only ProviderNotFound says "Provider", and no 400 says "validation".
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

if TYPE_CHECKING:
    from completion import Usage

NO_RETRY = {"x-should-retry": "false"}
LONGEST_RETRY_S = 60
"""The longest wait for which SDKs may retry on their own. One SDK sleeps for as long as Retry-After
says, so a longer wait comes with NO_RETRY."""


class SluiceError(Exception):
    """An error that a client can receive.

    Attributes:
        message: a sentence for the caller.
        param: the name of the request's field that caused the error.
        details: machine-readable facts.
        headers: additional response headers.
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


OWN_REALM = 'realm="sluice"'
"""The realm in the WWW-Authenticate header of Sluice's 401."""
OWN_NAME = "1.1 sluice"
"""The Via header of Sluice's 404 for a path at which there is nothing."""
ITSELF = "itself"


def is_sluice(headers: Mapping[str, str]) -> bool:
    """Return True if a Sluice, probably this one, sent a response with a 401 or a 404.

    Args:
        headers: the response's headers, with their names in lower case.
    """
    return OWN_REALM in headers.get("www-authenticate", "") or headers.get("via") == OWN_NAME


class InvalidRequest(SluiceError):
    status, code = 400, "invalid_request"


class UnsupportedParameter(InvalidRequest):
    code = "unsupported_parameter"


class Unauthorized(SluiceError):
    """A missing, unknown, disabled or expired key.

    All four have one message, so that it doesn't reveal which keys exist.
    """

    status, code = 401, "unauthorized"

    def __init__(self, *, key_sent: bool) -> None:
        challenge = f"Bearer {OWN_REALM}" + (', error="invalid_token"' if key_sent else "")
        super().__init__(
            "A valid API key is required: send it as 'Authorization: Bearer KEY'.",
            headers={"WWW-Authenticate": challenge},
        )


class InsufficientCredits(SluiceError):
    status, code = 402, "insufficient_credits"


class ModelForbidden(SluiceError):
    status, code = 403, "model_forbidden"


class ByokRejected(SluiceError):
    status, code = 403, "byok_rejected"


class AdminRequired(SluiceError):
    status, code = 403, "admin_required"

    def __init__(self) -> None:
        super().__init__(
            "This needs an admin key. Whoever runs this server can make this key one: "
            "./sluice keys change KEY --admin."
        )


class NotFound(SluiceError):
    status, code = 404, "not_found"


class ProviderNotFound(NotFound):
    code = "provider_not_found"


class ModelNotFound(NotFound):
    code = "model_not_found"


class StreamNotFound(NotFound):
    code = "stream_not_found"


class KeyNotFound(NotFound):
    code = "key_not_found"

    def __init__(self) -> None:
        super().__init__("No key has this id or name. GET /api/v1/keys lists all keys.")


class MethodNotAllowed(SluiceError):
    status, code = 405, "method_not_allowed"


class RequestTimeout(SluiceError):
    status, code = 408, "request_timeout"


class StreamExists(SluiceError):
    status, code = 409, "stream_exists"

    def __init__(self, stream_id: str, *, ended: bool = False) -> None:
        """Make the error.

        Args:
            ended: True if the stream has ended, and is kept for those who come back to it.
        """
        problem = (
            "has ended, but is still kept. Choose another stream_id."
            if ended
            else "is already active. Choose another stream_id, or stop that stream."
        )
        super().__init__(
            f"A stream with the id {stream_id!r} {problem}",
            param="stream_id",
            headers=NO_RETRY,
        )


class StreamInterrupted(SluiceError):
    """A resumable stream whose process died, so that nothing can follow any more."""

    status, code = 500, "interrupted"

    def __init__(self) -> None:
        super().__init__(
            "The server's process that ran this call has died, so the answer is incomplete.",
            headers=NO_RETRY,
        )


class StreamTrimmed(SluiceError):
    """A part of a resumable stream that the client missed and that is no longer kept."""

    status, code = 410, "stream_trimmed"

    def __init__(self, first: int) -> None:
        """Make the error. `first` is the id of the first event that is left."""
        super().__init__(
            "What comes after this event is no longer kept: the answer is too long. "
            f"The first event that is left is {first}.",
            details={"first": first},
            headers=NO_RETRY,
        )


class KeyExists(SluiceError):
    status, code = 409, "key_exists"


class KeysReadOnly(SluiceError):
    """A key of SLUICE_KEYS, or a key file that can't be changed. The message says what to do."""

    status, code = 409, "keys_read_only"


class LastAdminKey(SluiceError):
    """A change after which nobody could manage the server over HTTP."""

    status, code = 409, "last_admin_key"

    def __init__(self) -> None:
        super().__init__(
            "This is the last admin key that works, so nobody could manage this server over HTTP "
            "any more. Create another admin key first, or use ./sluice keys on the server."
        )


class KeyChanged(SluiceError):
    """A key that isn't the one that the request's If-Match names."""

    status, code = 412, "key_changed"

    def __init__(self) -> None:
        super().__init__(
            "This key has changed since you read it (its ETag differs from If-Match). "
            "Read it again, and repeat your change."
        )


class RequestTooLarge(SluiceError):
    status, code = 413, "request_too_large"


class UnsupportedMediaType(SluiceError):
    status, code = 415, "unsupported_media_type"


class RateLimited(SluiceError):
    """A limit that was reached. `retry_after` is in seconds."""

    status, code = 429, "rate_limited"

    def __init__(
        self, message: str, *, retry_after: float, details: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(message, details=details, headers=retry_headers(retry_after))


class ClientGone(SluiceError):
    """A client that disconnected before the call ended. The code appears only in Sluice's records,
    because nobody is left to read a response."""

    status, code = 499, "client_gone"

    def __init__(self) -> None:
        super().__init__("The client closed the connection.")


class InternalError(SluiceError):
    """A defect in Sluice. The log has the traceback, under the request id."""

    def __init__(self) -> None:
        super().__init__("Internal error. Search the server's log for the request id.")


class Unavailable(SluiceError):
    """Something that is busy or can't be reached. `retry_after` is in seconds.

    Attributes:
        lacks: what the server lacked for a call that it refused: "capacity", the "ledger", or the
            "limits", which can't be counted. Empty if no call was refused.
    """

    status, code = 503, "unavailable"

    def __init__(
        self,
        message: str,
        *,
        retry_after: float = 1,
        lacks: Literal["", "capacity", "ledger", "limits"] = "",
    ) -> None:
        super().__init__(message, headers=retry_headers(retry_after))
        self.lacks = lacks


class UpstreamError(SluiceError):
    """A provider that refused the call, failed, or violated its wire format.

    `routing.upstream_errors.public_error` turns it into the error that the client receives.

    Attributes:
        upstream_status: the provider's HTTP status. None if the provider sent no response, closed
            the connection early, or sent an invalid body.
        upstream_code, upstream_message: the provider's own code and message. They may contain a
            key, so `public_error` redacts them.
        retry_after: the seconds that the provider asked to wait.
        host: the host and port of the provider if it can't be reached or doesn't speak HTTP.
        reason: a short word for why it can't be reached, such as "refused"; ITSELF if a Sluice
            answered.
        unsupported: the parameter that the provider lacks, if that is why the call failed. Empty if
            the provider didn't name it. The provider itself works, so the call isn't retried
            there, and no circuit breaker learns of it.
        usage: the usage that the provider reported before the error, if the call's events, which
            would have it, were lost.
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
        unsupported: str | None = None,
        host: str | None = None,
        reason: str | None = None,
    ) -> None:
        super().__init__(message)
        self.upstream_status = upstream_status
        self.upstream_code = upstream_code
        self.upstream_message = upstream_message
        self.retry_after = retry_after
        self.unsupported = unsupported
        self.host, self.reason = host, reason
        self.usage: Usage | None = None


class UpstreamTimeout(UpstreamError):
    """An upstream that took too long."""

    status, code = 504, "provider_timeout"

    def __init__(self, phase: str, seconds: float, host: str | None = None) -> None:
        """Make the error.

        Args:
            phase: connect, first_event, idle or total.
            seconds: the limit that was exceeded.
            host: the host and port, if they are known; perhaps with the proxy on the way there.
        """
        what = {
            "connect": "did not accept the connection within",
            "first_event": "did not start to answer within",
            "idle": "sent nothing for",
            "total": "did not finish within",
        }[phase]
        upstream = f"The upstream {host}" if host else "The upstream"
        reason = "timed_out" if phase == "connect" else None
        super().__init__(f"{upstream} {what} {seconds:g} s.", host=host, reason=reason)
        self.phase = phase
        self.details = {"phase": phase, "seconds": seconds}
        if phase == "total":
            self.headers.update(NO_RETRY)


def limit_details(
    kind: str, limit: int | None, retry_after: float | None, reset_time: str | None = None
) -> dict[str, Any]:
    """Return the error details for a reached limit.

    Args:
        kind: the kind of limit, for the field limit_type.
        limit: None if the limit isn't known or isn't a number.
        retry_after: the seconds to wait; None if waiting doesn't help.
        reset_time: the time at which the limit resets, in ISO 8601.
    """
    return {
        "limit_type": kind,
        "limit": limit,
        "reset_time": reset_time,
        "retry_after": retry_after,
    }


def of_group(name: str | None) -> dict[str, str]:
    """Return the error details that name the group whose limit was reached; none for a key's."""
    return {} if name is None else {"group": name}


def whole_seconds(seconds: float) -> int:
    """Round a wait up to whole seconds, and to at least 1, for Retry-After."""
    return max(1, math.ceil(seconds))


def retry_headers(seconds: float) -> dict[str, str]:
    """Return the Retry-After header. Add NO_RETRY if the wait is longer than LONGEST_RETRY_S."""
    headers = {"Retry-After": str(whole_seconds(seconds))}
    if seconds > LONGEST_RETRY_S:
        headers.update(NO_RETRY)
    return headers


def forget_frames(error: BaseException) -> None:
    """Drop the traceback and the causes of an error that will be stored.

    A traceback refers to all objects of the call, including the one that stores the error. That
    reference cycle would keep them in memory until the garbage collector runs.
    """
    error.__traceback__ = error.__cause__ = error.__context__ = None
