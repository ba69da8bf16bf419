"""The Redis client. Processes share state in Redis that a single process would keep in memory.

- A process without REDIS_URL doesn't import redis-py.
- Nothing waits for an unavailable Redis: after a failure, `run` raises RedisAway at once, until
  `probe` succeeds. The cluster's heartbeat calls `probe` once a second.
- After a failure, all idle connections are closed: after a failover they may lead to a replica that
  stays up and refuses to write.
- Error messages never contain a password.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeVar

from cluster.lua import LuaScript, Words
from concurrency.threads import BackgroundThread
from config import ConfigError

if TYPE_CHECKING:
    import redis

# The logger's name is kept from earlier releases: see docs/decisions/0013-the-house.md.
log = logging.getLogger("sluice.shared")
T = TypeVar("T")

TIMEOUT_S: Final = 1.0
"""The time after which a command fails and Redis counts as unavailable."""
CONNECT_TIMEOUT_S: Final = 2.0
CONNECTIONS: Final = 6
"""The maximum number of connections of a process, besides the listener's. It is low because small
Redis plans allow only about twenty in all."""
AT_ONCE: Final = 200
"""The maximum number of scripts in a batch."""
FEW, GATHER_S = 2, 0.001
"""If the last batch had more than FEW scripts, wait GATHER_S for others to join the next batch:
sending a batch costs about as much as the scripts in it."""
LISTENER_CHECK_S: Final = 5
"""The interval of health checks on the listener's connection while it is idle."""

TRIAL: Final = """
for _, name in ipairs(KEYS) do
  redis.call('SET', name, '1', 'PX', 1000)
  redis.call('DEL', name)
end
redis.call('XADD', KEYS[#KEYS], '1-1', 'e', '1')
redis.call('XREVRANGE', KEYS[#KEYS], '+', '-', 'COUNT', 1)
redis.call('DEL', KEYS[#KEYS])
"""
TRIAL_KEYS: Final = ("sluice:trial", "LIMITS:trial")
TRIAL_CHANNEL: Final = "sluice:channel:trial"
REASONS: Final = {
    "WRONGPASS": "the user name or the password is wrong",
    "NOAUTH": "it requires a password",
    "NOPERM": "the user lacks a permission",
    "READONLY": "it is a replica, which can't be written",
    "MASTERDOWN": "it is a replica that has lost its primary",
    "LOADING": "it is still loading its data",
    "MOVED": "it is in cluster mode, which Sluice doesn't support",
    "CROSSSLOT": "it is in cluster mode, which Sluice doesn't support",
    "CLUSTERDOWN": "it is in cluster mode, which Sluice doesn't support",
}
"""The meanings of some of Redis' error codes, for operators."""


class RedisAway(Exception):
    """The error for an unavailable Redis. The work may or may not have been done.

    The message is for the log, not for callers.
    """


