"""gunicorn's gevent worker, with shorter ways for usual requests and bounds on idle connections.

- The gunicorn master loads this module before gevent patches the worker, so it imports only the
  standard library, gunicorn, and modules of Sluice that import nothing else.
- docs/decisions/0012-the-worker.md lists each override with its gain and the private names it uses.
"""

from __future__ import annotations

import contextlib
import io
import os
import time
from datetime import timedelta
from functools import cache, cached_property
from typing import Any
from urllib.parse import unquote_to_bytes

import gunicorn.http
from greenlet import GreenletExit
from gunicorn.http import wsgi
from gunicorn.workers.ggevent import GeventWorker

from concurrency.yielding import PAUSE_S, Yielder
from server.http1 import FastRequestParser, FastResponse
from server.sockets import shut, unread

FRESH_S = 1.0  # a new connection may be idle for this much longer: its request may be on its way
DRAIN_BODY_S, DRAIN_BODY_BYTES = 5.0, 16 * 1024 * 1024
LONG_READ_SIZE = 32 * 1024
"""Bytes per read of a body whose length was announced. A chunked one is read in smaller pieces,
because a read can parse thousands of one-byte chunks without yielding."""
MAPPED = "::ffff:"
"""The prefix of an IPv4 client's address on a socket that serves IPv6 too."""
THREADED = {"wsgi.multithread": True}
NO_TIMEOUT = contextlib.nullcontext()


