"""Active streams: the registry, stop, and what time and the network do to a call.

A call (a stream or a unary one) is active from its admission until it is settled. Whatever ends it
from outside goes through `Stream.end`, which posts the End and closes the provider's connection;
or, when the client has gone and the policy is to drain, lets the reader go on for a while.
Rules that hold here: plain threading, which runs under gevent and threads alike; nothing of HTTP,
of a face or of a provider; no lock is held while anything waits.
"""

from __future__ import annotations

import contextlib
import logging
import math
import socket
import sys
import threading
import time
from collections.abc import Callable

from completion import Batch, CompletionRequest, Usage
from config import Timeouts
from drain import CANCEL, Disconnect, Drain
from errors import SluiceError, StreamExists, StreamNotFound, Unavailable, UpstreamTimeout
from providers.base import Attempt, Target
from relay import End, EndReason, Mailbox, Nudge, Tally

log = logging.getLogger("sluice.streams")

REMEMBER_STOPPED_S = 60.0
SWEEP_S = 1.0
TCP_ESTABLISHED = 1


class Stream:
    """One active call. `id` is what stop-stream knows it by, among one key's calls."""

    def __init__(
        self,
        request: CompletionRequest,
        target: Target,
        *,
        stream_id: str,
        key_id: str,
        endpoint: str,
        request_id: str,
        timeouts: Timeouts,
        keepalive: float,
        hold: float,
        client: socket.socket | None = None,
        disconnect: Disconnect = CANCEL,
        cost: Callable[[Target, Usage], int | None] = lambda *_: None,
    ) -> None:
        """cost: what a usage costs there, in nano-dollars; None: unknown."""
        self.id = stream_id
        self.key_id = key_id
        self.endpoint = endpoint
        self.request_id = request_id
        self.request = request
        self.target = target
        self.dropped: tuple[str, ...] = ()
        self.mailbox = Mailbox()
        self.tally = Tally(request.prompts, echoes=(request.n or 1) if request.echo else 0)
        self.attempts = 0
        self.opened_at = time.time()
        self.opened = self.last_event = self.last_write = time.monotonic()
        self.attempt_began = self.opened
        self.first_event: float | None = None
        self.expired: UpstreamTimeout | None = None
        self._timeouts, self._client = timeouts, client
        self._keepalive, self._hold = keepalive, hold
        self._lock = threading.Lock()
        self._attempt: Attempt | None = None
        self._ended = False
        self._disconnect, self._cost = disconnect, cost
        self.drain: Drain | None = None

    def attach(self, attempt: Attempt, target: Target, dropped: tuple[str, ...]) -> bool:
        """The reader begins an attempt at a target. False: the call has ended, don't."""
        with self._lock:
            if self._ended:
                return False
            self._attempt, self.target, self.dropped = attempt, target, dropped
            self.attempts += 1
            self.expired = None
            self.attempt_began = self.last_event = time.monotonic()
            return True

    def put(self, batch: Batch) -> bool:
        """The reader has events. Waits for a slow client. False: the call has ended."""
        self.last_event = time.monotonic()
        if self.first_event is None:
            self.first_event = self.last_event
        accepted = self.mailbox.put(batch, self.tally.add(batch)) or self._drains_on()
        self.last_event = time.monotonic()
        return accepted

    def end(self, reason: EndReason, error: SluiceError | None = None) -> bool:
        """The call is over, or its drain. Returns whether it was this that ended it. The provider's
        connection is closed at once, whatever it is doing, unless a drain begins."""
        end = End(reason, error)
        drain = self._new_drain() if reason == "client_gone" else None
        with self._lock:  # the reader, once it is turned away, must find the drain
            read = self.mailbox.ended_by == "completed"
            first = self.mailbox.end(end)
            self._ended = True
            attempt = self._attempt
            if begins := first and not read and attempt is not None and drain is not None:
                self.drain = drain
            drain = self.drain
        if drain is not None and not begins:
            first = reason != "client_gone" and drain.end(end)
        if attempt is not None:
            if begins:
                attempt.wind_up()
            elif reason != "completed" and (first or drain is None):
                attempt.abort()
        return first

    def _new_drain(self) -> Drain | None:
        policy = self.target.provider.disconnect or self._disconnect.policy
        return Drain(self._disconnect, self._spent) if policy == "drain" else None

    def _spent(self) -> int | None:
        return self._cost(self.target, self.tally.usage(failed=False))

    def _drains_on(self) -> bool:
        """Whether the reader goes on although the call has ended."""
        with self._lock:
            drain = self.drain
        return drain is not None and drain.goes_on()

    def reader_left(self) -> None:
        """The reader is through, however the call ended."""
        if self.drain is not None:
            self.drain.end(End("completed"))

    def drained(self) -> None:
        """Wait for the end of the drain, if there is one."""
        if self.drain is not None and not self.drain.wait():
            self.end("deadline")

    @property
    def stopped(self) -> bool:
        """Whether stop-stream ended it, or its drain."""
        by = self.drain.ended_by if self.drain else None
        return "stopped" in (self.mailbox.ended_by, by and by.reason)

    def look(self, now: float) -> None:
        """What time and the network did to this call; the sweeper asks each second."""
        if self.drain is not None:
            self._look_at_drain(self.drain, now)
        elif self._client is not None and hung_up(self._client):
            self.end("client_gone")
            shut(self._client)  # a writer that is blocked in send wakes
        elif now - self.opened > self._timeouts.total:
            self.end("deadline", UpstreamTimeout("total", self._timeouts.total))
        elif self.expired is not None:  # an abort should have ended the attempt: it hangs in DNS
            self.end("deadline", self.expired)
        elif not self._expire(now):
            if self.first_event is None and now - self.opened >= self._hold:
                self._hold = math.inf  # once
                self.mailbox.nudge(Nudge.RELEASE)
            if now - self.last_write >= self._keepalive:
                self.last_write = now
                self.mailbox.nudge(Nudge.KEEP_ALIVE)

    def _look_at_drain(self, drain: Drain, now: float) -> None:
        if now > min(drain.until, self.opened + self._timeouts.total) or self._overdue(now):
            self.end("deadline")

    def _expire(self, now: float) -> bool:
        """Abort the attempt under way if it is overdue; the reader goes on to a fallback, if there
        is one. Under the lock it can't: what is aborted is the attempt that was overdue."""
        with self._lock:
            overdue, attempt = self._overdue(now), self._attempt
            self.expired = overdue
        if overdue is not None and attempt is not None:
            attempt.abort()
        return overdue is not None

    def _overdue(self, now: float) -> UpstreamTimeout | None:
        if self.first_event is None:
            limit = self._timeouts.first_event
            late = now - self.attempt_began > limit
            return UpstreamTimeout("first_event", limit) if late else None
        limit = self._timeouts.idle
        late = now - self.last_event > limit and not (self.mailbox.full and self.drain is None)
        return UpstreamTimeout("idle", limit) if late else None