class RedisClient:
    """The Redis client of one process. It connects when it is first used."""

    def __init__(self, url: str, *, verify: bool = True) -> None:
        """Make a client.

        Args:
            url: starts with redis://, or with rediss:// for TLS.
            verify: whether to verify the certificate of a rediss:// server.

        Raises:
            ConfigError: the URL is invalid.
        """
        import redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        options: dict[str, Any] = {
            "socket_timeout": TIMEOUT_S,
            "socket_connect_timeout": CONNECT_TIMEOUT_S,
            "socket_keepalive": True,
            # Redis may have closed an idle connection. A retry is safe: all work is repeatable.
            "retry": Retry(NoBackoff(), 1, (redis.ConnectionError,)),
            "client_name": "sluice",
        }
        if url.strip().startswith("rediss://") and not verify:
            options |= {"ssl_cert_reqs": "none", "ssl_check_hostname": False}
        try:
            self.pool = redis.ConnectionPool.from_url(url.strip(), **options)
            # The listener needs a separate pool, because it waits longer than a command may take.
            self._listening = redis.ConnectionPool.from_url(
                url.strip(), health_check_interval=LISTENER_CHECK_S, **options
            )
        except ValueError:  # its message may contain the password
            raise ConfigError(
                "REDIS_URL must be redis://[USER:PASSWORD@]HOST[:PORT][/NUMBER], or rediss:// "
                "for TLS"
            ) from None
        self._failures = (redis.RedisError, OSError)
        self._denied = redis.ResponseError
        self.trial_keys = [*TRIAL_KEYS]
        """The keys that `check` writes and deletes, to find out whether Sluice may do that."""
        self._unknown = redis.exceptions.NoScriptError
        self._password = str(self.pool.connection_kwargs.get("password") or "")
        self._redis = redis.Redis(connection_pool=self.pool)
        self._trouble = ""
        self._lock = threading.Lock()
        self._room = threading.BoundedSemaphore(CONNECTIONS - 1)  # the scripts have one
        self._connection: Any = None
        """The connection of the scripts; None until the first one is sent."""
        self._suspect = False
        """True if that connection may lead to a Redis that has failed."""
        self._together = ScriptBatcher(self._send)

    @property
    def available(self) -> bool:
        return not self._trouble

    def run(self, work: Callable[[redis.Redis], T]) -> T:
        """Run the work and return its result. The work may run twice. Raises RedisAway."""
        if not self._trouble:
            with self._room:
                if not self._trouble:  # Redis may have failed while this thread waited
                    return self._attempt(work, self._redis)
        raise RedisAway(self._trouble)

    def script(self, script: LuaScript, keys: Sequence[str], arguments: Words) -> Any:
        """Run a single script, in a batch with other threads' scripts. Raises RedisAway."""
        if self._trouble:
            raise RedisAway(self._trouble)
        command = script.packed(keys, arguments)

        def run(batcher: ScriptBatcher) -> Any:
            try:
                return batcher.run(command)
            except self._unknown:
                batcher.run(script.packed_load())
                return batcher.run(command)

        return self._attempt(run, self._together)

    def probe(self, work: Callable[[redis.Redis], T]) -> T:
        """Run the work even if Redis counts as unavailable. A success makes it available again.

        Raises RedisAway.
        """
        with self._room:
            result = self._attempt(work, self._redis)
        with self._lock:
            was, self._trouble = self._trouble, ""
        if was:
            log.warning("Redis is available again")
        return result

    def memory_limit(self) -> int:
        """Return Redis' limit of memory in bytes; 0 if there is none, or it isn't known.

        Raises RedisAway.
        """

        def ask(client: redis.Redis) -> int:
            try:
                found: Any = client.info("memory")
            except self._denied:  # INFO may be forbidden or missing
                return 0
            return int(found.get("maxmemory") or 0)

        return self.run(ask)

    def listener(self) -> Any:
        """Return a PubSub for the listener's thread. It connects when it subscribes."""
        import redis

        client: Any = redis.Redis(connection_pool=self._listening)
        return client.pubsub(ignore_subscribe_messages=True)

    def check(self) -> None:
        """Raise ConfigError if Redis can't be used, or lacks something that Sluice needs."""
        try:
            self.probe(self._try_out)
        except RedisAway as failure:
            raise ConfigError(
                f"Redis (REDIS_URL) can't be used: {failure}{hint(failure)}"
            ) from None

    def _try_out(self, client: redis.Redis) -> None:
        """Use everything that Sluice needs: scripts, its keys, and its channels."""
        client.ping()
        try:
            found: Any = client.info("cluster")
            clustered = found.get("cluster_enabled")
        except self._denied:  # INFO may be forbidden or missing
            clustered = 0
        if clustered:
            raise ConfigError(
                "Redis (REDIS_URL) is in cluster mode, which Sluice doesn't support: use a Redis "
                "without cluster mode"
            )
        client.eval(TRIAL, len(self.trial_keys), *self.trial_keys)
        client.publish(TRIAL_CHANNEL, b"")
        with contextlib.closing(self.listener()) as listener:
            listener.subscribe(TRIAL_CHANNEL)
            listener.get_message(timeout=TIMEOUT_S)
            client.pubsub_numsub(TRIAL_CHANNEL)

    def close(self) -> None:
        self._trouble = "this process is shutting down"  # so that new work is refused
        self._together.close()
        self.pool.disconnect()
        self._listening.disconnect()

    def _send(self, commands: list[bytes]) -> list[Any]:
        """Return each command's result or exception. Only the batcher's thread calls this.

        Raises RedisAway.
        """
        if self._trouble:
            raise RedisAway(self._trouble)
        return self._attempt(self._exchange, commands)

    def _exchange(self, commands: list[bytes]) -> list[Any]:
        """Send commands with the connection of the scripts, and return the replies.

        The connection stays in use between batches, because a pool's bookkeeping costs more than
        the exchange.
        """
        if self._connection is None:
            self._connection = self.pool.get_connection()
        elif self._suspect:
            self._connection.disconnect()
        self._suspect = False
        connection, data = self._connection, (b"".join(commands),)

        def exchange() -> list[Any]:
            connection.send_packed_command(data)
            return [self._read(connection) for _ in commands]

        try:
            found: list[Any] = connection.retry.call_with_retry(
                exchange, lambda _: connection.disconnect()
            )
        except BaseException:
            # Else the next batch would read the replies that are left.
            connection.disconnect()
            raise
        return found

    def _read(self, connection: Any) -> Any:
        try:
            return connection.read_response()
        except self._denied as failure:
            return failure

    def _attempt(self, work: Callable[[Any], T], client: Any) -> T:
        try:
            return work(client)
        except self._failures as failure:
            trouble = self._explained(failure)
            self.pool.disconnect(inuse_connections=False)
            self._suspect = True
            with self._lock:
                news, self._trouble = not self._trouble, trouble
            if news:
                log.error("Redis is unavailable: %s", trouble)
            raise RedisAway(trouble) from None

    def _explained(self, failure: Exception) -> str:
        """Return one line for the log on a failure, without the password."""
        text = one_line(failure)
        code = getattr(failure, "status_code", None)
        if code not in REASONS:  # older Redis servers wrap the error of a script's command
            code = next((one for one in REASONS if f"-{one} " in text), None)
        if code is not None:
            text = f"{REASONS[code]} ({code}: {text})"
        return text.replace(self._password, "***") if self._password else text


