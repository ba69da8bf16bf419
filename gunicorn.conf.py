"""Configuration of gunicorn: gevent workers, and a shutdown that gives every stream a proper end.

- The master loads this file before gevent patches the worker, so it imports only the standard
  library and config.py, which a test checks. `import requests` here would make every https call
  recurse.
"""

import errno
import gc
import importlib
import ipaddress
import logging
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
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
        "config_file",
        "endpoints",
        "errors",
    ),
    *("gateway", "keys", "ledger", "providers", "quota", "routing", "server", "streams"),
    *("telemetry", "wsgi"),
)
"""The top-level modules and packages of Sluice. A test compares this list with the files."""

if __name__ == "__config__":
    # A reload runs this file again in the master, from which the new workers are forked. Unload
    # Sluice's modules, so that the workers load the new code. The modules are found by name: a path
    # in this folder may also be one of gunicorn or gevent, because .venv is here too.
    for name in [name for name in sys.modules if name.partition(".")[0] in OURS]:
        del sys.modules[name]

from config import DEFAULT_PORT, ConfigError, Settings, refuse_workers  # noqa: E402 - see above

try:
    settings = Settings.from_env()
except ConfigError as error:
    sys.exit(f"sluice: {error}")

SOCKETS_PER_STREAM = 2
# Higher than Python's defaults, as a stream is a hundred objects. See
# docs/decisions/0012-the-worker.md.
GC_THRESHOLDS = (20_000, 20, 10)
# Idle connections beside the streams. With gunicorn's default of 1,000 connections, idle ones could
# take all of them, and /ready would get none.
SPARE_CONNECTIONS = 5000
INTERRUPT_DRAIN_S = 2.0
WATCH_S, LOOK_S = 0.1, 1.0
LOAD_S = 20.0  # to load Sluice before a reload; below gunicorn's timeout of a silent worker
IDLE_S = 0.5  # while the worker drains
CANNOT_LOAD = 4  # with this exit status of a worker, the master ends instead of starting another
FAREWELL_S = 2.0  # for the last events to reach their clients
WORKER = "server.worker.Worker"
METRICS = "PROMETHEUS_MULTIPROC_DIR"  # the variable that prometheus_client reads in each worker


def addresses(host: str, port: int | None) -> str:
    """Return the addresses to listen on, as gunicorn expects them: separated by commas.

    Args:
        host: SLUICE_HOST. If it is empty, all interfaces are meant if `port` is set, else loopback.
        port: PORT.
    """
    if host:
        hosts = [host]
    elif port is None:
        hosts = ["127.0.0.1"]
    else:
        hosts = all_interfaces()
    number = port or DEFAULT_PORT
    return ",".join(f"[{one}]:{number}" if ":" in one else f"{one}:{number}" for one in hosts)


def all_interfaces() -> list[str]:
    """Return the hosts that stand for all interfaces, IPv4 and IPv6.

    Usually a socket of `::` accepts IPv4 too. On a machine with `net.ipv6.bindv6only` it doesn't,
    and on a machine without IPv6 it can't be opened.
    """
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::", 0))
            only_6 = probe.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
    except OSError:
        return ["0.0.0.0"]  # noqa: S104 - PORT asks for all interfaces
    return ["0.0.0.0", "::"] if only_6 else ["::"]  # noqa: S104 - as above


bind = addresses(settings.host, settings.port)
workers = settings.workers
worker_class = WORKER
worker_connections = settings.max_streams + settings.queue + SPARE_CONNECTIONS
graceful_timeout = int(settings.drain) + 5
http_parser = "python"  # not gunicorn's C parser, see docs/decisions/0008-retries.md
keepalive = 75  # longer than most proxies and SDKs, so that they close an idle connection first
control_socket_disable = True

