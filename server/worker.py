"""gunicorn's gevent worker as Sluice runs it: requests and answers in fewer steps (http1.py), and
connections that neither starve each other nor outlast a shutdown.

Rules that hold here: this is loaded in the master, before gevent patches the worker, so it imports
the standard library, gunicorn, and of ours what imports no more than that.
"""

from __future__ import annotations

import contextlib
import io
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

FRESH_S = 1.0  # a new connection may be idle as much longer: its request may be on its way
DRAIN_BODY_S, DRAIN_BODY_BYTES = 5.0, 16 * 1024 * 1024
THREADED = {"wsgi.multithread": True}
MAPPED = "::ffff:"
"""The prefix of an IPv4 client's address on a socket that serves IPv6 too."""
NO_TIMEOUT = contextlib.nullcontext()


class Worker(GeventWorker):
    """What serves connections, one after another request on each."""

    alive: bool

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # By socket: when its last request ended; None while one is being served.
        self.idle_since: dict[Any, float | None] = {}
        self._below = "SCRIPT_NAME" in self.cfg.env_orig | self.cfg.env

    def init_process(self) -> None:
        gunicorn.http.RequestParser = FastRequestParser  # where a connection's parser is made
        super().init_process()

    def handle(self, listener: Any, client: Any, addr: Any) -> None:
        if addr and str(addr[0]).startswith(MAPPED):
            addr = (addr[0].removeprefix(MAPPED), addr[1])
        kind: Any = type(client)
        if kind.__module__ == "gevent._socket3":  # a TLS one sends in its own way
            client.__class__ = at_once(kind)
        self.idle_since[client] = time.monotonic() + FRESH_S
        try:
            super().handle(listener, client, addr)
        finally:
            del self.idle_since[client]

    def timeout_ctx(self) -> contextlib.AbstractContextManager[None]:
        """None: a timer for each request costs as much as the request's head."""
        return NO_TIMEOUT

    def handle_request(self, listener_name: Any, req: Any, sock: Any, addr: Any) -> None:
        answer = None
        self.idle_since[sock] = None
        began = time.monotonic()
        try:
            answer, environ = self.begin(listener_name, req, sock, addr)
            parts = self.wsgi(environ, answer.start_response)
            try:
                for part in parts:
                    answer.write(part)
                answer.close()
            finally:
                if hasattr(parts, "close"):
                    parts.close()
            if self.cfg.accesslog:
                took = timedelta(seconds=time.monotonic() - began)
                self.log.access(answer, req, environ, took)
            if answer.should_close():
                raise StopIteration
        except (GreenletExit, SystemExit):
            pass
        except (StopIteration, OSError):
            raise
        except Exception:
            if answer is None or not answer.headers_sent:
                raise
            self.log.exception("Error handling request")  # and a second answer would spoil it
            shut(sock)
            raise StopIteration from None
        finally:
            self.finish(req, sock)

    def begin(
        self, listener: Any, req: Any, sock: Any, addr: Any
    ) -> tuple[FastResponse, dict[str, Any]]:
        answer, environ = self.create(listener, req, sock, addr)
        self.nr += 1
        if self.nr >= self.max_requests and self.alive:
            self.log.info("Autorestarting worker after current request.")
            self.alive = False
        if not self.alive or not self.cfg.keepalive:
            answer.force_close()
        return answer, environ

    def create(
        self, listener: Any, req: Any, sock: Any, addr: Any
    ) -> tuple[FastResponse, dict[str, Any]]:
        """The answer to be, and the WSGI environment."""
        fields = {f"HTTP_{name.replace('-', '_')}": value for name, value in req.headers}
        unusual = self._below or "HTTP_SCRIPT_NAME" in fields or len(fields) < len(req.headers)
        unusual |= not isinstance(addr, tuple) or not isinstance(listener, tuple)
        if unusual or req.proxy_protocol_info or req._expected_100_continue:
            ask = (req, sock, addr, listener, self.cfg)
            answer, environ = wsgi.create(*ask, response_class=FastResponse)
            return answer, environ | THREADED
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
        """What is the same for each request."""
        found: dict[str, Any] = wsgi.base_environ(self.cfg)
        return found | THREADED

    def finish(self, req: Any, client: Any) -> None:
        """Make the connection ready for its next request."""
        if not req.should_close() and not self.drained(req, client):
            req.force_close()
        if req.unreader.buf.getbuffer().nbytes:  # while nobody waits nobody else works
            time.sleep(PAUSE_S)
        self.idle_since[client] = time.monotonic()

    def drained(self, request: Any, client: Any) -> bool:
        """Take what the endpoint left of the body, bounded: gunicorn would take it without an end.
        Whether that was all; else the connection can't serve another request."""
        if isinstance(request.body, io.BytesIO):
            return True
        room, yielder = DRAIN_BODY_BYTES, Yielder()
        if request.body.failed:
            return False
        if getattr(request.body.reader, "length", None) == 0:
            return True
        try:
            client.settimeout(DRAIN_BODY_S)
            with self.wsgi.extensions["read_deadlines"].within(client, DRAIN_BODY_S):
                while room > 0:
                    data = request.body.read(1024)
                    if not data:
                        return True
                    room -= len(data)
                    yielder.yield_if_due()
        except Exception:  # noqa: BLE001 - whatever is wrong with it, it is the last request on this connection
            return False
        finally:
            with contextlib.suppress(OSError):
                client.settimeout(None)
        return False

    def shut_idle(self, seconds: float) -> int:
        """Shut the connections that have been idle so long and on which no request is arriving.
        Returns how many are left."""
        latest = time.monotonic() - seconds
        for client, since in list(self.idle_since.items()):
            if since is not None and since < latest:
                with contextlib.suppress(OSError):
                    if not unread(client):
                        shut(client)
        return len(self.idle_since)


@cache
def at_once(kind: Any) -> Any:
    """A socket that sends what fits into its buffer, as nearly all does, at once: gevent's asks for
    the buffer's size first, a tenth of what an event of a slow stream costs. It waits before it
    receives, where gevent's tries in vain, as requests are further apart than their answers."""

    class Client(kind):
        __slots__ = ()

        def sendall(self, data: bytes, flags: int = 0) -> None:
            try:
                sent = self._sock.send(data, flags)
            except BlockingIOError:
                sent = 0
            if sent < len(data):
                super().sendall(memoryview(data)[sent:], flags)

        def recv(self, size: int, flags: int = 0) -> bytes:
            if not flags and self.timeout != 0:
                self._wait(self._read_event)
            data: bytes = super().recv(size, flags)
            return data

    return Client