class PendingCommand:
    __slots__ = ("command", "done", "result")

    def __init__(self, command: bytes) -> None:
        self.command = command
        self.done = threading.Event()
        self.result: Any = None


class ScriptBatcher:
    """A batcher for the scripts of many threads.

    Scripts in one batch cost a fraction of what they cost one by one (see
    docs/decisions/0009-the-cluster.md).
    """

    def __init__(self, send: Callable[[list[bytes]], list[Any]]) -> None:
        self._send = send
        self._orders: deque[PendingCommand] = deque()
        self._wanted = threading.Event()
        self._thread = BackgroundThread(self._work, "scripts")
        self._closed = False

    def run(self, command: bytes) -> Any:
        """Send a packed command, and return its result or raise its exception."""
        order = PendingCommand(command)
        self._orders.append(order)
        self._thread.start()
        self._wanted.set()
        order.done.wait()
        if isinstance(order.result, Exception):
            raise order.result
        return order.result

    def close(self) -> None:
        self._closed = True
        self._wanted.set()

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
                log.exception("can't send scripts to Redis")
            results = [RedisAway(str(failure)) for _ in orders]  # each thread raises its own copy
        for order, result in zip(orders, results, strict=True):
            order.result = result
            order.done.set()


def one_line(failure: Exception) -> str:
    """Return the message of a Redis or system error, cut to one short line."""
    return " ".join(str(failure).split())[:300] or type(failure).__name__


def hint(failure: RedisAway) -> str:
    if "CERTIFICATE_VERIFY_FAILED" not in str(failure):
        return ""
    return "; if the host signs its own certificates, as Heroku does, set SLUICE_REDIS_VERIFY=0"
