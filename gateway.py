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

import msgspec

import providers
from call import CallInProgress, Outcome
from completion import Batch, CompletionRequest, Delta, Started
from config import Settings
from drain import Disconnect
from errors import (
    InternalError,
    ModelForbidden,
    SluiceError,
    Unavailable,
    UpstreamError,
    UpstreamTimeout,
)
from failures import public_error, retryable
from fidelity import Candidate, candidates
from keys import Key, allows
from ledger import Ledger
from meter import Bill, Meter
from pricing import Prices
from providers.base import Attempt, Target
from providers.fanout import FanOut
from providers.transport import Aborted, HttpAttempt, Transport
from quota import Quota
from relay import End, Tally
from routing import Route, Router
from streams import Stream, Streams

log = logging.getLogger("sluice.gateway")

FOREVER = float("inf")


class Gateway:
    """One per process: the router, the prices, the active streams and the connections."""

    def __init__(
        self,
        settings: Settings,
        quota: Quota,
        ledger: Ledger,
        settled: Callable[[Stream, Outcome], None] = lambda *_: None,
    ) -> None:
        """settled: called once for each call, at its end. Raises ConfigError."""
        self.settings = settings
        self.router = Router(settings)
        self.prices = Prices(settings.prices)
        self._meter = Meter(self.prices, quota, ledger)
        self.streams = Streams(settings.max_streams)
        self.draining = False
        self._disconnect = Disconnect(
            settings.disconnect, settings.disconnect_time, settings.disconnect_cost
        )
        self._transport = Transport(settings.max_streams)
        self._settled = settled

    def open(
        self,
        request: CompletionRequest,
        route: Route,
        *,
        key: Key,
        endpoint: str,
        request_id: str,
        stream_id: str,
        strict: bool = False,
        client: socket.socket | None = None,
    ) -> CallInProgress:
        """Admit a call and start it; on return it is in the ledger. endpoint: the path that it came
        in by. Raises SluiceError when it can't be."""
        chosen = self._choose(request, route, key, strict=strict)
        stream = Stream(
            request,
            chosen[0].target,
            stream_id=stream_id,
            key_id=key.id,
            endpoint=endpoint,
            request_id=request_id,
            timeouts=self.settings.timeouts,
            keepalive=self.settings.keepalive if request.stream else FOREVER,
            hold=self.settings.first_event_wait if request.stream else FOREVER,
            client=client,
            disconnect=self._disconnect,
            cost=self._meter.cost,
        )
        self.streams.add(stream)
        try:
            bill = self._meter.open(key, stream, chosen)
        except BaseException:
            self.streams.remove(stream)
            raise
        self._start_reader(stream, chosen)
        return CallInProgress(stream, partial(self.settle, bill))

    def _choose(
        self, request: CompletionRequest, route: Route, key: Key, *, strict: bool
    ) -> list[Candidate]:
        """The targets to try, in order, with what each can honour. Raises SluiceError."""
        targets = permitted(key, self.router.targets(route))
        fitting = candidates(request, targets, strict=strict or self.settings.strict)
        return self._meter.payable(key, fitting)

    def _start_reader(self, stream: Stream, chosen: list[Candidate]) -> None:
        reader = threading.Thread(target=self._read, args=(stream, chosen), daemon=True)
        try:
            reader.start()
        except RuntimeError:  # the system has no thread left
            busy = Unavailable("Too many calls are under way. Try again in a moment.")
            stream.end("provider_error", busy)

    def settle(self, bill: Bill, stream: Stream, end: End, status: int) -> Outcome:
        """Account for a call that has ended, and forget it."""
        last = (stream.drain and stream.drain.ended_by) or end
        unsent = not stream.attempts or unreached(last.error)
        usage = stream.tally.usage(failed=unsent or last.reason == "provider_error")
        now = time.monotonic()
        outcome = Outcome(
            reason=end.reason,
            error=end.error,
            usage=usage,
            cost=self._meter.cost(stream.target, usage),
            duration=now - stream.opened,
            latency=now - stream.attempt_began,
            first_event=stream.first_event and stream.first_event - stream.opened,
            status=status,
        )
        for settle in (partial(self._meter.settle, bill), self._settled):
            try:
                settle(stream, outcome)
            except Exception:  # the client's answer doesn't depend on our records' format
                log.exception("settling failed", extra={"request_id": stream.request_id})
        self.streams.remove(stream)
        return outcome

    def _read(self, stream: Stream, chosen: list[Candidate]) -> None:
        """The reader: try the candidates in turn, until one has begun to answer."""
        try:
            for number, candidate in enumerate(chosen, 1):
                failure = self._attempt(stream, candidate)
                if failure is None:
                    return
                last = number == len(chosen) or stream.first_event is not None
                if last or stream.drain is not None or not retryable(failure):
                    late = isinstance(failure, UpstreamTimeout)  # the sweeper's or the transport's
                    if isinstance(failure, UpstreamError):
                        failure = public_error(failure, candidate.target)
                    stream.end("deadline" if late else "provider_error", failure)
                    return
        except Exception:
            log.exception("a call failed inside", extra={"request_id": stream.request_id})
            stream.end("provider_error", InternalError())
        finally:
            stream.reader_left()

    def _attempt(self, stream: Stream, candidate: Candidate) -> SluiceError | None:
        """One attempt at one target. None: the call has ended; otherwise what went wrong."""
        attempt: Attempt | None = None
        try:
            attempt = self._start(candidate)
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
            if attempt is not None:
                attempt.close()

    def _start(self, candidate: Candidate) -> Attempt:
        request, target = candidate.request, candidate.target
        if not candidate.split:
            return self._make(request, target)
        n = request.n or 1
        return FanOut(
            [
                partial(self._make, msgspec.structs.replace(request, prompts=(prompt,)), target)
                for prompt in request.prompts
            ],
            [Tally((prompt,), echoes=n if request.echo else 0) for prompt in request.prompts],
            n,
        )

    def _make(self, request: CompletionRequest, target: Target) -> Attempt:
        if target.dialect == "local":
            from providers.local import LocalAttempt  # loaded where it is used

            return LocalAttempt(request, target)
        dialect = providers.dialect(target.dialect)
        signer = providers.signer(target.provider)
        timeouts = self.settings.timeouts
        return HttpAttempt(self._transport, dialect, request, target, timeouts, signer)


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


def unreached(error: SluiceError | None) -> bool:
    """Whether the provider never had the call."""
    return isinstance(error, UpstreamTimeout) and error.phase == "connect"
