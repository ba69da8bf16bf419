"""The path of a request: admit -> route -> call -> relay -> settle, for streams and whole answers.

`Gateway.open` admits a call and starts its reader; the endpoint that asked is its writer, through
`CallInProgress`. Rules that hold here: nothing of HTTP or of a face (the encoder is passed in); a
call is settled exactly once, whatever ended it.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Protocol

import msgspec

import pricing
import providers
from completion import Batch, Completion, CompletionRequest, Delta, Event, Started, Usage, fold
from config import Settings
from errors import (
    ClientGone,
    InternalError,
    ModelForbidden,
    SluiceError,
    Unavailable,
    UpstreamError,
    UpstreamTimeout,
)
from keys import Key, allows
from providers.base import Attempt, Target
from providers.fanout import FanOut
from providers.transport import Aborted, HttpAttempt, Transport
from relay import End, EndReason, Message, Nudge
from routing import Candidate, Route, Router, candidates, public_error, retryable
from streams import Stream, Streams

log = logging.getLogger("sluice.gateway")

KEEP_ALIVE = b": keep-alive\n\n"
FOREVER = float("inf")


class Outcome(msgspec.Struct, frozen=True):
    """What a call came to. Durations are seconds, the cost nano-dollars (None: unknown)."""

    reason: EndReason
    error: SluiceError | None
    usage: Usage
    cost: int | None
    duration: float
    latency: float
    """The provider's part of the duration."""
    first_event: float | None
    status: int
    """The HTTP status that the client saw."""


class Encoder(Protocol):
    """How a face writes a stream. Each returns whole frames."""

    def begin(self) -> bytes:
        """What a stream begins with; at least a comment, so that the status line goes out."""

    def events(self, batch: Batch) -> bytes:
        """Some events; begins the stream when it has not begun."""

    def end(self, outcome: Outcome) -> bytes:
        """The last frames, whatever ended it."""


class Gateway:
    """One per process: the router, the prices, the active streams and the connections."""

    def __init__(
        self, settings: Settings, settled: Callable[[Stream, Outcome], None] = lambda *_: None
    ) -> None:
        """settled: called once for each call, at its end. Raises ConfigError."""
        self.settings = settings
        self.router = Router(settings)
        self.prices = pricing.Prices(settings.prices)
        self.streams = Streams(settings.max_streams)
        self.draining = False
        self._transport = Transport(settings.max_streams)
        self._settled = settled

    def open(
        self,
        request: CompletionRequest,
        route: Route,
        *,
        key: Key,
        request_id: str,
        stream_id: str,
        strict: bool = False,
        client: socket.socket | None = None,
    ) -> CallInProgress:
        """Admit a call and start it. Raises SluiceError when it can't be."""
        targets = permitted(key, self.router.targets(route))
        chosen = candidates(request, targets, strict=strict or self.settings.strict)
        stream = Stream(
            request,
            chosen[0].target,
            stream_id=stream_id,
            key_id=key.id,
            request_id=request_id,
            timeouts=self.settings.timeouts,
            keepalive=self.settings.keepalive if request.stream else FOREVER,
            hold=self.settings.first_event_wait if request.stream else FOREVER,
            client=client,
        )
        self.streams.add(stream)
        reader = threading.Thread(target=self._read, args=(stream, chosen), daemon=True)
        try:
            reader.start()
        except RuntimeError:  # the system has no thread left
            self.streams.remove(stream)
            raise Unavailable("Too many calls are under way. Try again in a moment.") from None
        return CallInProgress(self, stream)

    def settle(self, stream: Stream, end: End, status: int) -> Outcome:
        """Account for a call that has ended, and forget it."""
        self.streams.remove(stream)
        usage = stream.tally.usage(failed=end.reason == "provider_error" or unreached(end.error))
        now = time.monotonic()
        outcome = Outcome(
            reason=end.reason,
            error=end.error,
            usage=usage,
            cost=self._cost(stream.target, usage),
            duration=now - stream.opened,
            latency=now - stream.attempt_began,
            first_event=stream.first_event and stream.first_event - stream.opened,
            status=status,
        )
        try:
            self._settled(stream, outcome)
        except Exception:  # the client's answer doesn't depend on our records' format
            log.exception("settling failed", extra={"request_id": stream.request_id})
        return outcome

    def _cost(self, target: Target, usage: Usage) -> int | None:
        if target.byok:
            return 0
        try:
            price = self.prices.of(target)
        except Exception:  # a price list that is out of order is no reason to lose the record
            log.exception("pricing failed", extra={"model": target.name})
            return None
        return None if price is None else pricing.cost(usage, price)

    def _read(self, stream: Stream, chosen: list[Candidate]) -> None:
        """The reader: try the candidates in turn, until one has begun to answer."""
        try:
            for number, candidate in enumerate(chosen, 1):
                failure = self._attempt(stream, candidate)
                if failure is None:
                    return
                last = number == len(chosen) or stream.first_event is not None
                if last or not retryable(failure):
                    late = isinstance(failure, UpstreamTimeout)  # the sweeper's or the transport's
                    if isinstance(failure, UpstreamError):
                        failure = public_error(failure, candidate.target)
                    stream.end("deadline" if late else "provider_error", failure)
                    return
        except Exception:
            log.exception("a call failed inside", extra={"request_id": stream.request_id})
            stream.end("provider_error", InternalError())

    def _attempt(self, stream: Stream, candidate: Candidate) -> SluiceError | None:
        """One attempt at one target. None: the call has ended; otherwise what went wrong."""
        attempt = self._start(candidate)
        try:
            if not stream.attach(attempt, candidate.target, candidate.dropped):
                return None
            batches = attempt.events()
            if candidate.echo:
                batches = echoed(batches, candidate.request)
            for batch in batches:
                if not stream.put(batch):
                    return None
            if stream.expired is not None:  # an aborted attempt may just end
                return stream.expired
            stream.end("completed")
        except Aborted:
            return stream.expired
        except SluiceError as failure:
            return stream.expired or failure
        else:
            return None
        finally:
            attempt.close()

    def _start(self, candidate: Candidate) -> Attempt:
        request, target = candidate.request, candidate.target
        if not candidate.split:
            return self._make(request, target)
        return FanOut(
            [
                partial(self._make, msgspec.structs.replace(request, prompts=(prompt,)), target)
                for prompt in request.prompts
            ],
            request.n or 1,
        )

    def _make(self, request: CompletionRequest, target: Target) -> Attempt:
        if target.dialect == "local":
            from providers.local import LocalAttempt  # loaded where it is used

            return LocalAttempt(request, target)
        dialect = providers.dialect(target.dialect)
        return HttpAttempt(self._transport, dialect, request, target, self.settings.timeouts)