REFUSED = {
    "preload_app": "--preload isn't supported, because each worker must load Sluice after "
    "the fork, when gevent has patched it: leave it out (also from GUNICORN_CMD_ARGS)",
    "logconfig": "--log-config isn't supported: use --error-logfile, SLUICE_LOG_FORMAT and "
    "SLUICE_LOG_LEVEL",
    "logconfig_json": "--log-config-json isn't supported: use --error-logfile, SLUICE_LOG_FORMAT "
    "and SLUICE_LOG_LEVEL",
    "syslog": "--log-syslog isn't supported: let journald or the platform collect standard error, "
    "or use --error-logfile",
}
"""Options of gunicorn that stop the start, with the reasons. The lines of --log-config and of
--log-syslog would not have their keys masked."""
CREDENTIALS = ("authorization", "proxy-authorization", "x-provider-api-key", "cookie")
"""Request headers that the access log never shows."""

log = logging.getLogger("gunicorn.error")


def nworkers_changed(server: Any, _new: int, _old: int | None) -> None:
    """Check gunicorn's options and format its log.

    gunicorn calls this hook at each start and reload, when it has opened its logs and before it
    preloads the application. It has no other hook so early.
    """
    for name, reason in REFUSED.items():
        if server.cfg.settings[name].get():
            sys.exit(f"sluice: {reason}")
    # Loaded here, because only this hook may load more than config.py in the master.
    importlib.import_module("telemetry.logs").format_gunicorn(settings.log_format)
    trust_mapped(server.cfg)


def trust_mapped(cfg: Any) -> None:
    """Let the lists of trusted proxies match IPv4 clients of a socket that serves IPv6 too."""
    for name in ("forwarded_allow_ips", "proxy_allow_ips"):
        given = cfg.settings[name].get()
        mapped = [f"::ffff:{ip}" for ip in given if ":" not in ip and ip != "*"]
        for n, ip in enumerate(mapped):
            host, slash, bits = ip.partition("/")
            mapped[n] = f"{host}/{int(bits) + 96}" if slash and bits.isdecimal() else ip
        if added := [ip for ip in mapped if ip not in given]:
            cfg.set(name, ",".join([*given, *added]))


def on_starting(server: Any) -> None:
    """Refuse an unusable number of workers, and raise the limit of open files to its maximum."""
    try:
        refuse_workers(server.cfg.workers, settings)
    except ConfigError as error:
        sys.exit(f"sluice: {error}")
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    needed = SOCKETS_PER_STREAM * settings.max_streams + settings.queue + 100
    if hard != resource.RLIM_INFINITY and hard < needed:
        log.warning(
            "the limit of open files is %d, but SLUICE_MAX_STREAMS=%d may need %d: "
            "raise the limit (ulimit -Hn, LimitNOFILE) or lower SLUICE_MAX_STREAMS",
            hard, settings.max_streams, needed,
        )  # fmt: skip
    choose_worker(server)
    server.handle_hup = partial(reload_if_valid, server, server.handle_hup)
    server.metrics = server.own_metrics = None
    share_metrics(server)


