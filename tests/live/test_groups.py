"""Proofs that callers at once, on several keys of a group, never exceed what the group may use.

Fifty callers with ten keys call one process with SQLite, and two machines with two workers each,
which share Redis and Postgres.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.live.test_budget import (
    BUDGET_NANO,
    CALLERS,
    INPUT_NANO,
    MOST_TOKENS,
    OUTPUT_NANO,
    USAGE,
    answering,
    spend_it_all,
)
from tests.support import fake as fp
from tests.support import mixture
from tests.support.books import Place, assert_sound, ledger_of, query, rows
from tests.support.clusters import Cluster, backends
from tests.support.fake import FakeProvider
from tests.support.load import NATIVE, OPENAI, Kind, Sent, play
from tests.support.servers import UNTROUBLED, Server

pytestmark = pytest.mark.thorough

KEYS, PER_MINUTE, PER_HOUR, ASKED = 10, 60, 1_000, 40
GROUPS = f"""
[groups.dollar]
budget_usd = 1

[groups.minute]
requests_per_minute = {PER_MINUTE}

[groups.hour]
tokens_per_hour = {PER_HOUR}
"""


def config(fake: FakeProvider) -> str:
    prices = {"input_usd": INPUT_NANO / 1000, "output_usd": OUTPUT_NANO / 1000}
    return mixture.config(fake.base_url, **prices) + GROUPS


def members(server: Server, group: str) -> list[str]:
    """Add keys of a group, each of which has limits of its own that are never reached."""
    own = {"budget_usd": 100, "requests_per_minute": 10_000, "tokens_per_hour": 10**7}
    return [
        server.add_key(f"{group}{number}", id=f"key_{group}{number}", group=group, **own)
        for number in range(KEYS)
    ]


@pytest.fixture(scope="module", params=["sqlite", "cluster"])
def started(
    request: pytest.FixtureRequest, fake_process: FakeProvider
) -> Iterator[tuple[Server, Place, dict[str, list[str]]]]:
    names = ("dollar", "minute", "hour")
    if request.param == "sqlite":
        server = Server(config(fake_process), env=UNTROUBLED)
        keys = {name: members(server, name) for name in names}
        with server:
            yield server, ledger_of(server), keys
            assert "Traceback" not in server.output()
        return
    with backends() as shared:
        cluster = Cluster(
            config(fake_process),
            redis_url=shared.redis.url,
            database_url=shared.database_url,
            env=UNTROUBLED,
        )
        keys = {name: members(cluster, name) for name in names}
        with cluster:
            yield cluster, cluster.database_url, keys
            assert "Traceback" not in cluster.output()


Site = tuple[Server, Place, dict[str, list[str]]]


def all_at_once(server: Server, keys: Sequence[str], kind: Kind, count: int) -> list[Sent]:
    found = [Sent(kind, (NATIVE, OPENAI)[number % 2]) for number in range(count)]
    with ThreadPoolExecutor(CALLERS) as callers:
        list(
            callers.map(
                lambda pair: play(server, keys[pair[0] % len(keys)], pair[1]), enumerate(found)
            )
        )
    assert [sent for sent in found if sent.failure] == []
    return found


def test_fifty_callers_on_ten_keys_never_overrun_the_budget_of_their_group(
    started: Site, fake: FakeProvider
) -> None:
    server, place, keys = started
    fake.named({"paid": answering(USAGE)})
    found = spend_it_all(server, keys["dollar"], Kind("paid", more={"max_tokens": MOST_TOKENS}))
    paid = [row for row in rows(place) if row["group_name"] == "dollar"]
    spent = sum(row["cost_nano"] for row in paid)
    print(f"spent {spent / 1e9:.6f} USD in {len(paid)} calls")
    assert 0.98 * BUDGET_NANO < spent <= BUDGET_NANO
    assert found[200] == len(paid) == fake.counts.received
    assert len({row["key_id"] for row in paid}) == KEYS
    assert_sound(place)
    statement = "SELECT SUM(cost_nano) AS cost FROM group_daily WHERE group_name = 'dollar'"
    assert [int(row["cost"]) for row in query(place, statement)] == [spent]


def test_fifty_callers_on_ten_keys_never_make_more_requests_than_their_group_may(
    started: Site, fake: FakeProvider
) -> None:
    server, _, keys = started
    fake.default(fp.answer(fp.body("x")))
    sent = all_at_once(server, keys["minute"], Kind("limits"), 3 * PER_MINUTE)
    assert Counter(one.status for one in sent) == {200: PER_MINUTE, 429: 2 * PER_MINUTE}
    assert fake.counts.received == PER_MINUTE
    left = {int(one.headers["x-ratelimit-remaining-requests"]) for one in sent if one.status == 200}
    assert min(left) == 0
    assert max(left) < PER_MINUTE


def test_fifty_callers_on_ten_keys_never_use_more_tokens_than_their_group_may(
    started: Site, fake: FakeProvider
) -> None:
    server, _, keys = started
    fake.default(answering((1, ASKED)))
    kind = Kind("limits", more={"max_tokens": ASKED})
    sent = all_at_once(server, keys["hour"], kind, 2 * CALLERS)
    found = Counter(one.status for one in sent)
    assert set(found) == {200, 429}
    assert 0 < found[200] <= PER_HOUR // ASKED
    assert fake.counts.received == found[200]