class CallInProgress:
    """An admitted call, for its writer: either `result`, or `wait` and then `frames`."""

    def __init__(self, gateway: Gateway, stream: Stream) -> None:
        self.stream = stream
        self._gateway = gateway
        self._waiting: list[Message] = []
        self._begun = False
        self._lock = threading.Lock()
        self._outcome: Outcome | None = None

    def result(self) -> tuple[Completion, Outcome]:
        """The whole answer, of a call that was stopped too. Raises SluiceError."""
        events: list[Event] = []
        try:
            while True:
                for message in self.stream.mailbox.take():
                    if isinstance(message, list):
                        events += message
                    elif isinstance(message, End):
                        outcome = self._settle(message)
                        raise_for(message)
                        return fold(events), outcome
        finally:
            self.close()

    def wait(self) -> None:
        """Hold the status line back: until the first event, a failure (raised), or long enough."""
        while not self._waiting:
            for message in self.stream.mailbox.take():
                if message is Nudge.KEEP_ALIVE:
                    continue
                if isinstance(message, End) and not self._waiting and message.error:
                    self._settle(message)
                    raise_for(message)
                self._waiting.append(message)
        self._begun = True

    def frames(self, encoder: Encoder) -> Iterator[bytes]:
        """The stream in a face's format, a write a yield."""
        messages, self._waiting = self._waiting, []
        begun = False
        try:
            while True:
                out = []
                for message in messages:
                    if isinstance(message, list):
                        begun = True
                        out.append(encoder.events(message))
                    elif isinstance(message, End):
                        outcome = self._settle(message)
                        out.append(encoder.end(outcome))
                        yield b"".join(out)
                        return
                    elif message is Nudge.KEEP_ALIVE:
                        out.append(KEEP_ALIVE)
                    elif not begun:  # a release may come behind the first event
                        begun = True
                        out.append(encoder.begin())
                data = b"".join(out)
                yield data
                if data:  # events that a face doesn't show are silence
                    self.stream.last_write = time.monotonic()
                messages = self.stream.mailbox.take()
        finally:
            self.close()

    def close(self) -> None:
        """The writer is done. If the call has not ended, its client must have gone."""
        if self._outcome is None:
            self.stream.end("client_gone")
            self._settle(End("client_gone"))

    def _settle(self, end: End) -> Outcome:
        with self._lock:
            if self._outcome is None:
                status = 200
                if end.reason == "client_gone":
                    status = ClientGone.status
                elif end.error is not None and not self._begun:
                    status = end.error.status
                self._outcome = self._gateway.settle(self.stream, end, status)
            return self._outcome


def raise_for(end: End) -> None:
    if end.error is not None:
        raise end.error
    if end.reason == "client_gone":
        raise ClientGone


def unreached(error: SluiceError | None) -> bool:
    """Whether the provider never had the call."""
    return isinstance(error, UpstreamTimeout) and error.phase == "connect"


def permitted(key: Key, targets: list[Target]) -> list[Target]:
    """The targets that the key may use. Raises ModelForbidden when there is none."""
    found = [target for target in targets if allows(key, target.name)]
    if not found:
        raise ModelForbidden(f"This key may not use {targets[0].name}.", param="model")
    return found


def echoed(batches: Iterator[Batch], request: CompletionRequest) -> Iterator[Batch]:
    """Put each prompt before its choices' text: echo, for targets that lack it."""
    n = request.n or 1
    prompts: Batch = [
        Delta(prompt_index * n + choice, prompt)
        for prompt_index, prompt in enumerate(request.prompts)
        if isinstance(prompt, str)
        for choice in range(n)
    ]
    for batch in batches:
        if prompts:
            head = [event for event in batch if isinstance(event, Started)]
            batch = head + prompts + [event for event in batch if not isinstance(event, Started)]
            prompts = []
        yield batch
