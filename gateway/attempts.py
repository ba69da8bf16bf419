"""The upstream side of a call: make attempts until one of them shows the client something.

After a temporary failure, the call is retried at the same target, with a back-off. After that, and
after any other failure that may not recur elsewhere, the call goes to the next target.
routing/retries.py classifies the failures. A call to a row with replicas leaves a replica at once
that can't be reached or broke the connection, and its retries go to another one.

- Once the client has seen part of the answer, the only further attempt is a single continuation,
  and only if the caller or the server's settings enabled it. Reasoning, roles and pings are not
  part of the answer.
- No attempt starts after the call's deadline.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from itertools import groupby

import msgspec

from completion import CompletionRequest, Used
from config import Timeouts
from errors import (
    InternalError,
    SluiceError,
    UpstreamError,
    UpstreamTimeout,
    forget_frames,
)
from gateway.added_fields import redacted
from gateway.capabilities import Candidate, prepared, single_choices
from gateway.continuation import continuations
from gateway.echo import echoed
from gateway.failures import error_for_client, paused_error
from gateway.fill_in import as_sent
from gateway.replicas import Replicas, for_retry, moves_on, spread, without
from gateway.stop_automaton import StopAutomaton
from gateway.stopping_call import StoppingCall
from providers import registry
from providers.base import SingleCall, Target, UpstreamCall
from providers.fanout import FanOut
from providers.transport.abort import Aborted
from providers.transport.exchange import Transport
from providers.transport.http_call import HttpCall
from routing.circuit_breaker import CircuitBreakers
from routing.retries import (
    LONGEST_ASKED_S,
    RetryBudget,
    asked,
    classify,
    delay,
    lost,
    unreachable,
)
from streams.mailbox import (
    Nudge,
)
from streams.stream import Stream
from streams.tally import Tally

log = logging.getLogger("sluice.reader")


class Reader:
    """The part of a process that calls providers. It makes the attempts of all calls."""

    def __init__(self, transport: Transport, retries: int, breakers: CircuitBreakers) -> None:
        """Make a reader. `retries` is the maximum number of retries for each model."""
        self.breakers = breakers
        self.replicas = Replicas(transport, breakers)
        self._transport = transport
        self._retries = retries
        self._budget = RetryBudget()

    def run(self, stream: Stream, chosen: list[Candidate]) -> None:
        """Make the call, and pass its events and its end to the stream. Raises nothing."""
        try:
            failure = self._try_models(stream, chosen)
            if failure is not None and stream.text:
                failure = self._continue(stream, chosen, failure)
            if failure is not None:
                # A timeout may come from the sweeper or from the transport.
                late = isinstance(failure, UpstreamTimeout)
                stream.end(
                    "deadline" if late else "provider_error", error_for_client(stream, failure)
                )
        except Exception:
            log.exception("internal error in a call", extra={"request_id": stream.request_id})
            stream.end("provider_error", InternalError())
        finally:
            stream.reader_left()

    def _try_models(self, stream: Stream, chosen: list[Candidate]) -> SluiceError | None:
        """Try the models in turn. Return None if the call has ended, else the last failure."""
        failure: SluiceError | None = None
        models = [list(group) for _, group in groupby(chosen, lambda c: c.target.name)]
        for number, group in enumerate(models, 1):
            found = self._try_model(stream, group, last=number == len(models))
            if found is None or final(stream, found):
                return found
            if failure is None or isinstance(found, UpstreamError):
                failure = found
        return failure

    def _try_model(
        self, stream: Stream, group: list[Candidate], *, last: bool
    ) -> SluiceError | None:
        """Try one model. Return None if the call has ended, else the last failure.

        After a 429, the provider's other keys are tried at once, and after a broken connection its
        other replicas. Retries wait for a back-off.
        """
        failure: SluiceError | None = None
        group = spread(group)
        among, fresh, retries, losses = group, group, 0, 0
        while True:
            candidate, cooling = self._pick(self.replicas.in_order(stream, among))
            if cooling:  # after a failed attempt, that failure is in the call's failures
                target = candidate.target
                paused = paused_error(target, cooling, limited=self.breakers.is_limited(target))
                return stream.failures.setdefault(target.name, paused)
            if failure is None:
                self._budget.called(candidate.target)
            failure = self._attempt(stream, candidate)
            self._note_health(stream, candidate.target, failure)
            if failure is None or final(stream, failure):
                return failure
            limited = classify(failure).cools == "credential"
            fresh = without(fresh, candidate, whole=not limited)
            losses += lost(failure)
            if (limited or moves_on(candidate.target, failure, losses)) and not all(
                self.breakers.left(other.target) for other in fresh
            ):
                among = fresh
                continue
            others = fresh if last else []  # a fallback model is faster than another timeout
            among, retries = for_retry(group, others, candidate, failure), retries + 1
            if not (among and self._wait_to_retry(stream, among, retries, failure, last=last)):
                return failure

    def _pick(self, group: list[Candidate]) -> tuple[Candidate, float]:
        """Return the first candidate that may be called now, and 0.

        If there is none, return the candidate that may be called soonest, and the seconds until
        then.
        """
        waits = []
        for candidate in group:
            wait = self.breakers.enter(candidate.target)
            if not wait:
                return candidate, 0.0
            waits.append((candidate, wait))
        return min(waits, key=lambda found: found[1])

    def _wait_to_retry(
        self,
        stream: Stream,
        group: list[Candidate],
        number: int,
        failure: SluiceError,
        *,
        last: bool,
    ) -> bool:
        """Wait before retry `number`, which counts from 1.

        Return False if this retry isn't allowed, or if the call has ended during the wait.
        """
        if number > self._retries or (asked(failure) and not last):
            # If the provider asked for a wait, a fallback model is faster.
            return False
        cooling = min(self.breakers.left(candidate.target) for candidate in group)
        limited = classify(failure).cools == "credential"
        if cooling and not limited:  # never wait for an open circuit breaker
            return False
        wait = delay(number, failure)
        if wait is None or max(wait, cooling) > min(LONGEST_ASKED_S, stream.deadlines.time_left):
            return False
        return self._budget.take(group[0].target) and stream.pause(max(wait, cooling))

    def _note_health(self, stream: Stream, target: Target, failure: SluiceError | None) -> None:
        if failure is None:
            return  # its first event was reported as a success, or the call was ended early
        if isinstance(failure, UpstreamTimeout) and stream.deadlines.is_callers_own(
            failure, target
        ):
            return
        cools = classify(failure).cools
        if cools == "credential":
            self.breakers.limited(target, asked(failure))
        elif cools == "target" and target.replica and unreachable(failure):
            self.replicas.lost(target)
        elif cools == "target":
            self.breakers.failed(target)
        else:
            self.breakers.succeeded(target)

    def _continue(
        self, stream: Stream, chosen: list[Candidate], failure: SluiceError
    ) -> SluiceError | None:
        """Continue from the text so far, once.

        Return None if the call has ended. Else return the first failure, even if the continuation
        failed too.
        """
        if stream.drain is not None or stream.ended or classify(failure).cools == "nothing":
            return failure
        in_order = list(self.replicas.all_in_order(stream, chosen))
        for candidate in continuations(stream, in_order):
            if stream.deadlines.time_left <= 0 or self.breakers.enter(candidate.target):
                continue
            stream.continued = True
            stream.mailbox.nudge(Nudge.CONTINUED)
            second = self._attempt(stream, candidate)
            self._note_health(stream, candidate.target, second)
            return None if second is None else failure
        return failure

    def _attempt(self, stream: Stream, candidate: Candidate) -> SluiceError | None:
        """Make one attempt at one target. Return None if the call has ended, else the failure."""
        if not candidate.target.replica:
            return self._attempt_once(stream, candidate)
        self.replicas.loads.started(candidate.target)
        try:
            return self._attempt_once(stream, candidate)
        finally:
            self.replicas.loads.ended(candidate.target)

    def _attempt_once(self, stream: Stream, candidate: Candidate) -> SluiceError | None:
        upstream: UpstreamCall | None = None
        failure: SluiceError | None = None
        attached = False
        try:
            candidate = prepared(candidate)
            upstream = self._start(candidate, stream.deadlines.at(candidate.target))
            prompts = candidate.request.prompts
            if candidate.request.suffix is not None:
                prompts = as_sent(candidate.request)
            choices = 1 if candidate.split else candidate.request.choices
            attached = stream.attach(
                upstream, candidate.target, candidate.dropped, prompts, choices=choices
            )
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
            if isinstance(failure, UpstreamError) and failure.usage is not None:
                stream.attempts[-1].tally.add([Used(failure.usage)])
            stream.detach(failure)
        return failure

    def _relay(
        self, stream: Stream, upstream: UpstreamCall, candidate: Candidate
    ) -> SluiceError | None:
        """Pass an attempt's events to the stream.

        Return None if the call has ended, or the timeout that aborted the attempt. Raises Aborted,
        or SluiceError if the attempt fails.
        """
        batches = upstream.events()
        if candidate.request.passes_on:
            batches = redacted(batches, candidate.target.credential)
        if candidate.echo:
            batches = echoed(batches, stream.request)
        succeeded = False
        for batch in batches:
            if not succeeded:
                succeeded = True
                self.breakers.succeeded(candidate.target)
            if not stream.put(batch):
                return None
        if stream.expired is not None:  # an aborted attempt may end without raising Aborted
            return stream.expired
        stream.end("completed")
        return None

    def _start(self, candidate: Candidate, timeouts: Timeouts) -> UpstreamCall:
        request, target = candidate.request, candidate.target
        make: Callable[[CompletionRequest], UpstreamCall]
        make = partial(self._make, target=target, timeouts=timeouts)
        if candidate.stops is not None:
            make = partial(self._make_stopping, candidate.stops, target=target, timeouts=timeouts)
        if not candidate.split:
            return make(request)
        n, silent = request.n or 1, request.max_tokens == 0
        if candidate.singly:
            return FanOut(
                [partial(make, single) for single in single_choices(request)],
                [
                    Tally((sent,), int(request.echo), silent=silent, echoed=(prompt,))
                    for prompt, sent in zip(request.prompts, as_sent(request), strict=True)
                    for _ in range(n)
                ],
                1,
            )
        echoes = n if request.echo else 0
        return FanOut(
            [
                partial(make, msgspec.structs.replace(request, prompts=(prompt,)))
                for prompt in request.prompts
            ],
            [
                Tally((sent,), echoes, choices=n, silent=silent, echoed=(prompt,))
                for prompt, sent in zip(request.prompts, as_sent(request), strict=True)
            ],
            n,
        )

    def _make_stopping(
        self,
        stops: StopAutomaton,
        request: CompletionRequest,
        target: Target,
        timeouts: Timeouts,
    ) -> UpstreamCall:
        return StoppingCall(self._make(request, target, timeouts), stops, request)

    def _make(self, request: CompletionRequest, target: Target, timeouts: Timeouts) -> SingleCall:
        if target.dialect == "local":
            # Imported on first use, because most servers don't need the embedded model.
            from providers.local.chat import call_of

            return call_of(request, target)
        dialect = registry.dialect(target.dialect)
        signer = registry.signer(target.provider)
        return HttpCall(self._transport, dialect, request, target, timeouts, signer)


def final(stream: Stream, failure: SluiceError) -> bool:
    """Return True if no other model may be tried.

    That is so if the request itself was refused, the client has seen part of the answer, or the
    call has ended.
    """
    shown = stream.request.stream and stream.first_visible is not None
    return shown or stream.ended or not classify(failure).try_next
