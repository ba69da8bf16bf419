"""The provider's side of a call: attempt after attempt, until one has begun to answer.

A target is tried again, after a while, when it failed in a way that may pass; then the next one is
tried. routing/retries.py decides which.

- Nothing is tried again once the client has seen a part of the answer, but for a continuation that
  the caller asked for, once.
- Nothing is tried past the call's deadline.
"""

from __future__ import annotations

import logging
from functools import partial
from itertools import groupby

import msgspec

from completion import CompletionRequest
from config import Timeouts
from errors import (
    InternalError,
    SluiceError,
    Unavailable,
    UpstreamError,
    UpstreamTimeout,
    forget_frames,
    whole_seconds,
)
from gateway.capabilities import Candidate, echoed
from gateway.continuation import continuations
from providers import registry
from providers.base import Target, UpstreamCall
from providers.fanout import FanOut
from providers.transport.abort import Aborted
from providers.transport.http_call import HttpCall, Transport
from routing.circuit_breaker import CircuitBreakers
from routing.retries import LONGEST_ASKED_S, RetryBudget, asked, classify, delay
from routing.upstream_errors import public_error, rate_limited
from streams.mailbox import (
    Nudge,
)
from streams.stream import Stream
from streams.tally import Tally

log = logging.getLogger("sluice.reader")


