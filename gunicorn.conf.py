"""How gunicorn serves Sluice: gevent workers, and a shutdown that cuts nobody silently.

- The master loads this file before gevent patches the worker, so it imports the standard library
  and config.py, and nothing else: `import requests` here would make every https call recurse. A
  test holds it to that.
"""

import errno
import gc
import logging
import os
import resource
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

OURS = (
    *(
        "app",
        "auth",
        "cli",
        "cluster",
        "completion",
        "concurrency",
        "config",
        "endpoints",
        "errors",
    ),
    *("gateway", "keys", "ledger", "providers", "quota", "routing", "server", "streams"),
    *("telemetry", "wsgi"),
)
"""The top-level names of Sluice. A test compares them with what is there."""

if __name__ == "__config__":
    # The master reads this file again at a reload, and its workers are copies of it: forget what
    # it has loaded of Sluice, so that they load the new code. (.venv lies in this folder too, so
    # going by where a module's file is would forget gunicorn and gevent.)
    for name in [name for name in sys.modules if name.partition(".")[0] in OURS]:
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
WATCH_S, LOOK_S = 0.1, 1.0
IDLE_S = 0.5
CANNOT_LOAD = 4  # the master ends on this exit status instead of starting workers over
FAREWELL_S = 2.0  # for the last events to reach their clients
WORKER = "server.worker.Worker"
METRICS = "PROMETHEUS_MULTIPROC_DIR"  # as prometheus_client has it, in each worker

bind = f"0.0.0.0:{settings.port}" if settings.port else f"127.0.0.1:{DEFAULT_PORT}"
workers = settings.workers
worker_class = WORKER
worker_connections = settings.max_streams + settings.queue + SPARE_CONNECTIONS
graceful_timeout = int(settings.drain) + 5
http_parser = "python"  # the other, where it is installed, takes folded headers
keepalive = 75  # longer than proxies and SDKs keep idle connections, so that they close first
control_socket_disable = True
logconfig_dict = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"sluice": {"()": "telemetry.logs.formatter", "kind": settings.log_format}},
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
    choose_worker(server)
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
    choose_worker(server)


def choose_worker(server: Any) -> None:
    """`-k gevent` means ours, which is one."""
    if server.cfg.worker_class_str == "gevent":
        server.cfg.set("worker_class", WORKER)
        server.worker_class = server.cfg.worker_class


def child_exit(server: Any, worker: Any) -> None:
    """What a dead worker counted stays; what was under way in it has gone. This is what
    prometheus_client's `mark_process_dead` does, which can't be imported here."""
    if server.metrics:
        for path in server.metrics.glob(f"gauge_live*_{worker.pid}.db"):
            path.unlink(missing_ok=True)


def on_exit(server: Any) -> None:
    if server.own_metrics:
        shutil.rmtree(server.own_metrics, ignore_errors=True)


def pre_fork(_server: Any, _worker: Any) -> None:
    gc.freeze()  # what the worker's collector doesn't look through stays the master's and its own


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


def watch(worker: Any) -> None:
    """Nothing tells the app that its worker is to end (TERM, HUP, max_requests) but this."""
    look_at = 0.0
    while worker.alive:
        time.sleep(WATCH_S)
        if (now := time.monotonic()) >= look_at:
            connections(worker, worker.cfg.keepalive or keepalive)
            look_at = now + LOOK_S
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
    while connections(worker, IDLE_S) or len(gateway.streams):
        if time.monotonic() > patience + FAREWELL_S:
            break
        if time.monotonic() > patience:
            gateway.streams.end_all()
        time.sleep(WATCH_S)


def connections(worker: Any, seconds: float) -> int:
    """How many there are, when those have been shut that were idle so long; of our own worker,
    because others keep theirs to themselves."""
    left: int = worker.shut_idle(seconds) if hasattr(worker, "shut_idle") else 0
    return left