class Worker(GeventWorker):
    """A gevent worker. It serves the requests of a connection one after another."""

    alive: bool

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # By socket: when its last request ended (as time.monotonic); None while one is served.
        self.idle_since: dict[Any, float | None] = {}
        self._has_prefix = "SCRIPT_NAME" in self.cfg.env_orig | self.cfg.env
        self._quitting = False

    def init_process(self) -> None:
        gunicorn.http.RequestParser = FastRequestParser  # get_parser looks it up there
        super().init_process()

    def handle_quit(self, sig: int, frame: Any) -> None:
        """Quit once: a terminal sends Ctrl-C to the worker, and then the master sends QUIT.

        A second SystemExit would show up as a traceback. A worker that still loads Sluice exits at
        once, because gunicorn's handler would wait for it.
        """
        if getattr(self, "wsgi", None) is None:
            os._exit(0)
        if not self._quitting:
            self._quitting = True
            super().handle_quit(sig, frame)

    def handle(self, listener: Any, client: Any, addr: Any) -> None:
        if addr and str(addr[0]).startswith(MAPPED):
            addr = (addr[0].removeprefix(MAPPED), addr[1])
        kind: Any = type(client)
        if kind.__module__ == "gevent._socket3":  # TLS sockets send in their own way
            client.__class__ = at_once(kind)
        self.idle_since[client] = time.monotonic() + FRESH_S
        try:
            super().handle(listener, client, addr)
        finally:
            del self.idle_since[client]

    def timeout_ctx(self) -> contextlib.AbstractContextManager[None]:
        """Return no timeout: `shut_idle` bounds how long a connection may be idle, without a timer
        for each request."""
        return NO_TIMEOUT

    def handle_request(self, listener_name: Any, req: Any, sock: Any, addr: Any) -> None:
        response = None
        self.idle_since[sock] = None
        began = time.monotonic()
        try:
            response, environ = self.begin(listener_name, req, sock, addr)
            parts = self.wsgi(environ, response.start_response)
            try:
                for part in parts:
                    response.write(part)
                response.close()
            finally:
                if hasattr(parts, "close"):
                    parts.close()
            if self.cfg.accesslog:
                took = timedelta(seconds=time.monotonic() - began)
                self.log.access(response, req, environ, took)
            if response.should_close():
                raise StopIteration
        except (GreenletExit, SystemExit):
            pass
        except (StopIteration, OSError):
            raise
        except Exception:
            if response is None or not response.headers_sent:
                raise
            self.log.exception("Error handling request")  # too late for an error response
            shut(sock)
            raise StopIteration from None
        finally:
            self.finish(req, sock)

    def begin(
        self, listener: Any, req: Any, sock: Any, addr: Any
    ) -> tuple[FastResponse, dict[str, Any]]:
        """Return a request's response and its WSGI environment, and count the request."""
        response, environ = self.create(listener, req, sock, addr)
        self.nr += 1
        if self.nr >= self.max_requests and self.alive:
            self.log.info("Autorestarting worker after current request.")
            self.alive = False
        if not self.alive or not self.cfg.keepalive:
            response.force_close()
        return response, environ

    def create(
        self, listener: Any, req: Any, sock: Any, addr: Any
    ) -> tuple[FastResponse, dict[str, Any]]:
        """Return a request's response and its WSGI environment, as gunicorn's `create` does."""
        fields = {f"HTTP_{name.replace('-', '_')}": value for name, value in req.headers}
        unusual = self._has_prefix or "HTTP_SCRIPT_NAME" in fields or len(fields) < len(req.headers)
        unusual |= not isinstance(addr, tuple) or not isinstance(listener, tuple)
        if unusual or req.proxy_protocol_info or req._expected_100_continue:
            response, environ = wsgi.create(
                req, sock, addr, listener, self.cfg, response_class=FastResponse
            )
            return response, environ | THREADED
        for name in ("CONTENT_TYPE", "CONTENT_LENGTH"):
            if (value := fields.pop(f"HTTP_{name}", None)) is not None:
                fields[name] = value
        major, minor = req.version
        return FastResponse(req, sock, self.cfg), {
            **self.base_environ,
            **fields,
            "wsgi.input": req.body,
            "wsgi.url_scheme": req.scheme,
            "gunicorn.socket": sock,
            "REQUEST_METHOD": req.method,
            "SCRIPT_NAME": "",
            "PATH_INFO": unquote_to_bytes(req.path).decode("latin-1"),
            "QUERY_STRING": req.query,
            "RAW_URI": req.uri,
            "SERVER_PROTOCOL": f"HTTP/{major}.{minor}",
            "SERVER_NAME": listener[0],
            "SERVER_PORT": str(listener[1]),
            "REMOTE_ADDR": addr[0],
            "REMOTE_PORT": str(addr[1]),
        }

    @cached_property
    def base_environ(self) -> dict[str, Any]:
        """The variables that don't differ between requests."""
        found: dict[str, Any] = wsgi.base_environ(self.cfg)
        return found | THREADED

    def finish(self, req: Any, client: Any) -> None:
        """Prepare the connection for its next request, or let it be closed."""
        if not req.should_close() and not self.drained(req, client):
            req.force_close()
        if req.unreader.buf.getbuffer().nbytes:  # a pipelined request: no wait yields before it
            time.sleep(PAUSE_S)
        self.idle_since[client] = time.monotonic()

    def drained(self, request: Any, client: Any) -> bool:
        """Read and drop the rest of the body, within bounds of time and size.

        Return True if that was all of it; else the connection can't serve another request.
        """
        if isinstance(request.body, io.BytesIO):
            return True
        room, yielder = DRAIN_BODY_BYTES, Yielder()
        if request.body.failed:
            return False
        length = getattr(request.body.reader, "length", None)
        if length == 0:
            return True
        size = 1024 if length is None else LONG_READ_SIZE
        try:
            client.settimeout(DRAIN_BODY_S)
            with self.wsgi.extensions["read_deadlines"].within(client, DRAIN_BODY_S):
                while room > 0:
                    data = request.body.read(size)
                    if not data:
                        return True
                    room -= len(data)
                    yielder.yield_if_due()
        except Exception:  # noqa: BLE001 - whatever the error is, the connection is closed
            return False
        finally:
            with contextlib.suppress(OSError):
                client.settimeout(None)
        return False

    def shut_idle(self, seconds: float) -> int:
        """Shut down the connections that have been idle for `seconds` and have no unread bytes.

        Return how many connections the worker has, including those that it shut down just now.
        """
        latest = time.monotonic() - seconds
        for client, since in list(self.idle_since.items()):
            if since is not None and since < latest:
                with contextlib.suppress(OSError):
                    if not unread(client):
                        shut(client)
        return len(self.idle_since)


@cache
def at_once(kind: Any) -> Any:
    """Return a subclass of gevent's socket class that sends first and waits only if it must.

    gevent's own `sendall` takes more than twice as long: it asks the system for the size of the
    socket's buffer, and sends in slices of that size.
    """

    class Client(kind):
        __slots__ = ()

        def sendall(self, data: bytes, flags: int = 0) -> None:
            try:
                sent = self._sock.send(data, flags)
            except BlockingIOError:
                sent = 0
            if sent < len(data):
                super().sendall(memoryview(data)[sent:], flags)

    return Client