def reload_if_valid(server: Any, reload: Callable[[], None]) -> None:
    """Reload, unless the new configuration or code can't be loaded: gunicorn would then exit.

    A process of its own loads them. It writes no metrics to the directory of the workers.
    """
    environment = server.cfg.env_orig | server.cfg.env
    environment.pop(METRICS, None)
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(HERE)!r}); import wsgi"]
    try:
        loaded = subprocess.run(  # noqa: S603 - Python itself, with a fixed program
            command, env=environment, capture_output=True, text=True, timeout=LOAD_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        log.exception("can't check the configuration; the reload is refused")
        return
    if loaded.returncode:
        [*_, reason] = loaded.stderr.strip().splitlines() or [f"exit status {loaded.returncode}"]
        log.error("the reload is refused, and the workers keep running: %s", reason)
        return
    reload()


def share_metrics(server: Any) -> None:
    """Find or create the directory in which several workers share their metrics."""
    given = (server.cfg.env_orig | server.cfg.env).get(METRICS)
    if given:
        if not Path(given).is_dir() or not os.access(given, os.W_OK | os.X_OK):
            sys.exit(f"sluice: {METRICS} is {given!r}, which is not a writable directory")
        server.metrics = Path(given)
    elif server.cfg.workers > 1:
        try:
            server.metrics = server.own_metrics = Path(tempfile.mkdtemp(prefix="sluice-metrics-"))
            os.chown(server.metrics, server.cfg.uid, server.cfg.gid)
        except OSError as error:
            sys.exit(f"sluice: can't create a directory for the workers' metrics: {error}")
    pass_metrics_directory(server)


def pass_metrics_directory(server: Any) -> None:
    """Pass the metrics directory to new workers through their environment."""
    if server.metrics:
        server.cfg.set("raw_env", [*server.cfg.raw_env, f"{METRICS}={server.metrics}"])


def on_reload(server: Any) -> None:
    """Apply Sluice's changes to gunicorn's settings again, as a reload has reset them.

    The metrics directory stays the same, so that the old workers, which drain, still count.
    """
    pass_metrics_directory(server)
    choose_worker(server)


def choose_worker(server: Any) -> None:
    """Replace gunicorn's gevent worker with Sluice's, which is a subclass of it."""
    if server.cfg.worker_class_str == "gevent":
        server.cfg.set("worker_class", WORKER)
        server.worker_class = server.cfg.worker_class


def child_exit(server: Any, worker: Any) -> None:
    """Remove a dead worker's gauges of active calls, and keep its counters.

    prometheus_client's `mark_process_dead` does this too, but it can't be imported in the master.
    """
    if server.metrics:
        for path in server.metrics.glob(f"gauge_live*_{worker.pid}.db"):
            path.unlink(missing_ok=True)


def on_exit(server: Any) -> None:
    if server.own_metrics:
        shutil.rmtree(server.own_metrics, ignore_errors=True)


def pre_fork(_server: Any, _worker: Any) -> None:
    # Keep the worker's garbage collector from writing to the master's objects, which would copy the
    # memory that both share.
    gc.freeze()


def post_fork(_server: Any, _worker: Any) -> None:
    # Until the worker sets handlers of its own, it has those of the master, which do nothing in it.
    # The master would wait for such a worker until graceful_timeout.
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)


def is_worth_logging(record: logging.LogRecord) -> bool:
    """Return False for gunicorn's traceback of a connection that Sluice gave up.

    The client had stopped reading, or the worker shut the connection down. Neither is an error, and
    the call has a log line anyway.
    """
    failure = record.exc_info and record.exc_info[1]
    given_up = isinstance(failure, TimeoutError) or getattr(failure, "errno", 0) == errno.EBADF
    return not (given_up and record.msg == "Socket error processing request.")


def post_worker_init(worker: Any) -> None:
    log.addFilter(is_worth_logging)
    at_hand(worker.cfg)
    if worker.cfg.accesslog:
        worker.log.atoms = without_credentials(worker.log.atoms)
    else:
        worker.log.access = lambda *_: None
    worker.handle_error = without_quotes(worker.handle_error)
    worker.wsgi.extensions["trusts"] = proxy_rules(worker.cfg)
    services = worker.wsgi.extensions["sluice"]
    # Load the prices before the first call: under gevent, loading blocks all streams of a process.
    router = services.gateway.router
    services.gateway.prices.load(filter(router.enabled, router.providers.values()))
    connect(worker, services)
    gc.collect()
    gc.freeze()  # the objects loaded so far stay, so the garbage collector needn't visit them
    gc.set_threshold(*GC_THRESHOLDS)
    threading.Thread(target=watch, args=(worker,), name="watcher", daemon=True).start()


