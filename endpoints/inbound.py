"""The request that is being answered, and what is known of it so far.

Flask's `request` and `g` look for it anew each time that they are used, half a microsecond a use:
what every call needs is asked of the request itself.
"""

from __future__ import annotations

import socket
from typing import IO, TYPE_CHECKING, Any

import flask

if TYPE_CHECKING:
    from call import CallInProgress


class Request(flask.Request):
    """One request."""

    id = ""
    """The client's name for it, or one that we made."""
    began = 0.0
    """By the monotonic clock, in seconds."""
    byok_api_key: Any = None
    """The provider's key in its body, if any, good or not."""
    call: CallInProgress | None = None
    """Set where a call was admitted: its line in the log is written when it is settled."""
    error_code: str | None = None
    """Of the answer, where that is an error."""

    @property
    def client(self) -> socket.socket | None:
        """The connection that it came on, where the server shows it."""
        sent = self.environ
        return sent.get("gunicorn.socket") or sent.get("werkzeug.socket")

    @property
    def announced(self) -> int | None:
        """How many bytes its body has, by what it says itself; None: it doesn't, or a server has
        passed on what says nothing."""
        length = self.environ.get("CONTENT_LENGTH", "")
        if length.isdecimal() and "HTTP_TRANSFER_ENCODING" not in self.environ:
            return int(length)
        return self.content_length

    @property
    def incoming(self) -> IO[bytes]:
        """Its body, up to its end: the server's own stream, where that sees to the end."""
        sent = self.environ
        body: IO[bytes] = sent["wsgi.input"] if sent.get("wsgi.input_terminated") else self.stream
        return body


def current() -> Request:
    found: Request = flask.request._get_current_object()  # type: ignore[attr-defined]
    return found
