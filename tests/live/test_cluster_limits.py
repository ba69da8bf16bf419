"""Tests of limits and budgets that several machines share.

A key's limits hold for the whole cluster, however its calls are spread over workers.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import pairwise
from typing import Any

import pytest

from tests.live.test_budget import (
    BUDGET_NANO,
    INPUT_NANO,
    MOST_TOKENS,
    OUTPUT_NANO,
    USAGE,
    answering,
    spend_it_all,
)
from tests.support import calls, mixture
from tests.support import fake as fp
from tests.support.books import Row, assert_sound, rows
from tests.support.calls import BEGUN, begin_stream
from tests.support.clusters import Cluster, backends, listed, stop
from tests.support.fake import FakeProvider
from tests.support.load import NATIVE, OPENAI, Kind, Sent, play
from tests.support.pace import scaled
from tests.support.servers import UNTROUBLED

CALLERS, CALLS = 50, 200
PER_MINUTE = 50
PER_HOUR, ASKED_TOKENS = 1_000, 40
MOST_STREAMS = 6
LISTED_WITHIN_S = scaled(10)

KEYS: Mapping[str, Mapping[str, Any]] = {
    "requests": {"requests_per_minute": PER_MINUTE},
    "tokens": {"tokens_per_hour": PER_HOUR},
    "settled": {"tokens_per_hour": PER_HOUR},
    "streams": {"max_streams": MOST_STREAMS},
    "dollar": {"budget_usd": 1},
    "free": {"tier": "free"},
}


@pytest.fixture(scope="module")
def started(fake_process: FakeProvider) -> Iterator[tuple[Cluster, dict[str, str]]]:
    config = mixture.config(
        fake_process.base_url, input_usd=INPUT_NANO / 1000, output_usd=OUTPUT_NANO / 1000
    )
    with backends() as shared:
        cluster = Cluster(
            config, redis_url=shared.redis.url, database_url=shared.database_url, env=UNTROUBLED
        )
        keys = {
            name: cluster.add_key(name, id=f"key_{name}", **{"tier": "unlimited"} | dict(terms))
            for name, terms in KEYS.items()
        }
        with cluster:
            yield cluster, keys
            assert "Traceback" not in cluster.output()


@pytest.fixture
def cluster(started: tuple[Cluster, dict[str, str]], fake: FakeProvider) -> Cluster:
    return started[0]


@pytest.fixture
def keys(started: tuple[Cluster, dict[str, str]]) -> dict[str, str]:
    return started[1]


def rows_of(cluster: Cluster, key: str) -> list[Row]:
    return [row for row in rows(cluster.database_url) if row["key_id"] == f"key_{key}"]


def at_once(cluster: Cluster, key: str, kind: Kind, *, count: int = CALLS) -> list[Sent]:
    """Make `count` calls from CALLERS threads, spread over all workers."""
    all_sent = [Sent(kind, (NATIVE, OPENAI)[number % 2]) for number in range(count)]
    with ThreadPoolExecutor(CALLERS) as callers:
        list(callers.map(lambda sent: play(cluster, key, sent), all_sent))
    assert [sent for sent in all_sent if sent.failure] == []
    return all_sent


def workers_of(found: Sequence[Row]) -> int:
    return len({row["owner"] for row in found})


def test_requests_per_minute_are_counted_once(
    cluster: Cluster, fake: FakeProvider, keys: dict[str, str]
) -> None:
    fake.default(fp.answer(fp.body("x")))
    sent = at_once(cluster, keys["requests"], Kind("limits"))
    assert Counter(one.status for one in sent) == {200: PER_MINUTE, 429: CALLS - PER_MINUTE}
    assert fake.counts.received == PER_MINUTE
    assert workers_of(rows_of(cluster, "requests")) > 2
    left = [int(one.headers["x-ratelimit-remaining-requests"]) for one in sent if one.status == 200]
    assert min(left) == 0
    refused = next(one for one in sent if one.status == 429)
    assert 1 <= int(refused.headers["retry-after"]) <= 60


def test_each_worker_reports_the_shared_remaining_requests(
    cluster: Cluster, fake: FakeProvider, keys: dict[str, str]
) -> None:
    # The free tier allows ten requests per minute.
    fake.default(fp.answer(fp.body("x", usage=USAGE)))
    answers = []
    with cluster.clients_to_each() as clients:
        for client in [*clients.values()] * 3:
            client.key = keys["free"]
            calls.ask(client, max_tokens=10)
            head = client.read_head()
            client.body()
            answers.append((head.status, int(head.headers["x-ratelimit-remaining-requests"])))
    assert answers == [*((200, left) for left in range(9, -1, -1)), (429, 0), (429, 0)]


def test_reserved_tokens_never_exceed_the_hourly_limit(
    cluster: Cluster, fake: FakeProvider, keys: dict[str, str]
) -> None:
    # The provider responds only after all calls are accepted or rejected, so all holds overlap.
    fake.default([fp.gate("answer"), *fp.answer(fp.body("x", usage=USAGE))])
    kind = Kind("limits", more={"max_tokens": ASKED_TOKENS})
    opening = threading.Event()

    def open_when_all_are_decided() -> None:
        with contextlib.suppress(TimeoutError):
            cluster.wait(lambda: opening.is_set() or decided() == CALLS)
        fake.open("answer")

    def decided() -> int:
        return fake.counts.received + sum(one.status is not None for one in sent)

    sent = [Sent(kind, (NATIVE, OPENAI)[number % 2]) for number in range(CALLS)]
    opener = threading.Thread(target=open_when_all_are_decided)
    opener.start()
    try:
        with ThreadPoolExecutor(CALLS) as callers:
            list(callers.map(lambda one: play(cluster, keys["tokens"], one), sent))
    finally:
        opening.set()
        opener.join()
    reserve = ASKED_TOKENS + prompt_tokens(sent[0])
    most = PER_HOUR // reserve
    assert Counter(one.status for one in sent) == {200: most, 429: CALLS - most}
    assert fake.counts.received == most


def prompt_tokens(sent: Sent) -> int:
    """Estimate the tokens of the prompt as Sluice does: four bytes per token."""
    return -(-len(f"{sent.kind.name} {sent.id}") // 4)


def test_unused_reserved_tokens_are_given_back_to_all_workers(
    cluster: Cluster, fake: FakeProvider, keys: dict[str, str]
) -> None:
    # Each call reserves half of the hourly tokens, but uses only a few.
    fake.default(fp.answer(fp.body("x", usage=USAGE)))
    left = []
    with cluster.clients_to_each() as clients:
        for client in [*clients.values()] * 2:
            client.key = keys["settled"]
            calls.ask(client, max_tokens=PER_HOUR // 2)
            head = client.read_head()
            client.body()
            assert head.status == 200
            left.append(int(head.headers["x-ratelimit-remaining-tokens"]))
        assert [a - b for a, b in pairwise(left)] == [sum(USAGE)] * (len(left) - 1)
        calls.ask(client, max_tokens=PER_HOUR)
        assert client.read_head().status == 429
        client.body()


def test_concurrent_streams_of_a_key_are_counted_over_the_cluster(
    cluster: Cluster, fake: FakeProvider, keys: dict[str, str]
) -> None:
    fake.default([*BEGUN, fp.hold()])
    with ExitStack() as stack, cluster.clients_to_each() as askers:
        clients = []
        for number in range(MOST_STREAMS):
            worker = cluster.workers()[number % 4]
            clients.append(stack.enter_context(cluster.client_of(worker)))
            clients[-1].key = keys["streams"]
            begin_stream(clients[-1], stream_id=f"s{number}")
        for asked in askers.values():
            asked.key = keys["streams"]
            calls.ask(asked)
            head, answer = asked.read_head(), asked.json()
            assert (head.status, answer["details"]["limit_type"]) == (429, "concurrency")
            assert answer["details"]["limit"] == MOST_STREAMS
        [first, *_, last] = askers.values()
        assert stop(last, "s0").status == 200
        list(clients[0].frames())
        cluster.wait(lambda: len(listed(first).json) == MOST_STREAMS - 1)
        clients[0].key = keys["streams"]
        begin_stream(clients[0], stream_id="s0")
        for number in range(MOST_STREAMS):
            assert stop(first, f"s{number}").status == 200


def test_a_burst_of_calls_never_exceeds_max_streams_of_a_key(
    cluster: Cluster, fake: FakeProvider, keys: dict[str, str]
) -> None:
    fake.default([fp.sleep(1.0), *fp.answer(fp.body("x"))])
    with cluster.client() as client:
        cluster.wait(lambda: listed(client, keys["streams"]).json == [], LISTED_WITHIN_S)
    sent = at_once(cluster, keys["streams"], Kind("limits"), count=CALLERS)
    assert Counter(s.status for s in sent) == {200: MOST_STREAMS, 429: CALLERS - MOST_STREAMS}
    assert fake.counts.received == MOST_STREAMS


@pytest.mark.thorough
def test_a_budget_is_never_overspent_by_calls_with_max_tokens(
    cluster: Cluster, fake: FakeProvider, keys: dict[str, str]
) -> None:
    kind = Kind("paid", more={"max_tokens": MOST_TOKENS})
    fake.named({"paid": answering(USAGE)})
    begun = time.monotonic()
    found = spend_it_all(cluster, keys["dollar"], kind)
    paid = rows_of(cluster, "dollar")
    spent = sum(row["cost_nano"] for row in paid)
    print(f"spent {spent / 1e9:.6f} USD in {time.monotonic() - begun:.1f} s")
    assert 0.98 * BUDGET_NANO < spent <= BUDGET_NANO
    assert found[200] == len(paid) == fake.counts.received
    assert_sound(cluster.database_url)
    assert workers_of(paid) == 4
