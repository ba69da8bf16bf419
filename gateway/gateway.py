"""The path of a request, streamed or not: admit -> route -> call -> relay -> settle.

`Gateway.open` admits a call and starts its reader. The endpoint is the call's writer and uses the
returned `Call`.

- The module knows nothing of HTTP or faces; the encoder is passed in.
- A call is settled exactly once, whatever ends it.
"""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING

from completion import CompletionRequest, Usage, total
from concurrency.threads import ThreadPool
from config import Settings
from errors import SluiceError, UpstreamError, UpstreamTimeout
from gateway.attempts import Reader
from gateway.billing import Billing, Reservation
from gateway.call import AttemptRecord, Call, Outcome
from gateway.capabilities import Candidate, candidates
from gateway.chats import fit_chat
from gateway.continuation import continuable
from gateway.failures import line, name_targets
from gateway.model_catalog import model_catalog
from gateway.permission import permitted_targets
from gateway.tokenizers import Tokenizers
from keys.key import Key
from ledger.ledger import Ledger
from ledger.price_terms import requested_terms
from ledger.pricing import Prices
from providers.base import Provider, Target
from providers.transport.exchange import Transport
from quota.quota import Quota
from routing.circuit_breaker import CircuitBreakers
from routing.pauses import Pause
from routing.replicas import ReplicaKey
from routing.router import Route, Router
from streams.deadlines import NO_LIMITS, Deadlines
from streams.disconnect import DisconnectPolicy
from streams.mailbox import End
from streams.registry import StreamRegistry, too_many
from streams.replay_store import ReplayStore
from streams.stream import Attempt, Stream

if TYPE_CHECKING:
    from cluster.ownership import Cluster

log = logging.getLogger("sluice.gateway")

FOREVER = float("inf")


