"""How gunicorn serves Sluice: gevent workers, and a shutdown that cuts nobody silently.

Rules that hold here: this file is loaded in the master, before gevent patches the worker, so it
imports the standard library, and config.py, which itself needs timeouts.py alone, and nothing else:
`import requests` here would make every https call recurse. A test holds it to that.
"""

import contextlib
import errno
import fcntl
import gc
import logging
import os
import resource
import shutil
import socket
import sys
import tempfile
import termios
import threading
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

if __name__ == "__config__":  # gunicorn's master: its workers are copies of it, also after a reload
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if name != __name__ and file and Path(file).parent == HERE:
            del sys.modules[name]

from config import DEFAULT_PORT, ConfigError, Settings  # noqa: E402 - see above

try:
    settings = Settings.from_env()
except ConfigError as error:
    sys.exit(f"sluice: {error}")

SOCKETS_PER_STREAM = 2
GC_THRESHOLDS = (20_000, 20, 10)  # a stream is a hundred objects; at 700, 3 to 5% goes into it
SPARE_CONNECTIONS = 5000  # idle ones beside the streams; at gunicorn's 1,000 they starve /ready
INTERRUPT_DRAIN_S = 2.0
WATCH_S = 0.1
IDLE_S = 0.5
FRESH_S = 1.0  # a new connection may be idle as much longer: its request may be on its way
DRAIN_BODY_S, DRAIN_BODY_BYTES = 5.0, 16 * 1024 * 1024
WORK_S, REST_S = 0.005, 0.0005
CANNOT_LOAD = 4  # the master ends on this exit status instead of starting workers over
FAREWELL_S = 2.0  # for the last events to reach their clients
METRICS = "PROMETHEUS_MULTIPROC_DIR"  # as prometheus_client has it, in each worker

bind = f"0.0.0.0:{settings.port}" if settings.port else f"127.0.0.1:{DEFAULT_PORT}"
workers = settings.workers
worker_class = "gevent"
worker_connections = settings.max_streams + settings.queue + SPARE_CONNECTIONS
graceful_timeout = int(settings.drain) + 5
http_parser = "python"  # the other, where it is installed, takes folded headers
keepalive = 75  # longer than proxies and SDKs keep idle connections, so that they close first
control_socket_disable = True
logconfig_dict = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"sluice": {"()": "logs.formatter", "kind": settings.log_format}},
    "handlers": {"error": {"class": "logging.StreamHandler", "formatter": "sluice"}},
    "root": {"level": "WARNING", "handlers": ["error"]},
    "loggers": {
        "gunicorn.error": {"level": "INFO", "handlers": ["error"], "propagate": False},
        "gunicorn.access": {"level": "WARNING", "handlers": [], "propagate": False},
    },
}

log = logging.getLogger("gunicorn.error")


def on_starting(server: Any) -> None:
    """Refuse what would not work, raise the limit of open files to what it may be."""
    if server.cfg.workers != 1 and not settings.redis_url:
        sys.exit(
            f"sluice: {server.cfg.workers} workers were asked for; without REDIS_URL streams are "
            "known to one process, so that stop-stream reaches each: use one worker (leave out -w)"
        )
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    needed = SOCKETS_PER_STREAM * settings.max_streams + settings.queue + 100
    if hard != resource.RLIM_INFINITY and hard < needed:
        log.warning(
            "%d open files are allowed, and SLUICE_MAX_STREAMS=%d streams may need %d: "
            "raise the limit (ulimit -Hn, LimitNOFILE) or lower SLUICE_MAX_STREAMS",
            hard, settings.max_streams, needed,
        )  # fmt: skip
    server.metrics = server.own_metrics = None
    share_metrics(server)


def share_metrics(server: Any) -> None:
    """Find or make the directory through which several workers add their metrics up."""
    given = (server.cfg.env_orig | server.cfg.env).get(METRICS)
    if given:
        if not Path(given).is_dir() or not os.access(given, os.W_OK | os.X_OK):
            sys.exit(f"sluice: {METRICS} is {given!r}, and that is no directory to write to")
        server.metrics = Path(given)
    elif server.cfg.workers > 1:
        try:
            server.metrics = server.own_metrics = Path(tempfile.mkdtemp(prefix="sluice-metrics-"))
            os.chown(server.metrics, server.cfg.uid, server.cfg.gid)
        except OSError as error:
            sys.exit(f"sluice: there is no place for the workers' metrics: {error}")
    tell_workers(server)


