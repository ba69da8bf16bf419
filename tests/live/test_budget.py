"""Tests of budgets and limits on a real server.

Fifty callers at once can't overspend a budget, a rejected call never reaches a provider, and client
libraries raise the right exceptions.
"""

from __future__ import annotations

import signal
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import indoxhub  # type: ignore[import-untyped]
import openai
import pytest

from tests.support import fake as fp
from tests.support import mixture
from tests.support.books import Place, assert_sound, ledger_of, row_of, rows, spent
from tests.support.fake import FakeProvider
from tests.support.load import NATIVE, OPENAI, Kind, Sent, play
from tests.support.pace import HANG_S
from tests.support.servers import Server

CALLERS, ROUNDS = 50, 20
BUDGET_NANO = 10**9
INPUT_NANO, OUTPUT_NANO = 20_000, 200_000
"""Prices of a token, so high that a dollar is spent quickly."""
USAGE, MOST_TOKENS = (5, 10), 10
RESERVED_TOKENS, LONG = 20, (5, 60)
ANSWER_S = 0.15
"""The duration of a call, long enough for calls of all callers to be in flight at once."""


def config(fake: FakeProvider) -> str:
    return mixture.config(fake.base_url, input_usd=INPUT_NANO / 1000, output_usd=OUTPUT_NANO / 1000)


def answering(usage: tuple[int, int], after: float = ANSWER_S) -> list[fp.Step]:
    return [fp.sleep(after), *fp.answer(fp.body("x", usage=usage))]


