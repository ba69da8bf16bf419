"""disconnect.py: how long a call may continue after its client has disconnected."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace

import pytest

from streams import disconnect
from streams.disconnect import DisconnectPolicy, Drain
from streams.mailbox import End
from tests.support.pace import HANG_S


class Spent:
    """A callback that returns a settable cost."""

    def __init__(self, cost: int | None = None) -> None:
        self.cost = cost

    def __call__(self) -> int | None:
        return self.cost


class Clock:
    """A clock for disconnect.py that the test moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(disconnect, "time", SimpleNamespace(monotonic=lambda: self.now))


def test_a_drain_continues_until_its_time_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    found = Drain(DisconnectPolicy(seconds=30), Spent())
    clock.now += 30
    assert found.goes_on()
    clock.now += 0.1
    assert not found.goes_on()
    assert not found.wait()


def test_cost_spent_before_the_drain_does_not_count() -> None:
    spent = Spent(1_000_000)
    found = Drain(DisconnectPolicy(cost=500), spent)
    spent.cost = 1_000_500
    assert found.goes_on()
    spent.cost = 1_000_501
    assert not found.goes_on()


@pytest.mark.parametrize(("before", "after"), [(None, None), (None, 10**12), (5, None)])
def test_an_unknown_cost_does_not_end_a_drain(before: int | None, after: int | None) -> None:
    spent = Spent(before)
    found = Drain(DisconnectPolicy(cost=0), spent)
    spent.cost = after
    assert found.goes_on()


def test_a_drain_with_a_zero_cost_limit_ends_at_the_first_cost() -> None:
    spent = Spent(5)
    found = Drain(DisconnectPolicy(cost=0), spent)
    assert found.goes_on()
    spent.cost = 6
    assert not found.goes_on()


def test_the_first_end_of_a_drain_is_kept() -> None:
    found = Drain(DisconnectPolicy(), Spent())
    assert found.end(End("stopped"))
    assert not found.end(End("completed"))
    assert found.ended_by == End("stopped")
    assert not found.goes_on()
    assert found.wait()


def test_the_end_of_a_drain_wakes_its_waiter() -> None:
    found = Drain(DisconnectPolicy(seconds=HANG_S), Spent())
    threading.Timer(0.02, found.end, [End("completed")]).start()
    began = time.monotonic()
    assert found.wait()
    assert time.monotonic() - began < HANG_S / 2