def tell_workers(server: Any) -> None:
    """Each worker has it in its environment before it loads the app."""
    if server.metrics:
        server.cfg.set("raw_env", [*server.cfg.raw_env, f"{METRICS}={server.metrics}"])


def on_reload(server: Any) -> None:
    """The settings were read anew; the old workers, which drain, and the new ones add up."""
    tell_workers(server)


def child_exit(server: Any, worker: Any) -> None:
    """What a dead worker counted stays; what was under way in it has gone. This is what
    prometheus_client's `mark_process_dead` does, which can't be imported here."""
    if server.metrics:
        for path in server.metrics.glob(f"gauge_live*_{worker.pid}.db"):
            path.unlink(missing_ok=True)


def on_exit(server: Any) -> None:
    if server.own_metrics:
        shutil.rmtree(server.own_metrics, ignore_errors=True)


Handle = Callable[[Any, Any, Any], Any]


class Connections:
    """The client connections of a gevent worker. On shutdown an idle one would keep the worker
    from exiting until its keep-alive time is over, so it is shut down."""

    def __init__(self) -> None:
        # By socket: when its last request ended; None while one is being served.
        self.idle_since: dict[Any, float | None] = {}

    def track(self, handle: Handle) -> Handle:
        def tracked(listener: Any, client: Any, address: Any) -> Any:
            kind: Any = type(client)
            if kind.__module__ == "gevent._socket3":  # a TLS one sends in its own way
                client.__class__ = at_once(kind)
            self.idle_since[client] = time.monotonic() + FRESH_S
            try:
                return handle(listener, client, address)
            finally:
                del self.idle_since[client]

        return tracked

    def mark(self, client: Any, idle_since: float | None) -> None:
        if client in self.idle_since:
            self.idle_since[client] = idle_since

    def shut_idle(self) -> None:
        """Those that have been idle for a moment, and on which no request is arriving."""
        latest = time.monotonic() - IDLE_S
        for client, since in list(self.idle_since.items()):
            if since is not None and since < latest:
                with contextlib.suppress(OSError):
                    if not unread(client):
                        client.shutdown(socket.SHUT_RDWR)


@cache
def at_once(kind: Any) -> Any:
    """A socket that sends what fits into its buffer, as nearly all does, at once. gevent's asks for
    the buffer's size before each: a tenth of what an event of a slow stream costs."""

    class Client(kind):  # type: ignore[misc]
        __slots__ = ()

        def sendall(self, data: bytes, flags: int = 0) -> None:
            sent = self.send(data, flags)
            if sent < len(data):
                super().sendall(memoryview(data)[sent:], flags)

    return Client


def unread(client: Any) -> int:
    """How many bytes wait in a socket."""
    return int.from_bytes(fcntl.ioctl(client.fileno(), termios.FIONREAD, bytes(4)), sys.byteorder)


connections = Connections()


def pre_request(_worker: Any, request: Any) -> None:
    connections.mark(request.unreader.sock, None)


def post_request(worker: Any, request: Any, _environ: Any, _response: Any) -> None:
    client = request.unreader.sock
    if worker_class_is_gevent(worker):
        # What is there already is read without a wait, and while nobody waits nobody else works.
        if not request.should_close() and not drained(worker, request, client):
            request.force_close()
        with contextlib.suppress(OSError):
            if request.unreader.buf.getbuffer().nbytes or unread(client):
                time.sleep(REST_S)
    connections.mark(client, time.monotonic())


