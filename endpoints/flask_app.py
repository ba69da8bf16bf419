"""Flask without the steps that Sluice's views don't need, and the current request with its state.

- State of a request is kept on the request instead of `flask.g`: Flask's proxies search for their
  object at every use.
- docs/decisions/0012-the-worker.md lists each override with its gain and the private names it uses.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import IO, TYPE_CHECKING, Any, Final

import flask
from flask.sessions import NullSession, SessionInterface, SessionMixin
from werkzeug.routing import MapAdapter

from auth import current_request
from endpoints import prefix

if TYPE_CHECKING:
    from gateway.call import Call


class Request(flask.Request):
    """A request, and what Sluice has found out about it."""

    id = ""
    """The id that the client sent, else a new one."""
    began = 0.0
    """The start, in seconds of the monotonic clock."""
    byok_api_key: Any = None
    """The provider's key in the body, valid or not."""
    call: Call | None = None
    """The admitted call. Its log line is written at settlement, not at the response."""
    error_code: str | None = None
    """The error code of the response, if it is an error."""

    @property
    def client(self) -> socket.socket | None:
        """The client's socket, if the server exposes it."""
        environ = self.environ
        return environ.get("gunicorn.socket") or environ.get("werkzeug.socket")

    @property
    def announced(self) -> int | None:
        """The body's size in bytes as the head announces it, or None."""
        length = self.environ.get("CONTENT_LENGTH", "")
        if length.isdecimal() and "HTTP_TRANSFER_ENCODING" not in self.environ:
            return int(length)
        return self.content_length

    @property
    def incoming(self) -> IO[bytes]:
        """The body as a stream: the server's own, if the server ends it where the body ends."""
        environ = self.environ
        body: IO[bytes]
        body = environ["wsgi.input"] if environ.get("wsgi.input_terminated") else self.stream
        return body


def current() -> Request:
    """Return the request that is being answered."""
    request: Request = current_request()  # type: ignore[assignment]  # App.request_class
    return request


class NoSessions(SessionInterface):
    """No sessions: Sluice sets and reads no cookies."""

    NONE: Final = NullSession()

    def open_session(self, app: flask.Flask, request: flask.Request) -> NullSession:  # noqa: ARG002
        return self.NONE

    def save_session(
        self, app: flask.Flask, session: SessionMixin, response: flask.Response
    ) -> None:
        """Do nothing. Flask never calls this for a null session."""


class App(flask.Flask):
    """Flask for views that are plain functions, without signals and without blueprints' hooks."""

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

    def full_dispatch_request(self) -> flask.Response:
        """Return the response to the current request.

        Flask's own method also sends signals, and searches for the hooks of blueprints.
        """
        try:
            for before in self.before_request_funcs[None]:
                before()
            result = self.dispatch_request()
        except Exception as error:  # noqa: BLE001 - there is a handler for each
            result = self.handle_user_exception(error)
        response = self.make_response(result)
        for after in reversed(self.after_request_funcs[None]):
            response = after(response)
        return response

    def ensure_sync(self, func: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function. Flask would check for each request that it isn't a coroutine."""
        return func

    def do_teardown_request(self, exc: BaseException | None = None) -> None:
        """Do nothing: Sluice registers no teardown callbacks."""

    def do_teardown_appcontext(self, exc: BaseException | None = None) -> None:
        """Do nothing: Sluice registers no teardown callbacks."""

    def create_url_adapter(self, request: flask.Request | None) -> MapAdapter | None:
        """Return the adapter that matches URLs.

        Flask's own method also matches hosts and subdomains. Sluice's routes have neither: the
        host is used only to redirect a path with a doubled slash.
        """
        if request is None:
            return super().create_url_adapter(None)
        environ = request.environ
        return self.url_map.bind(
            environ.get("HTTP_HOST") or environ["SERVER_NAME"],
            environ.get("SCRIPT_NAME"),
            url_scheme=environ["wsgi.url_scheme"],
            default_method=request.method,
            path_info=request.path,
            query_args=environ.get("QUERY_STRING", ""),
        )