class Gateway:
    """The engine of a process: its router, prices, active streams and connections."""

    def __init__(
        self,
        settings: Settings,
        quota: Quota,
        ledger: Ledger,
        settled: Callable[[Stream, Outcome], None] = lambda *_: None,
        *,
        breakers: CircuitBreakers | None = None,
        cluster: Cluster | None = None,
    ) -> None:
        """Make a gateway.

        Args:
            settled: a callback that runs once for each call, after the call has ended.
            breakers: by default, breakers that aren't shared with other processes.
            cluster: the processes that share a Redis; None if this process is the only one.

        Raises:
            ConfigError: the settings are invalid.
        """
        self.settings = settings
        self.router = Router(settings)
        self.prices = Prices(settings.prices)
        self._billing = Billing(self.prices, quota, ledger)
        self.replays = ReplayStore(settings.replay_total, settings.replay, settings.orphan)
        self.streams = StreamRegistry(
            settings.max_streams,
            queue=settings.queue,
            per_key=settings.per_key,
            cluster=cluster,
            replays=self.replays,
        )
        self.draining = False
        self._disconnect = DisconnectPolicy(
            settings.disconnect, settings.disconnect_time, settings.disconnect_cost
        )
        breakers = breakers or CircuitBreakers(enabled=settings.cooldown)
        transport = Transport(settings.max_streams, settings.proxy, settings.ca_bundle)
        self.catalog = model_catalog(settings, self.router, self.prices, transport)
        self.reader = Reader(transport, settings.retries, breakers)
        self.tokenizers = Tokenizers(
            self.router, transport, breakers, self.reader.replicas, quota, settings
        )
        self._settled = settled
        self._readers = ThreadPool()

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
        continues: bool = False,
        within: Mapping[str, float] = NO_LIMITS,
        client: socket.socket | None = None,
        affinity: str | None = None,
        record: Callable[[Call], None] | None = None,
    ) -> Call:
        """Admit a call and start it. Its ledger row, if it has one, is on disk on return.

        Args:
            endpoint: the path of the request.
            strict: refuse hints that a target doesn't support, instead of dropping them.
            continues: whether another attempt may continue the stream if it is interrupted.
            within: the caller's own timeouts in seconds, by the names of the fields of Timeouts.
                They can only shorten the server's timeouts.
            client: the client's connection, if the server exposes it.
            affinity: calls with the same text go to the same replica; None for the start of the
                prompt.
            record: makes the call resumable before it starts: replaces its mailbox with a log.

        Raises:
            SluiceError: the call is refused.
        """
        chosen = self._choose(request, route, key, strict=strict)
        target = chosen[0].target
        names = {"stream_id": stream_id, "request_id": request_id, "endpoint": endpoint}
        stream = Stream(
            request,
            target,
            self._deadlines(request, target, within),
            **names,
            key_id=key.id,
            client=client,
            disconnect=self._disconnect,
            cost=partial(self._billing.cost, requested=requested_terms(request)),
        )
        stream.affinity = affinity
        if (continues or self.settings.continue_streams) and continuable(request):
            stream.text = []
        reservation = self._admit(key, stream, chosen)
        call = Call(stream, partial(self.settle, reservation), reservation.hold)
        if record is not None:
            call.prepare(record)
        self._start_reader(stream, chosen)
        return call

    def start(self, work: Callable[[], object]) -> None:
        """Run work in a thread of the pool, or in the current one if no thread can start."""
        try:
            self._readers.start(work)
        except RuntimeError:
            work()

    def _deadlines(
        self, request: CompletionRequest, target: Target, within: Mapping[str, float]
    ) -> Deadlines:
        settings = self.settings
        return Deadlines(
            settings.timeouts,
            target,
            within=within,
            keepalive=settings.keepalive if request.stream else FOREVER,
            hold=settings.first_event_wait if request.stream else FOREVER,
        )

    def _admit(self, key: Key, stream: Stream, chosen: list[Candidate]) -> Reservation:
        self.streams.add(stream, key.max_streams)
        try:
            claim = partial(self.streams.claim, stream, key.max_streams)
            return self._billing.open(key, stream, chosen, claim)
        except BaseException:
            self.streams.remove(stream)
            raise

    def replica_calls(self) -> dict[ReplicaKey, int]:
        """Return this process's calls in flight at each replica of each provider."""
        own = self.reader.replicas.loads.own()
        keys = [
            (row.name, replica.name)
            for row in self.router.providers.values()
            for replica in row.replicas
        ]
        return {key: own.get(key, 0) for key in keys}

    def check_replicas(self) -> None:
        """Check the replicas that other processes have reported as unreachable."""
        rows = self.router.providers.values()
        self.reader.replicas.check(one for row in rows for one in Target(row, "").replicas)

    def open_circuits(self) -> dict[str, float]:
        """Return what is cooling down, with the seconds left: models, provider keys and replicas.

        A replica is shown by its number in the row, not by its name, because the name contains its
        host, and /ready needs no key.
        """
        return {
            self._public_name(*key): seconds
            for key, seconds in self.reader.breakers.open_circuits().items()
        }

    def pauses(self) -> dict[str, list[Pause]]:
        """Return what is paused because of failures or rate limits, by provider."""
        found: dict[str, list[Pause]] = {}
        for pause in self.reader.breakers.pauses():
            name = pause.key[0].partition("@")[0]
            found.setdefault(name, []).append(pause)
        return found

    def _public_name(self, place: str, model: str, number: int) -> str:
        provider, at, replica = place.partition("@")
        row, more = self.router.providers.get(provider), []
        if at:
            names = [one.name for one in row.replicas] if row is not None else []
            known = replica in names
            more.append(f"replica {names.index(replica) + 1}" if known else "unknown replica")
        if number > 1 or (number and not model):
            more.append(f"key {number}")
        name = f"{provider}/{model}" if model else provider
        return f"{name} ({', '.join(more)})" if more else name

    def reachable_replicas(self, row: Provider) -> int:
        """Return the number of a row's replicas that this process considers reachable."""
        targets = Target(row, "").replicas
        return sum(not self.reader.breakers.is_away(target) for target in targets)

    def _choose(
        self, request: CompletionRequest, route: Route, key: Key, *, strict: bool
    ) -> list[Candidate]:
        if "*" in key.models and key.shared is None:
            targets = self.router.targets(route)
        else:
            targets = permitted_targets(self.router, route, key)
        fit_one = None if request.chat is None else fit_chat
        strict = strict or self.settings.strict
        fitting = candidates(request, targets, strict=strict, fit_one=fit_one)
        return self._billing.payable(key, fitting)

    def _start_reader(self, stream: Stream, chosen: list[Candidate]) -> None:
        try:
            self._readers.start(partial(self._read, stream, chosen))
        except RuntimeError:  # the system can't start another thread
            stream.end("provider_error", too_many())

    def settle(self, reservation: Reservation, stream: Stream, end: End, status: int) -> Outcome:
        """Settle a call that has ended, and remove it from the registry."""
        now = time.monotonic()
        ended_by = (stream.drain and stream.drain.ended_by) or end
        usages = usages_of(stream, ended_by)
        requested = requested_terms(stream.request)
        found = [
            self._billing.cost_and_source(attempt.target, usage, requested)
            if usage.total_tokens
            else (0, "prices")
            for attempt, usage in zip(stream.attempts, usages, strict=True)
        ]
        costs = [cost for cost, _ in found]
        failed = name_failures(stream, end) if stream.failures or end.error else ""
        outcome = Outcome(
            reason=end.reason,
            error=end.error,
            usage=total(usages),
            cost=None if None in costs else sum(filter(None, costs)),
            attempts=tuple(map(record_of, stream.attempts, usages, costs)),
            duration=now - stream.opened,
            latency=now - (stream.attempts[-1].began if stream.attempts else stream.opened),
            first_event=stream.first_visible and stream.first_visible - stream.opened,
            status=status,
            failures=failed,
            cost_reported=any(source == "provider" for _, source in found),
        )
        for settle in (partial(self._billing.settle, reservation), self._settled):
            try:
                settle(stream, outcome)
            except Exception:  # a failed settlement must not cost the client its answer
                log.exception("settlement failed", extra={"request_id": stream.request_id})
        release = partial(self.streams.remove, stream)
        try:
            self._billing.settle_quota(reservation, outcome.usage.total_tokens, release)
        except Exception:
            log.exception("settlement failed", extra={"request_id": stream.request_id})
            release()  # no-op if the stream has been removed
        if stream.request.chat is not None:
            stream.request.chat.release()
        return outcome

    def _read(self, stream: Stream, chosen: list[Candidate]) -> None:
        if self.streams.await_turn(stream, self.settings.queue_time):
            self.reader.run(stream, chosen)
        else:
            stream.end("provider_error", too_many())
            stream.reader_left()


