"""Flask as it is used here: the request that is being answered, with what is known of it so far and
its body, and an app that does without what nothing here needs.

Flask's `request` and `g` look for the request anew each time that they are used, half a microsecond
a use: what every call needs is asked of the request itself.
"""

from __future__ import annotations

import math
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from io import BytesIO
from typing import IO, TYPE_CHECKING, Any, Final, NoReturn, TypeVar

import flask
from flask.sessions import NullSession, SessionInterface, SessionMixin
from werkzeug.exceptions import ClientDisconnected
from werkzeug.routing import MapAdapter

from auth import current_request
from concurrency.yielding import Yielder
from errors import InvalidRequest, RequestTimeout, RequestTooLarge, SluiceError
from server.read_deadline import read_deadlines

if TYPE_CHECKING:
    from gateway.call import Call

READ_SIZE = 4 * 1024  # a body can come in chunks of a byte, 3 us each
DRAIN_BYTES = 16 * 1024 * 1024  # of a body that is too large, so that its sender hears why
DRAIN_S = 5.0
PATIENCES = 4
"""How often all of a body may take what a client may keep us waiting for a piece of it."""

F = TypeVar("F", bound=Callable[..., Any])


class Request(flask.Request):
    """One request."""

    id = ""
    """The client's name for it, or one that we made."""
    began = 0.0
    """By the monotonic clock, in seconds."""
    byok_api_key: Any = None
    """The provider's key in its body, if any, good or not."""
    call: Call | None = None
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

    def close(self) -> None:
        """It holds no files."""

    @property
    def incoming(self) -> IO[bytes]:
        """Its body, up to its end: the server's own stream, where that sees to the end."""
        sent = self.environ
        body: IO[bytes] = sent["wsgi.input"] if sent.get("wsgi.input_terminated") else self.stream
        return body


def current() -> Request:
    found: Request = current_request()  # type: ignore[assignment]  # App.request_class
    return found


def read_body(request: Request, limit: int) -> bytes:
    """All of the body, at most `limit` bytes; also when its length was not announced."""
    announced = request.announced
    if (announced or 0) > limit:
        too_large(request, limit)
    stream = request.incoming
    if announced is not None and isinstance(stream, BytesIO):  # it came along with the head
        return stream.read()
    try:
        return gathered(request, stream, limit)
    except TimeoutError:
        raise RequestTimeout("The body did not arrive in time.") from None
    except (OSError, ClientDisconnected) as error:
        if isinstance(error.__context__, TimeoutError):  # werkzeug's own server hides it
            raise RequestTimeout("The body did not arrive in time.") from None
        raise InvalidRequest("The body ended before its end.") from None
    except SluiceError:
        raise
    except Exception:  # noqa: BLE001 - the server's own, which quotes what is badly framed
        raise InvalidRequest("The body could not be read to its end.") from None


def gathered(request: Request, stream: IO[bytes], limit: int) -> bytes:
    """A body that arrives bit by bit. Raises what its stream does."""
    client, announced = request.client, request.announced or 0
    parts: list[bytes] = []
    room = limit
    left = limit - announced  # of the room, when what was announced has come
    yielder = Yielder()
    patience = (client and client.gettimeout()) or math.inf
    with read_deadlines.within(client, PATIENCES * patience):
        while chunk := stream.read(min(READ_SIZE, room + 1)):
            yielder.yield_if_due()
            room -= len(chunk)
            if room < 0:
                break
            parts.append(chunk)
            if room == left:
                break
    if room < 0:
        too_large(request, limit)
    return b"".join(parts)


def too_large(request: Request, limit: int) -> NoReturn:
    """Take the rest of the body, bounded, or some clients see a broken pipe and not the answer."""
    room, until = DRAIN_BYTES, time.monotonic() + DRAIN_S
    yielder = Yielder()
    # Whatever is wrong with the rest, it is too large.
    with suppress(Exception), read_deadlines.within(request.client, DRAIN_S):
        while room > 0 and time.monotonic() < until and (chunk := request.stream.read(READ_SIZE)):
            yielder.yield_if_due()
            room -= len(chunk)
    raise RequestTooLarge(f"The body is larger than {limit} bytes.")


class NoSessions(SessionInterface):
    """There are no cookies here, and so nothing to look for, or to make for each request."""

    NONE: Final = NullSession()

    def open_session(self, app: flask.Flask, request: flask.Request) -> NullSession:  # noqa: ARG002
        return self.NONE

    def save_session(
        self, app: flask.Flask, session: SessionMixin, response: flask.Response
    ) -> None:
        """Nothing: it is never asked for, of a null session."""


class App(flask.Flask):
    """Flask, for views that are plain functions."""

    request_class = Request
    session_interface = NoSessions()

    def ensure_sync(self, func: F) -> F:
        return func

    def full_dispatch_request(self) -> flask.Response:
        """Flask's own also sends signals, and looks for what is to be done for a blueprint."""
        try:
            for before in self.before_request_funcs[None]:
                before()
            answer = self.dispatch_request()
        except Exception as error:  # noqa: BLE001 - there is a handler for each
            answer = self.handle_user_exception(error)
        response = self.make_response(answer)
        for after in reversed(self.after_request_funcs[None]):
            response = after(response)
        return response

    def do_teardown_request(self, exc: BaseException | None = None) -> None:
        """There is nothing to be done."""

    def do_teardown_appcontext(self, exc: BaseException | None = None) -> None:
        """There is nothing to be done."""

    def create_url_adapter(self, request: flask.Request | None) -> MapAdapter | None:
        """Flask's own looks at the host in three ways, with thirty calls. Here it only says where a
        doubled slash in a path is redirected to."""
        if request is None:
            return super().create_url_adapter(None)
        sent = request.environ
        return self.url_map.bind(
            sent.get("HTTP_HOST") or sent["SERVER_NAME"],
            sent.get("SCRIPT_NAME"),
            url_scheme=sent["wsgi.url_scheme"],
            default_method=request.method,
            path_info=request.path,
            query_args=sent.get("QUERY_STRING", ""),
        )
