"""The way to Redis, through which several processes share what one keeps in its memory.

- A process without REDIS_URL loads nothing of redis-py.
- While Redis is away nothing waits for it: after a failure `run` raises RedisAway at once, until
  `probe`, which the cluster's heartbeat calls each second, has reached Redis again.
- An error never quotes a password.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar

from concurrency.threads import BackgroundThread
from config import ConfigError

if TYPE_CHECKING:
    import redis

log = logging.getLogger("sluice.shared")
T = TypeVar("T")
Command: TypeAlias = tuple[Any, ...]

TIMEOUT_S: Final = 1.0
"""How long a command may take before Redis counts as away."""
CONNECT_TIMEOUT_S: Final = 2.0
CONNECTIONS: Final = 6
"""Of one process, beside the one that listens; small plans allow some twenty in all."""
AT_ONCE: Final = 200
"""Scripts that are sent in one piece."""
FEW, GATHER_S = 2, 0.001
"""Where more than a few scripts were sent together the last time, others are waited for: a piece
costs as much as the scripts in it."""
LISTENER_CHECK_S: Final = 5
"""How often it is made sure that a connection on which nothing comes is one."""


class RedisAway(Exception):
    """Redis can't be reached or doesn't do what it is told: what was asked for was not done, or
    nobody knows. Its text is for the log."""


class RedisClient:
    """The Redis of one process. It connects at the first use."""

    def __init__(self, url: str, *, verify: bool = True) -> None:
        """verify: whether the certificate of a rediss:// server must be good. Raises ConfigError
        for a URL that is none."""
        import redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        options: dict[str, Any] = {
            "socket_timeout": TIMEOUT_S,
            "socket_connect_timeout": CONNECT_TIMEOUT_S,
            "socket_keepalive": True,
            # A pooled connection may have been closed meanwhile; scripts bear being run twice.
            "retry": Retry(NoBackoff(), 1, (redis.ConnectionError,)),
            "client_name": "sluice",
        }
        if url.strip().startswith("rediss://") and not verify:
            options |= {"ssl_cert_reqs": "none", "ssl_check_hostname": False}
        try:
            self.pool = redis.ConnectionPool.from_url(url.strip(), **options)
            # Beside the pool: it listens, and its time is not a command's.
            self._listening = redis.ConnectionPool.from_url(
                url.strip(), health_check_interval=LISTENER_CHECK_S, **options
            )
        except ValueError:  # whose words may quote the password
            raise ConfigError(
                "REDIS_URL takes redis://[USER:PASSWORD@]HOST[:PORT][/NUMBER], or rediss:// for TLS"
            ) from None
        self._failures = (redis.RedisError, OSError)
        self._redis = redis.Redis(connection_pool=self.pool)
        self._trouble = ""
        self._lock = threading.Lock()
        self._room = threading.BoundedSemaphore(CONNECTIONS)
        self._together = ScriptBatcher(self._send)

    @property
    def available(self) -> bool:
        return not self._trouble

    def run(self, work: Callable[[redis.Redis], T]) -> T:
        """What the work returns. It must bear being done twice. Raises RedisAway."""
        if not self._trouble:
            with self._room:
                if not self._trouble:  # who waited for its turn doesn't wait for Redis
                    return self._attempt(work, self._redis)
        raise RedisAway(self._trouble)

    def script(self, work: Callable[[Any], T]) -> T:
        """The same, for work that is one script: those of many callers are sent together."""
        if self._trouble:
            raise RedisAway(self._trouble)
        return self._attempt(work, self._together)

    def probe(self, work: Callable[[redis.Redis], T]) -> T:
        """The same, also while Redis is away; when it succeeds, Redis is back. Raises RedisAway."""
        with self._room:
            result = self._attempt(work, self._redis)
        with self._lock:
            was, self._trouble = self._trouble, ""
        if was:
            log.warning("Redis is back")
        return result

    def listener(self) -> Any:
        """What a thread of its own can listen on; it takes a connection when it subscribes."""
        import redis

        client: Any = redis.Redis(connection_pool=self._listening)
        return client.pubsub(ignore_subscribe_messages=True)

    def check(self) -> None:
        """Raises ConfigError when Redis can't be used."""
        try:
            self.probe(lambda client: client.ping())
        except RedisAway as failure:
            raise ConfigError(
                f"Redis (REDIS_URL) can't be used: {failure}{hint(failure)}"
            ) from None

    def close(self) -> None:
        self._trouble = "this process is about to end"  # nobody would do what is asked for now
        self._together.close()
        self.pool.disconnect()
        self._listening.disconnect()

    def _send(self, commands: list[Command]) -> list[Any]:
        """What each command gives, or fails with. Raises RedisAway."""

        def send(client: redis.Redis) -> list[Any]:
            with client.pipeline(transaction=False) as pipe:
                for command in commands:
                    pipe.execute_command(*command)  # type: ignore[no-untyped-call]
                return pipe.execute(raise_on_error=False)

        return self.run(send)

    def _attempt(self, work: Callable[[Any], T], client: Any) -> T:
        try:
            return work(client)
        except self._failures as failure:
            trouble = said(failure)
            with self._lock:
                news, self._trouble = not self._trouble, trouble
            if news:
                log.error("Redis is away: %s", trouble)
            raise RedisAway(trouble) from None


class PendingCommand:
    """A command that somebody waits for."""

    __slots__ = ("command", "done", "result")

    def __init__(self, command: Command) -> None:
        self.command = command
        self.done = threading.Event()
        self.result: Any = None


class ScriptBatcher:
    """What redis-py's scripts take for a client: it sends those of many callers in one piece, which
    costs each of them a fraction of a command of its own."""

    def __init__(self, send: Callable[[list[Command]], list[Any]]) -> None:
        self._send = send
        self._orders: deque[PendingCommand] = deque()
        self._wanted = threading.Event()
        self._thread = BackgroundThread(self._work, "scripts")
        self._closed = False

    def evalsha(self, sha: str, numkeys: int, *keys_and_args: Any) -> Any:
        return self._ask(("EVALSHA", sha, numkeys, *keys_and_args))

    def script_load(self, script: str) -> Any:
        return self._ask(("SCRIPT LOAD", script))

    def close(self) -> None:
        self._closed = True
        self._wanted.set()

    def _ask(self, command: Command) -> Any:
        order = PendingCommand(command)
        self._orders.append(order)
        self._thread.start()
        self._wanted.set()
        order.done.wait()
        if isinstance(order.result, Exception):
            raise order.result
        return order.result

    def _work(self) -> None:
        while not self._closed or self._orders:
            self._wanted.wait()
            self._wanted.clear()
            while self._orders:
                taken = min(AT_ONCE, len(self._orders))
                self._turn([self._orders.popleft() for _ in range(taken)])
                if taken > FEW:
                    time.sleep(GATHER_S)

    def _turn(self, orders: list[PendingCommand]) -> None:
        try:
            results = self._send([order.command for order in orders])
        except Exception as failure:
            if not isinstance(failure, RedisAway):
                log.exception("scripts can't be sent")
            results = [RedisAway(str(failure)) for _ in orders]  # each raises its own
        for order, result in zip(orders, results, strict=True):
            order.result = result
            order.done.set()


def said(failure: Exception) -> str:
    """What Redis or the system said, on one line."""
    return " ".join(str(failure).split())[:300] or type(failure).__name__


def hint(failure: RedisAway) -> str:
    """What helps where a certificate is nobody's."""
    if "CERTIFICATE_VERIFY_FAILED" not in str(failure):
        return ""
    return "; where the host signs its own certificates, as Heroku does, set SLUICE_REDIS_VERIFY=0"