def hammer(server: Server, key: str | Sequence[str], kind: Kind, *, calls: int) -> list[Sent]:
    """Make calls from CALLERS threads at once. Each thread makes its share one after another.

    If there are several keys, the threads take them in turn.
    """
    keys = [key] if isinstance(key, str) else key
    sent: list[Sent] = []

    def caller(number: int) -> None:
        for _ in range(calls // CALLERS):
            sent.append(one := Sent(kind, (NATIVE, OPENAI)[number % 2]))
            play(server, keys[number % len(keys)], one)

    threads = [threading.Thread(target=caller, args=(number,)) for number in range(CALLERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sent


def statuses(sent: list[Sent]) -> Counter[int | None]:
    """Count the statuses. Leave out connections that a reload closed before they were used."""
    return Counter(one.status for one in sent if not one.failure)


def hammer_a_budget(fake: FakeProvider, server: Server, place: Place, key: str) -> None:
    """Assert that calls with max_tokens spend a budget of $1, across a reload, and no more."""
    kind = Kind("paid", more={"max_tokens": MOST_TOKENS})
    fake.named({"paid": answering(USAGE)})
    reload = threading.Thread(target=reload_in_the_middle, args=(fake, server))
    reload.start()
    found = spend_it_all(server, key, kind)
    reload.join()
    assert_sound(place)
    assert 0.99 * BUDGET_NANO < spent(place, "key_dollar") <= BUDGET_NANO
    assert found[200] <= len(rows(place)) == fake.counts.received
    assert len({row["owner"] for row in rows(place)}) == 2


def reload_in_the_middle(fake: FakeProvider, server: Server) -> None:
    """Reload while calls of all callers are in flight, and hold these until a new worker starts."""
    fake.wait_requests(CALLERS)
    fake.named({"paid": [fp.gate("reloaded"), *answering(USAGE)]})
    [old] = server.worker_pids()
    server.signal(signal.SIGHUP)
    server.wait(lambda: bool(set(server.worker_pids()) - {old}))
    fake.open("reloaded")


def spend_it_all(server: Server, key: str | Sequence[str], kind: Kind) -> Counter[int | None]:
    """Make calls until all are rejected. Return the counts of statuses."""
    found: Counter[int | None] = Counter()
    for _ in range(ROUNDS):
        found += (latest := statuses(hammer(server, key, kind, calls=CALLERS * 4)))
        if set(latest) == {402}:
            assert set(found) == {200, 402}
            return found
    raise AssertionError(found)


def test_calls_with_max_tokens_never_overspend_a_budget(fake: FakeProvider) -> None:
    server = Server(config(fake))
    key = server.add_key(id="key_dollar", tier="unlimited", budget_usd=1)
    with server:
        hammer_a_budget(fake, server, ledger_of(server), key)


def test_calls_without_max_tokens_overspend_at_most_by_the_calls_in_flight(
    fake: FakeProvider,
) -> None:
    server = Server(config(fake), env={"SLUICE_RESERVE_TOKENS": str(RESERVED_TOKENS)})
    key = server.add_key(id="key_dollar", tier="unlimited", budget_usd=1)
    kind = Kind("open")
    fake.named({"open": answering(LONG)})
    with server:
        spend_it_all(server, key, kind)
        place = ledger_of(server)
        assert_sound(place)
        cost = LONG[0] * INPUT_NANO + LONG[1] * OUTPUT_NANO
        overrun = cost - RESERVED_TOKENS * OUTPUT_NANO  # the cost of a call beyond its hold
        assert BUDGET_NANO < spent(place, "key_dollar") <= BUDGET_NANO + overrun * CALLERS
        in_flight = most_at_once(rows(place))
        assert spent(place, "key_dollar") <= BUDGET_NANO + overrun * in_flight


BILLED = 5000
"""The tokens that a host bills although max_tokens is 1."""
IGNORED = {"ignore_max_tokens": True}


@pytest.mark.thorough
@pytest.mark.parametrize("params", [{}, IGNORED])
def test_a_host_that_bills_more_than_max_tokens_overspends_at_most_by_the_calls_in_flight(
    fake: FakeProvider, params: dict[str, Any]
) -> None:
    server = Server(config(fake), env={"SLUICE_RESERVE_TOKENS": str(BILLED)})
    key = server.add_key(id="key_dollar", tier="unlimited", budget_usd=1)
    fake.named({"greedy": answering((5, BILLED))})
    with server:
        more: dict[str, Any] = {"max_tokens": 1, "additional_params": params}
        found = statuses(hammer(server, key, Kind("greedy", more=more), calls=CALLERS))
        place = ledger_of(server)
        assert_sound(place)
        in_flight = most_at_once(rows(place))
        cost = 5 * INPUT_NANO + BILLED * OUTPUT_NANO
        assert spent(place, "key_dollar") == found[200] * cost
        # Each call in flight reserved something, so the others found less room.
        assert spent(place, "key_dollar") <= BUDGET_NANO + cost * in_flight
        if params:  # a call with an unknown parameter reserves the whole rest of the budget
            assert (found[200], in_flight) == (1, 1)
        assert ask(server, key, **more).status == 402


def most_at_once(found: list[dict[str, Any]]) -> int:
    changes = sorted((row[name], step) for row in found for name, step in ENDS)
    count = most = 0
    for _, step in changes:
        count += step
        most = max(most, count)
    return most


ENDS = (("started_us", 1), ("ended_us", -1))


# Limits


@pytest.fixture(scope="module")
def started(fake_process: FakeProvider) -> Iterator[Server]:
    with Server(config(fake_process)) as server:
        yield server
    assert "Traceback" not in server.output()


@pytest.fixture
def server(started: Server, fake: FakeProvider) -> Server:
    fake.default(fp.answer(fp.body("x", usage=USAGE)))
    return started


def a_key(server: Server, name: str, **terms: object) -> str:
    """Add a key with the id key_NAME, and wait until the server accepts it. Return the key."""
    key = server.add_key(name, id=f"key_{name}", **terms)

    def known() -> bool:
        with server.client() as client:
            client.key = key
            client.request("GET", f"{NATIVE}/streams")
            return client.read_head().status == 200

    server.wait(known)
    return key


def ask(server: Server, key: str, path: str = NATIVE, **more: object) -> Sent:
    sent = play(server, key, Sent(Kind("limits", more=more), path))
    assert not sent.failure
    return sent


def test_an_unknown_parameter_does_not_pass_a_limit_of_tokens(
    server: Server, fake: FakeProvider
) -> None:
    """The host takes the parameter for a larger max_tokens: one call passes, and then none."""
    key = a_key(server, "loose", tier="unlimited", tokens_per_hour=100)
    fake.default(answering((1, BILLED)))
    kind = Kind("greedy", more={"max_tokens": 1, "additional_params": {"words": BILLED}})
    sent = [Sent(kind, (NATIVE, OPENAI)[number % 2]) for number in range(16)]
    threads = [threading.Thread(target=play, args=(server, key, one)) for one in sent]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses(sent) == {200: 1, 429: 15}
    assert ask(server, key, max_tokens=1).status == 429


@pytest.mark.parametrize("path", [NATIVE, OPENAI])
def test_the_free_tier_has_ten_requests_a_minute(
    server: Server, fake: FakeProvider, path: str
) -> None:
    key = a_key(server, f"free{len(path)}", tier="free")
    answers = [ask(server, key, path, max_tokens=10) for _ in range(10)]
    assert [one.status for one in answers] == [200] * 10
    left = [int(one.headers["x-ratelimit-remaining-requests"]) for one in answers]
    assert left == list(range(9, -1, -1))
    tokens = [int(one.headers["x-ratelimit-remaining-tokens"]) for one in answers]
    assert tokens == sorted(tokens, reverse=True)
    assert tokens[-1] < tokens[0] < 10_000
    assert answers[0].headers["x-ratelimit-limit-requests"] == "10"
    assert answers[0].headers["x-ratelimit-limit-tokens"] == "10000"
    refused = ask(server, key, path, max_tokens=10)
    assert refused.status == 429
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert refused.headers["x-ratelimit-remaining-requests"] == "0"
    assert fake.counts.received == 10
    if path == NATIVE:
        details = refused.answer["details"]
        assert (details["limit_type"], details["limit"]) == ("requests", 10)
        assert 1 <= details["retry_after"] <= 60
        assert details["reset_time"].endswith("Z")
    else:
        assert refused.answer["error"]["type"] == "rate_limit_error"
    assert len([r for r in rows(ledger_of(server)) if r["request_id"] == refused.id]) == 0


def test_tokens_per_hour_are_reserved_and_settled(server: Server, fake: FakeProvider) -> None:
    key = a_key(server, "hourly", tier="unlimited", tokens_per_hour=200)
    first = ask(server, key, max_tokens=100)  # reserves more than 100 tokens, and uses 15
    assert first.status == 200
    assert int(first.headers["x-ratelimit-remaining-tokens"]) >= 180
    assert ask(server, key, max_tokens=100).status == 200
    refused = ask(server, key, max_tokens=190)
    assert (refused.status, refused.answer["details"]["limit_type"]) == (429, "tokens")
    never = ask(server, key, max_tokens=500)
    assert (never.status, never.headers.get("retry-after")) == (429, None)
    assert never.headers["x-should-retry"] == "false"
    assert fake.counts.received == 2


def test_a_byok_key_bypasses_limits_and_budget(server: Server, fake: FakeProvider) -> None:
    key = a_key(server, "own", tier="free", requests_per_minute=0, budget_usd=0)
    sent = ask(server, key, byok_api_key="my-own", max_tokens=10)
    assert (sent.status, sent.headers["x-ratelimit-bypass"]) == (200, "BYOK API key used")
    assert "x-ratelimit-limit-requests" not in sent.headers
    row = row_of(ledger_of(server), sent.id)
    assert (bool(row["byok"]), row["cost_nano"]) == (True, 0)
    assert (row["input_tokens"], row["output_tokens"]) == USAGE
    assert ask(server, key, max_tokens=10).status == 429
    assert fake.counts.received == 1


def test_openai_and_indoxhub_clients_raise_matching_exceptions(
    server: Server, fake: FakeProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "*")
    limited = a_key(server, "limited", tier="unlimited", requests_per_minute=0)
    broke = a_key(server, "broke", tier="unlimited", budget_usd=0.0000001)
    ask_for: dict[str, Any] = {"model": "fake/m", "prompt": "x", "max_tokens": 5}
    for key, status, exception in (
        (limited, 429, openai.RateLimitError),
        (broke, 402, openai.APIStatusError),
    ):
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0) as client:
            with pytest.raises(exception) as raised:
                client.completions.create(**ask_for)
            assert raised.value.status_code == status
    for key, exception in (
        (limited, indoxhub.exceptions.RateLimitError),
        (broke, indoxhub.exceptions.InsufficientCreditsError),
    ):
        client = indoxhub.Client(api_key=key, base_url=server.url, timeout=HANG_S)
        with pytest.raises(exception):
            client.completion(prompt="x", model="fake/m", max_tokens=5)
        client.close()
    assert fake.counts.received == 0
