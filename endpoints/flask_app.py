"""Flask as it is used here: the request that is being answered, with what is known of it so far,
and an app that does without what nothing here needs.

Flask's `request` and `g` look for the request anew each time that they are used, half a microsecond
a use: what every call needs is asked of the request itself.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import IO, TYPE_CHECKING, Any, Final, TypeVar

import flask
from flask.sessions import NullSession, SessionInterface, SessionMixin
from werkzeug.routing import MapAdapter

from auth import current_request
from endpoints import prefix

if TYPE_CHECKING:
    from gateway.call import Call

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

    def wsgi_app(self, environ: dict[str, Any], start_response: Any) -> Any:
        """Serve a request, which may come from a proxy that serves Sluice under a path prefix."""
        if environ.get("SCRIPT_NAME") or "HTTP_X_FORWARDED_PREFIX" in environ:
            trusts = self.extensions.get("trusts", prefix.is_trusted)
            prefix.apply(environ, trusts, self.has_route)
        return super().wsgi_app(environ, start_response)

    def has_route(self, path: str) -> bool:
        return bool(list(self.url_map.bind("").allowed_methods(path)))

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