def name_failures(stream: Stream, end: End) -> str:
    """Return the targets that failed and why, for the log. Name them in the call's error, too."""
    failures = dict(stream.failures)
    if end.reason == "deadline" and end.error and stream.attempts:  # the reader returned no failure
        failures.setdefault(stream.attempts[-1].target.name, end.error)
    text = line(failures)
    if end.error is not None:
        name_targets(end.error, failures)
    return text


def usages_of(stream: Stream, end: End) -> list[Usage]:
    return [attempt.tally.usage(failed=unbilled(attempt, end)) for attempt in stream.attempts]


def unbilled(attempt: Attempt, end: End) -> bool:
    """Return True if an attempt costs nothing, given that it ended before its first event.

    That is so if it failed or never reached the provider. After a timeout it does cost something,
    because the provider was already working on it.
    """
    if attempt.failure is None:
        return unreached(end.error) or end.reason == "provider_error"
    return unreached(attempt.failure) or not isinstance(attempt.failure, UpstreamTimeout)


def unreached(error: SluiceError | None) -> bool:
    return isinstance(error, UpstreamTimeout) and error.phase == "connect"


def record_of(attempt: Attempt, usage: Usage, cost: int | None) -> AttemptRecord:
    failure = attempt.failure
    return AttemptRecord(
        provider=attempt.target.provider.name,
        model=attempt.target.model,
        key=attempt.target.key_number,
        code=None if failure is None else failure.code,
        status=failure.upstream_status if isinstance(failure, UpstreamError) else None,
        input_tokens=usage.input_tokens,
        output_tokens=usage.output_tokens,
        cost_nano=cost,
        duration_us=round(((attempt.ended or time.monotonic()) - attempt.began) * 1_000_000),
    )