class Reader:
    """One per process: what it knows of the providers' health, and the connections."""

    def __init__(self, transport: Transport, retries: int, breakers: CircuitBreakers) -> None:
        """retries: how often one target is tried again."""
        self.breakers = breakers
        self._transport = transport
        self._retries = retries
        self._budget = RetryBudget()

    def run(self, stream: Stream, chosen: list[Candidate]) -> None:
        """Make the call, of which the stream gets all: its events, and its end."""
        try:
            failure = self._all(stream, chosen)
            if failure is not None and stream.text:
                failure = self._continue(stream, chosen, failure)
            if failure is not None:
                late = isinstance(failure, UpstreamTimeout)  # the sweeper's or the transport's
                stream.end(
                    "deadline" if late else "provider_error", error_for_client(stream, failure)
                )
        except Exception:
            log.exception("a call failed inside", extra={"request_id": stream.request_id})
            stream.end("provider_error", InternalError())
        finally:
            stream.reader_left()

    def _all(self, stream: Stream, chosen: list[Candidate]) -> SluiceError | None:
        """Try the models in turn. None: the call has ended; otherwise what went wrong last."""
        failure: SluiceError | None = None
        models = [list(group) for _, group in groupby(chosen, lambda c: c.target.name)]
        for number, group in enumerate(models, 1):
            found = self._model(stream, group, last=number == len(models))
            if found is None or final(stream, found):
                return found
            if failure is None or isinstance(found, UpstreamError):
                failure = found
        return failure

    def _model(self, stream: Stream, group: list[Candidate], *, last: bool) -> SluiceError | None:
        """Try one model a few times: after a 429 with another key at once, else after a while."""
        failure: SluiceError | None = None
        among, fresh, retries = group, group, 0
        while True:
            candidate, cooling = self._pick(among)
            if cooling:
                return failure or self._circuit_open(candidate.target, cooling)
            if failure is None:
                self._budget.called(candidate.target)
            failure = self._attempt(stream, candidate)
            self._note_health(stream, candidate.target, failure)
            if failure is None or final(stream, failure):
                return failure
            fresh = [other for other in fresh if other is not candidate]
            if classify(failure).cools == "credential" and not all(
                self.breakers.left(other.target) for other in fresh
            ):
                among = fresh
                continue
            among, retries = group, retries + 1
            if not self._may_retry(stream, group, retries, failure, last=last):
                return failure

    def _pick(self, group: list[Candidate]) -> tuple[Candidate, float]:
        """Return the first candidate that may be called, and 0; else the one that may be called
        soonest, and in how many seconds."""
        waits = []
        for candidate in group:
            wait = self.breakers.enter(candidate.target)
            if not wait:
                return candidate, 0.0
            waits.append((candidate, wait))
        return min(waits, key=lambda found: found[1])

    def _circuit_open(self, target: Target, seconds: float) -> SluiceError:
        if self.breakers.is_limited(target):
            return rate_limited(seconds, target, {"provider": target.provider.name})
        return Unavailable(
            f"{target.name} is in trouble, and is left alone for {whole_seconds(seconds)} s.",
            retry_after=seconds,
        )

    def _may_retry(
        self,
        stream: Stream,
        group: list[Candidate],
        number: int,
        failure: SluiceError,
        *,
        last: bool,
    ) -> bool:
        """Wait for retry `number`, if there may be one. False: not, or the call has ended."""
        verdict = classify(failure)
        if number > self._retries or not verdict.retry_same or (asked(failure) and not last):
            return False  # another model needs no patience
        cooling = min(self.breakers.left(candidate.target) for candidate in group)
        if cooling and verdict.cools != "credential":  # an open circuit isn't waited for
            return False
        wait = delay(number, failure)
        if wait is None or max(wait, cooling) > min(LONGEST_ASKED_S, stream.deadlines.time_left):
            return False
        return self._budget.take(group[0].target) and stream.pause(max(wait, cooling))

    def _note_health(self, stream: Stream, target: Target, failure: SluiceError | None) -> None:
        """Tell the breakers what an attempt says about its target's health."""
        if failure is None:
            return  # it was well with its first event, or the call was ended
        if isinstance(failure, UpstreamTimeout) and stream.deadlines.is_callers_own(
            failure, target
        ):
            return
        cools = classify(failure).cools
        if cools == "credential":
            self.breakers.limited(target, asked(failure))
        elif cools == "target":
            self.breakers.failed(target)
        else:
            self.breakers.succeeded(target)

    def _continue(
        self, stream: Stream, chosen: list[Candidate], failure: SluiceError
    ) -> SluiceError | None:
        """Go on from the text so far, once. None: the call has ended; otherwise what is to be told
        of the failure, the first one if the second is no better."""
        if stream.drain is not None or stream.ended or classify(failure).cools == "nothing":
            return failure
        for candidate in continuations(stream, chosen):
            if stream.deadlines.time_left <= 0 or self.breakers.enter(candidate.target):
                continue
            stream.continued = True
            stream.mailbox.nudge(Nudge.CONTINUED)
            second = self._attempt(stream, candidate)
            self._note_health(stream, candidate.target, second)
            return None if second is None else failure
        return failure

    def _attempt(self, stream: Stream, candidate: Candidate) -> SluiceError | None:
        """One attempt at one target. None: the call has ended; otherwise what went wrong."""
        upstream: UpstreamCall | None = None
        failure: SluiceError | None = None
        attached = False
        try:
            upstream = self._start(candidate, stream.deadlines.at(candidate.target))
            prompts = candidate.request.prompts
            attached = stream.attach(upstream, candidate.target, candidate.dropped, prompts)
            if not attached:
                return None
            failure = self._relay(stream, upstream, candidate)
        except Aborted:
            failure = stream.expired
        except SluiceError as error:
            failure = stream.expired or error
        finally:
            if upstream is not None:
                upstream.close()
        if failure is not None:
            forget_frames(failure)
        if attached:
            stream.detach(failure)
        return failure

    def _relay(
        self, stream: Stream, upstream: UpstreamCall, candidate: Candidate
    ) -> SluiceError | None:
        """Pass on what an attempt brings. Raises what it raises."""
        batches = upstream.events()
        if candidate.echo:
            batches = echoed(batches, candidate.request)
        heard = False
        for batch in batches:
            if not heard:
                heard = True
                self.breakers.succeeded(candidate.target)
            if not stream.put(batch):
                return None
        if stream.expired is not None:  # an aborted attempt may just end
            return stream.expired
        stream.end("completed")
        return None

    def _start(self, candidate: Candidate, timeouts: Timeouts) -> UpstreamCall:
        request, target = candidate.request, candidate.target
        make = partial(self._make, target=target, timeouts=timeouts)
        if not candidate.split:
            return make(request)
        n = request.n or 1
        return FanOut(
            [
                partial(make, msgspec.structs.replace(request, prompts=(prompt,)))
                for prompt in request.prompts
            ],
            [Tally((prompt,), echoes=n if request.echo else 0) for prompt in request.prompts],
            n,
        )

    def _make(self, request: CompletionRequest, target: Target, timeouts: Timeouts) -> UpstreamCall:
        if target.dialect == "local":
            from providers.local.call import LocalCall  # loaded where it is used

            return LocalCall(request, target)
        dialect = registry.dialect(target.dialect)
        signer = registry.signer(target.provider)
        return HttpCall(self._transport, dialect, request, target, timeouts, signer)


def final(stream: Stream, failure: SluiceError) -> bool:
    """Whether nothing else is to be tried: the client has seen a part, or gone, or the request
    itself was refused."""
    return not classify(failure).try_next or stream.first_event is not None or stream.ended


def error_for_client(stream: Stream, failure: SluiceError) -> SluiceError:
    """Return the error for the client, by the target that failed: its message may hold the key."""
    if not isinstance(failure, UpstreamError):
        return failure
    found = (attempt.target for attempt in stream.attempts if attempt.failure is failure)
    return public_error(failure, next(found, stream.target))