class Streams:
    """The active streams of this process, by key and id, and the sweeper over them."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._active: dict[tuple[str, str], Stream] = {}
        self._stopped: dict[tuple[str, str], float] = {}
        self._sweeper: threading.Thread | None = None

    def add(self, stream: Stream) -> None:
        """Raises StreamExists (409) and, when there are too many, Unavailable (503)."""
        place = (stream.key_id, stream.id)
        with self._lock:
            if place in self._active:
                raise StreamExists(stream.id)
            if len(self._active) >= self._limit:
                raise Unavailable("Too many calls are under way. Try again in a moment.")
            if self._sweeper is None:
                sweeper = threading.Thread(target=self._sweep, name="sweeper", daemon=True)
                sweeper.start()
                self._sweeper = sweeper
            self._active[place] = stream
            self._stopped.pop(place, None)

    def remove(self, stream: Stream) -> None:
        place = (stream.key_id, stream.id)
        with self._lock:
            self._active.pop(place, None)
            if stream.stopped:
                self._stopped[place] = time.monotonic()

    def stop(self, key_id: str, stream_id: str) -> None:
        """Stop one of the key's calls, in whatever state it is. Again within a minute: the same.
        Raises StreamNotFound: unknown, ended by itself, or another key's."""
        place = (key_id, stream_id)
        with self._lock:
            stream = self._active.get(place)
            known = self._stopped.get(place, -math.inf) > time.monotonic() - REMEMBER_STOPPED_S
        if not (known if stream is None else stream.end("stopped") or stream.stopped):
            raise StreamNotFound("No active stream has this id. It may have ended by itself.")

    def of(self, key_id: str) -> list[Stream]:
        """The key's active calls, oldest first."""
        with self._lock:
            return [stream for (owner, _), stream in self._active.items() if owner == key_id]

    def __len__(self) -> int:
        return len(self._active)

    def end_all(self) -> None:
        """Shutdown: each call gets its error event and is settled."""
        for stream in self._snapshot():
            stream.end("shutdown", Unavailable("The server is shutting down. Try again."))

    def _snapshot(self) -> list[Stream]:
        with self._lock:
            return list(self._active.values())

    def _sweep(self) -> None:
        while True:
            time.sleep(SWEEP_S)
            for stream in self._snapshot():
                try:
                    stream.look(time.monotonic())
                except Exception:  # one odd call must not leave the others unwatched
                    log.exception("sweep failed", extra={"request_id": stream.request_id})
            with self._lock:
                oldest = time.monotonic() - REMEMBER_STOPPED_S
                self._stopped = {p: at for p, at in self._stopped.items() if at > oldest}


def hung_up(client: socket.socket) -> bool:
    """Whether the client closed its connection, or its half of it. Never waits, takes no byte."""
    try:
        if sys.platform == "linux" and client.family in (socket.AF_INET, socket.AF_INET6):
            # Works on TLS sockets, and behind pipelined bytes.
            state = client.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)
            return state[0] != TCP_ESTABLISHED
        return _at_end(client)
    except OSError:  # closed
        return True


def _at_end(client: socket.socket) -> bool:
    """The same where there is no TCP_INFO: peek, which can't see an end behind other bytes."""
    timeout = client.gettimeout()
    client.settimeout(0)
    try:
        return client.recv(1, socket.MSG_PEEK) == b""
    except (BlockingIOError, InterruptedError, ValueError):  # ValueError: a TLS socket can't
        return False
    finally:
        client.settimeout(timeout)


def shut(client: socket.socket) -> None:
    """Shut a socket down that may be closed already."""
    with contextlib.suppress(OSError):
        client.shutdown(socket.SHUT_RDWR)
