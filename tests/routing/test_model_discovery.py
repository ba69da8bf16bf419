"""model_discovery.py: when hosts are asked for their models, with a fake clock."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from config import Settings
from errors import UpstreamError
from keys.redaction import Secret
from providers.base import ListedModel, Provider, Target
from providers.model_fetch import FoundItself, Listing
from routing import model_discovery
from routing.model_discovery import Address, ModelDiscovery, addresses
from routing.router import Router
from tests.support.pace import HANG_S

INTERVAL = 300.0


def listing(*names: str, instances: frozenset[str] = frozenset()) -> Listing:
    return Listing(tuple(map(ListedModel, names)), instances)


class Hosts:
    """Hosts that answer as the test says, and a clock that the test turns."""

    def __init__(self, *rows: Provider, keys: int = 1, **options: Any) -> None:
        self.now = 1000.0
        self.answers: dict[str, Listing | Exception] = {}
        self.asked: list[Target] = []
        self.gate = threading.Event()
        self.gate.set()
        targets = {
            Address(row.name, row.base_url): [
                Target(row, "models", Secret(f"key-{n}"), key_number=n) for n in range(1, keys + 1)
            ]
            for row in rows
        }
        fixed: dict[str, Any] = {"interval": INTERVAL, "jitter": lambda low, high: 1.0}
        self.discovery = ModelDiscovery(
            targets, self.ask, clock=lambda: self.now, **(fixed | options)
        )

    def ask(self, target: Target) -> Listing:
        self.asked.append(target)
        assert self.gate.wait(HANG_S)
        answer = self.answers.get(target.provider.base_url, UpstreamError("away"))
        if isinstance(answer, Exception):
            raise answer
        return answer

    def refresh(self) -> None:
        """Refresh, and wait until nobody is being asked."""
        self.discovery.refresh()
        self.wait(lambda: not any(state.asking for state in self.discovery._states()))

    def wait(self, done: Callable[[], bool]) -> None:
        with self.discovery._changed:
            assert self.discovery._changed.wait_for(done, HANG_S)

    def names(self, provider: str = "one") -> list[str] | None:
        found = self.discovery.models(provider)
        return None if found is None else [model.id for model in found.models]


def row(name: str = "one", url: str = "http://one") -> Provider:
    return Provider(name=name, base_url=url)


def test_nobody_is_asked_before_somebody_asks() -> None:
    hosts = Hosts(row())
    assert hosts.names() is None
    assert hosts.asked == []
    hosts.answers["http://one"] = listing("a")
    hosts.refresh()
    assert hosts.names() == ["a"]


def test_a_list_is_asked_for_again_after_the_interval_only() -> None:
    hosts = Hosts(row())
    hosts.answers["http://one"] = listing("a")
    hosts.refresh()
    hosts.answers["http://one"] = listing("b")
    hosts.now += INTERVAL - 1
    hosts.refresh()
    assert (hosts.names(), len(hosts.asked)) == (["a"], 1)
    hosts.now += 1
    hosts.refresh()
    assert (hosts.names(), len(hosts.asked)) == (["b"], 2)


def test_the_interval_varies() -> None:
    hosts = Hosts(row(), jitter=lambda low, high: low)
    hosts.answers["http://one"] = listing("a")
    hosts.refresh()
    hosts.now += INTERVAL * (1 - model_discovery.JITTER)
    hosts.refresh()
    assert len(hosts.asked) == 2


@pytest.mark.parametrize("failure", [UpstreamError("away"), ValueError("a bug")])
def test_the_last_list_is_kept_while_a_host_is_away(failure: Exception) -> None:
    hosts = Hosts(row())
    hosts.answers["http://one"] = listing("a")
    hosts.refresh()
    hosts.answers["http://one"] = failure
    for _ in range(5):
        hosts.now += INTERVAL
        hosts.refresh()
        assert hosts.names() == ["a"]
    assert len(hosts.asked) == 6
    hosts.answers["http://one"] = listing("b")
    hosts.now += INTERVAL
    hosts.refresh()
    assert hosts.names() == ["b"]


def test_a_host_that_fails_is_asked_again_soon_and_then_more_rarely() -> None:
    hosts = Hosts(row())
    waits = []
    for _ in range(7):
        hosts.refresh()
        [state] = hosts.discovery._states()
        waits.append(state.due - hosts.now)
        hosts.now = state.due
    assert waits == [15, 30, 60, 120, 240, 300, 300]
    hosts.answers["http://one"] = listing("a")
    hosts.refresh()
    assert hosts.names() == ["a"]


def test_a_host_that_limits_the_rate_is_left_for_as_long_as_it_wants() -> None:
    hosts = Hosts(row())
    hosts.answers["http://one"] = UpstreamError("slow down", retry_after=90)
    hosts.refresh()
    [state] = hosts.discovery._states()
    assert state.due == hosts.now + 90
    hosts.answers["http://one"] = UpstreamError("slow down", retry_after=1e9)
    hosts.now = state.due
    hosts.refresh()
    assert state.due == hosts.now + model_discovery.OWN_S


def test_a_rejected_key_is_left_for_the_next_at_once_and_for_good(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hosts = Hosts(row(), keys=3)
    hosts.answers["http://one"] = listing("a")
    ask = hosts.ask

    def ask_with(target: Target) -> Listing:
        found = ask(target)
        if target.key_number < 3:
            raise UpstreamError("No.", upstream_status=401)
        return found

    monkeypatch.setattr(hosts.discovery, "_ask", ask_with)
    for _ in range(2):
        hosts.refresh()
        hosts.now += INTERVAL
    assert hosts.names() == ["a"]
    assert [target.key_number for target in hosts.asked] == [1, 2, 3, 3]


def test_keys_that_are_all_rejected_are_tried_once_each() -> None:
    hosts = Hosts(row(), keys=3)
    hosts.answers["http://one"] = UpstreamError("No.", upstream_status=403)
    hosts.refresh()
    hosts.refresh()
    assert [target.key_number for target in hosts.asked] == [1, 2, 3]


def test_after_a_failure_the_next_key_is_used() -> None:
    hosts = Hosts(row(), keys=2)
    for _ in range(3):
        hosts.refresh()
        hosts.now += INTERVAL
    assert [target.key_number for target in hosts.asked] == [1, 2, 1]


def test_an_address_of_sluice_itself_is_forgotten_and_left_for_an_hour() -> None:
    hosts = Hosts(row())
    hosts.answers["http://one"] = listing("a")
    hosts.refresh()
    hosts.answers["http://one"] = FoundItself("itself")
    hosts.now += INTERVAL
    hosts.refresh()
    assert hosts.names() is None
    hosts.now += model_discovery.OWN_S - 1
    hosts.refresh()
    assert len(hosts.asked) == 2
    hosts.now += 1
    hosts.refresh()
    assert len(hosts.asked) == 3


def test_a_host_is_asked_once_at_a_time_and_delays_no_other() -> None:
    hosts = Hosts(row(), row("two", "http://two"))
    hosts.answers |= {"http://one": listing("a"), "http://two": listing("b")}
    hosts.refresh()
    hosts.gate.clear()
    hosts.now += INTERVAL
    for _ in range(3):
        hosts.discovery.refresh()
    assert hosts.names() == ["a"]
    hosts.gate.set()
    hosts.wait(lambda: not any(state.asking for state in hosts.discovery._states()))
    assert len(hosts.asked) == 4


def test_only_the_first_lists_and_very_old_ones_are_waited_for() -> None:
    hosts = Hosts(row())
    hosts.answers["http://one"] = listing("a")
    hosts.discovery.refresh(HANG_S)
    assert hosts.names() == ["a"]
    hosts.answers["http://one"] = listing("b")
    hosts.gate.clear()
    hosts.now += INTERVAL
    hosts.discovery.refresh(HANG_S)  # returns at once
    assert hosts.names() == ["a"]
    hosts.gate.set()
    hosts.wait(lambda: hosts.names() == ["b"])
    hosts.answers["http://one"] = listing("c")
    hosts.now += INTERVAL * model_discovery.STALE_INTERVALS
    hosts.discovery.refresh(HANG_S)
    assert hosts.names() == ["c"]


def test_a_wait_is_bounded() -> None:
    hosts = Hosts(row())
    hosts.gate.clear()
    hosts.discovery.refresh(0.01)
    assert hosts.names() is None
    hosts.gate.set()


def test_a_host_that_failed_is_not_waited_for_again() -> None:
    hosts = Hosts(row())
    hosts.refresh()
    hosts.gate.clear()
    hosts.now += INTERVAL
    hosts.discovery.refresh(HANG_S)  # returns at once
    hosts.gate.set()


def test_a_provider_with_several_addresses_has_the_models_of_all() -> None:
    hosts = Hosts(row(url="http://a"), row(url="http://b"))
    hosts.answers["http://a"] = listing("x", "y", instances=frozenset({"s"}))
    hosts.refresh()
    assert hosts.names() == ["x", "y"]
    hosts.answers["http://b"] = listing("y", "z")
    hosts.now += INTERVAL
    hosts.refresh()
    assert hosts.names() == ["x", "y", "z"]
    assert hosts.discovery.instances == {"s"}


def test_an_interval_of_zero_turns_discovery_off() -> None:
    hosts = Hosts(row(), interval=0)
    hosts.discovery.refresh(HANG_S)
    assert (hosts.names(), hosts.asked) == (None, [])


def test_without_threads_the_last_list_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    hosts = Hosts(row())

    def fail(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", fail)
        hosts.discovery.refresh(HANG_S)  # returns at once
    hosts.answers["http://one"] = listing("a")
    hosts.refresh()
    assert hosts.names() == ["a"]


def test_many_hosts_are_asked_by_a_bounded_number_of_threads() -> None:
    rows = [row(f"r{n}", f"http://{n}") for n in range(50)]
    hosts = Hosts(*rows)
    hosts.answers = {one.base_url: listing("a") for one in rows}
    hosts.gate.clear()
    hosts.discovery.refresh()
    asking = [thread for thread in threading.enumerate() if thread.name == "sluice-discovery"]
    assert len(asking) <= model_discovery.MOST_ASKED_AT_ONCE
    hosts.gate.set()
    hosts.wait(lambda: all(hosts.names(one.name) for one in rows))


def test_only_enabled_rows_with_a_list_are_asked_with_the_operators_keys() -> None:
    rows: dict[str, dict[str, Any]] = {
        "keyed": {"base_url": "http://k/v1", "api_key_env": "K"},
        "keyless": {"base_url": "http://l/v1"},
        "locked": {"base_url": "http://m/v1", "api_key_env": "MISSING"},
        "off": {"base_url": "http://n/v1", "discover": False},
    }
    router = Router(Settings(providers=rows, environ={"K": "one, two"}))
    found = addresses(router, [router.providers[name] for name in (*rows, "local", "bedrock")])
    assert list(found) == [Address("keyed", "http://k/v1"), Address("keyless", "http://l/v1")]
    keyed = found[Address("keyed", "http://k/v1")]
    assert [target.credential and target.credential.reveal() for target in keyed] == ["one", "two"]


def test_each_replica_of_a_provider_is_asked_with_each_key() -> None:
    urls = ["http://a:1/v1", "http://b:1/v1"]
    rows = {"engines": {"base_url": urls, "api_key_env": "ENGINES_KEY"}}
    router = Router(Settings(providers=rows, environ={"ENGINES_KEY": "sk-1, sk-2"}))
    found = addresses(router, [router.providers["engines"]])
    assert list(found) == [Address("engines", url) for url in urls]
    for url, targets in zip(urls, found.values(), strict=True):
        assert [(t.provider.base_url, t.key_number) for t in targets] == [(url, 1), (url, 2)]
