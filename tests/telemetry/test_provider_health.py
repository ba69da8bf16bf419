"""Tests of telemetry/provider_health.py: the counts of a provider, their window and their sums."""

from __future__ import annotations

import random
import threading
from typing import Any

import msgspec
import pytest

from errors import SluiceError, UpstreamError, UpstreamTimeout
from telemetry.provider_health import (
    GROWTH,
    MOST_NEW,
    SLOT_S,
    WINDOW_S,
    EndedAttempt,
    ErrorSeen,
    ProviderCounts,
    ProviderHealth,
    bucket,
    merged,
    percentile,
)

T = 1_000_000.0


def attempt(
    at: float = T, error: SluiceError | None = None, seconds: float | None = 0.5, **fields: Any
) -> EndedAttempt:
    found = EndedAttempt("sim", "m", at, error, False, seconds if error is None else None, 0.1)
    return found._replace(**fields)


def status(number: int) -> UpstreamError:
    return UpstreamError("no", upstream_status=number)


def health(*attempts: EndedAttempt, now: float = T) -> ProviderHealth:
    found = ProviderHealth(lambda: now)
    for one in attempts:
        found.ended(one)
    return found


@pytest.mark.parametrize(
    ("error", "code", "failures"),
    [
        (status(500), "500", 1),
        (status(429), "429", 1),
        (status(400), "400", 0),
        (status(401), "401", 0),
        (status(302), "provider_error", 0),
        (UpstreamError("no"), "provider_error", 1),
        (UpstreamTimeout("idle", 5), "provider_timeout", 1),
    ],
)
def test_an_error_counts_by_its_code_and_as_a_failure_if_it_is_the_providers(
    error: SluiceError, code: str, failures: int
) -> None:
    found = health(attempt(), attempt(error=error)).counts()["sim"]
    assert (found.attempts, found.failures) == (2, failures)
    assert found.errors == {code: ErrorSeen(1, T, "m")}
    excused = health(attempt(error=error, own_fault=True)).counts()["sim"]
    assert (excused.failures, excused.errors[code].calls) == (0, 1)


def test_attempts_leave_the_window_but_the_last_errors_stay() -> None:
    attempts = (attempt(), attempt(error=status(500)), attempt(T + 100))
    assert health(*attempts, now=T + 200).counts()["sim"].attempts == 3
    found = health(*attempts, now=T + WINDOW_S + SLOT_S).counts()["sim"]
    assert (found.attempts, found.failures, sum(found.duration.values())) == (1, 0, 1)
    assert found.errors == {"500": ErrorSeen(0, T, "m")}


def test_memory_is_bounded_while_nobody_asks() -> None:
    found = health(*(attempt(T + second) for second in range(5 * MOST_NEW)))
    assert len(found._new) < MOST_NEW
    assert len(found._records["sim"].slots) <= WINDOW_S / SLOT_S


@pytest.mark.parametrize(
    ("ended", "answered", "unreached"),
    [
        (attempt(), T, None),
        (attempt(error=status(500)), T, None),
        (attempt(error=UpstreamTimeout("connect", 1)), None, T),
        (attempt(error=UpstreamError("no", reason="refused")), None, T),
        (attempt(error=UpstreamTimeout("first_event", 1), first_event=None), None, None),
        (attempt(seconds=None, first_event=None), None, None),
    ],
)
def test_an_answer_of_any_kind_shows_that_the_provider_can_be_reached(
    ended: EndedAttempt, answered: float | None, unreached: float | None
) -> None:
    found = health(ended).counts()["sim"]
    assert (found.answered_at, found.unreached_at) == (answered, unreached)


@pytest.mark.parametrize("share", [0.5, 0.9, 0.99])
def test_a_percentile_is_exact_to_within_a_twentieth(share: float) -> None:
    chance = random.Random(share)
    times = sorted(chance.lognormvariate(0, 1.5) for _ in range(5_000))
    buckets: dict[int, int] = {}
    for seconds in times:
        buckets[bucket(seconds)] = buckets.get(bucket(seconds), 0) + 1
    found = percentile(buckets, share)
    exact = times[int(share * len(times)) - 1]
    assert found == pytest.approx(exact, rel=GROWTH**0.5 - 1 + 0.01)


@pytest.mark.parametrize("seconds", [0.0, 0.001, 1e9])
def test_the_shortest_and_the_longest_times_have_a_percentile(seconds: float) -> None:
    assert percentile({bucket(seconds): 1}, 0.5) is not None
    assert percentile({}, 0.5) is None


def test_counts_of_processes_add_up() -> None:
    one = health(attempt(), attempt(error=status(500))).counts()
    other = health(attempt(T + 1, error=status(500), model="n"), now=T + 1).counts()
    received = msgspec.json.decode(msgspec.json.encode(other))
    sent = msgspec.convert(received, dict[str, ProviderCounts], str_keys=True)
    found = merged([one, sent, {"other": ProviderCounts(attempts=7)}])
    assert found["other"].attempts == 7
    both = found["sim"]
    assert (both.attempts, both.failures, sum(both.first_event.values())) == (3, 2, 3)
    assert both.errors == {"500": ErrorSeen(2, T + 1, "n")}
    assert both.answered_at == T + 1


def test_attempts_of_many_threads_are_all_counted() -> None:
    found = ProviderHealth(lambda: T)

    def add() -> None:
        for _ in range(2 * MOST_NEW):
            found.ended(attempt())

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found.counts()["sim"].attempts == 8 * MOST_NEW