def drained(worker: Any, request: Any, client: Any) -> bool:
    """Take what the endpoint left of the body, bounded: gunicorn would take it without an end.
    Whether that was all; else the connection can't serve another request."""
    room, rest_at = DRAIN_BODY_BYTES, 0.0
    if getattr(request.body, "failed", False):
        return False
    if getattr(getattr(request.body, "reader", None), "length", None) == 0:
        return True
    try:
        client.settimeout(DRAIN_BODY_S)
        with worker.wsgi.extensions["overdue"].within(client, DRAIN_BODY_S):
            while room > 0:
                data = request.body.read(1024)
                if not data:
                    return True
                room -= len(data)
                if (now := time.monotonic()) > rest_at:
                    time.sleep(REST_S)
                    rest_at = now + WORK_S
    except Exception:  # noqa: BLE001 - whatever is wrong with it, it is the last request on this connection
        return False
    finally:
        with contextlib.suppress(OSError):
            client.settimeout(None)
    return False


def tells_news(record: logging.LogRecord) -> bool:
    """Not a traceback for a connection that was given up, because its client blocked for too long
    or because we shut it down: gunicorn takes that for an error, and the call has its own line."""
    failure = record.exc_info and record.exc_info[1]
    given_up = isinstance(failure, TimeoutError) or getattr(failure, "errno", 0) == errno.EBADF
    return not (given_up and record.msg == "Socket error processing request.")


def post_worker_init(worker: Any) -> None:
    log.addFilter(tells_news)
    at_hand(worker.cfg)
    worker.log.access = lambda *_: None  # it would put together what nobody reads
    worker.handle_error = wordless(worker.handle_error)
    if worker_class_is_gevent(worker):
        worker.handle = connections.track(worker.handle)
    services = worker.wsgi.extensions["sluice"]
    # Now, because under gevent it would hold up every stream of the process.
    services.gateway.prices.load()
    connect(worker, services)
    gc.collect()
    gc.freeze()  # what is here now stays, and needn't be looked through again and again
    gc.set_threshold(*GC_THRESHOLDS)
    threading.Thread(target=watch, args=(worker,), name="watcher", daemon=True).start()


def at_hand(cfg: Any) -> None:
    """gunicorn asks for some fifty of its settings a request, each of which it looks up in two
    functions; in a worker they don't change."""
    vars(cfg).update({name: setting.get() for name, setting in cfg.settings.items()})


def connect(worker: Any, services: Any) -> None:
    """A first worker without its ledger or its Redis is a mistake in the settings; a later one
    waits for them."""
    for start, needed in services.starts():
        try:
            start()
        except ConfigError as error:
            log.error("%s", error)
            if worker.age <= worker.cfg.workers and needed:
                sys.exit(CANNOT_LOAD)


def worker_exit(_server: Any, worker: Any) -> None:
    if getattr(worker, "wsgi", None) is not None:  # it may have failed to load
        worker.wsgi.extensions["sluice"].close()


def wordless(handle_error: Callable[..., None]) -> Callable[..., None]:
    """gunicorn quotes what it can't parse, keys and all, in its log and its answer; of an error
    of its parser it is to say no more than the name."""

    def handle(request: Any, client: Any, address: Any, error: Exception) -> None:
        kind = type(error)
        if kind.__module__ == "gunicorn.http.errors":
            said = {"__str__": lambda _: kind.__name__}
            error.__class__ = type(kind.__name__, (kind,), said)
        handle_error(request, client, address, error)

    return handle


def worker_class_is_gevent(worker: Any) -> bool:
    return type(worker).__module__ == "gunicorn.workers.ggevent"


def watch(worker: Any) -> None:
    """Nothing tells the app that its worker is to end (TERM, HUP, max_requests) but this."""
    while worker.alive:
        time.sleep(WATCH_S)
    drain(worker, settings.drain)


def worker_int(worker: Any) -> None:
    """Ctrl-C, or the master's QUIT: the same, in a hurry."""
    drain(worker, INTERRUPT_DRAIN_S)


def drain(worker: Any, seconds: float) -> None:
    """Let calls go on for a while, then end them with their error event; shut idle connections.
    Requests that still arrive are served."""
    gateway = worker.wsgi.extensions["sluice"].gateway
    gateway.draining = True
    patience = time.monotonic() + seconds
    while len(gateway.streams) or connections.idle_since:
        connections.shut_idle()
        if time.monotonic() > patience + FAREWELL_S:
            break
        if time.monotonic() > patience:
            gateway.streams.end_all()
        time.sleep(WATCH_S)