def proxy_rules(cfg: Any) -> Callable[[dict[str, Any]], bool]:
    """Return a predicate that is True for requests from a proxy in forwarded_allow_ips."""
    all_trusted, networks = "*" in cfg.forwarded_allow_ips, cfg.forwarded_allow_networks()

    def trusts(environ: dict[str, Any]) -> bool:
        if all_trusted:
            return True
        try:
            address = ipaddress.ip_address(environ.get("REMOTE_ADDR", ""))
        except ValueError:  # a Unix socket, whose peers gunicorn trusts
            return True
        return any(address in network for network in networks)

    return trusts


def without_credentials(atoms: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """Return a function that finds the values of an access log's line, except credentials."""
    hidden = [f"{{{name}}}i" for name in CREDENTIALS]
    hidden += [f"{{http_{name.replace('-', '_')}}}e" for name in CREDENTIALS]

    def find(*arguments: Any) -> dict[str, Any]:
        return atoms(*arguments) | dict.fromkeys(hidden, "-")

    return find


def at_hand(cfg: Any) -> None:
    """Store gunicorn's settings as plain attributes, as they don't change in a worker.

    gunicorn reads many settings for each request, each through two function calls.
    """
    vars(cfg).update({name: setting.get() for name, setting in cfg.settings.items()})


def connect(worker: Any, services: Any) -> None:
    """Connect to the ledger and to Redis.

    If that fails in one of the first workers, the settings are assumed to be wrong, and the server
    ends. A later worker starts anyway, and connects once they are available.
    """
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


def without_quotes(handle_error: Callable[..., None]) -> Callable[..., None]:
    """Return an error handler that replaces a parser error's text with the name of its class.

    gunicorn quotes what it can't parse in its log and its response, which could reveal a key.
    """

    def handle(request: Any, client: Any, address: Any, error: Exception) -> None:
        kind = type(error)
        if kind.__module__ == "gunicorn.http.errors":
            methods = {"__str__": lambda _: kind.__name__}
            error.__class__ = type(kind.__name__, (kind,), methods)
        handle_error(request, client, address, error)

    return handle


def watch(worker: Any) -> None:
    """Shut idle connections down while the worker runs, and drain the worker when it must end.

    gunicorn has no hook for that moment, whether the reason is TERM, HUP or max_requests.
    """
    look_at = 0.0
    while worker.alive:
        time.sleep(WATCH_S)
        if (now := time.monotonic()) >= look_at:
            connections(worker, worker.cfg.keepalive or keepalive)
            look_at = now + LOOK_S
    drain(worker, settings.drain)


def worker_int(worker: Any) -> None:
    """Drain the worker quickly, because of Ctrl-C or the master's QUIT.

    A worker that still loads Sluice has no calls, and exits at once.
    """
    if getattr(worker, "wsgi", None) is None:
        os._exit(0)
    drain(worker, INTERRUPT_DRAIN_S)


def drain(worker: Any, seconds: float) -> None:
    """Wait for calls to end, then end the remaining ones with an error event.

    Idle connections are shut down, and so are those that follow streams of other processes: their
    clients reconnect to another worker. Requests that still arrive are served.

    Args:
        seconds: the time after which the remaining calls are ended.
    """
    services = worker.wsgi.extensions["sluice"]
    gateway = services.gateway
    gateway.draining = True
    patience = time.monotonic() + seconds
    while True:
        if services.shared_replays is not None:
            services.shared_replays.leave()  # again, because a request may just have begun
        if not (connections(worker, IDLE_S) or len(gateway.streams)):
            break
        if time.monotonic() > patience + FAREWELL_S:
            break
        if time.monotonic() > patience:
            gateway.streams.end_all()
        time.sleep(WATCH_S)


def connections(worker: Any, seconds: float) -> int:
    """Shut down the connections that have been idle for `seconds`, and return the number left.

    Only Sluice's worker supports this: for other workers, nothing is shut down and 0 is returned.
    """
    left: int = worker.shut_idle(seconds) if hasattr(worker, "shut_idle") else 0
    return left
