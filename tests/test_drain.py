"""drain.py: how long a call may go on whose client has gone."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace

import pytest

import drain
from drain import Disconnect, Drain
from relay import End

LONG_S = 5.0


class Spent:
    """What a call has cost so far."""

    def __init__(self, cost: int | None = None) -> None:
        self.cost = cost

    def __call__(self) -> int | None:
        return self.cost


class Clock:
    """The time as drain.py sees it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(drain, "time", SimpleNamespace(monotonic=lambda: self.now))


def test_it_goes_on_until_its_time_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    found = Drain(Disconnect(seconds=30), Spent())
    clock.now += 30
    assert found.goes_on()
    clock.now += 0.1
    assert not found.goes_on()
    assert not found.wait()


def test_what_was_spent_before_it_doesn_t_count() -> None:
    spent = Spent(1_000_000)
    found = Drain(Disconnect(cost=500), spent)
    spent.cost = 1_000_500
    assert found.goes_on()
    spent.cost = 1_000_501
    assert not found.goes_on()


@pytest.mark.parametrize(("before", "after"), [(None, None), (None, 10**12), (5, None)])
def test_a_cost_that_is_unknown_bounds_nothing(before: int | None, after: int | None) -> None:
    spent = Spent(before)
    found = Drain(Disconnect(cost=0), spent)
    spent.cost = after
    assert found.goes_on()


def test_without_money_nothing_may_be_spent() -> None:
    spent = Spent(5)
    found = Drain(Disconnect(cost=0), spent)
    assert found.goes_on()
    spent.cost = 6
    assert not found.goes_on()


def test_the_first_who_ends_it_counts() -> None:
    found = Drain(Disconnect(), Spent())
    assert found.end(End("stopped"))
    assert not found.end(End("completed"))
    assert found.ended_by == End("stopped")
    assert not found.goes_on()
    assert found.wait()


def test_who_waits_is_woken_by_the_end() -> None:
    found = Drain(Disconnect(seconds=LONG_S), Spent())
    threading.Timer(0.02, found.end, [End("completed")]).start()
    began = time.monotonic()
    assert found.wait()
    assert time.monotonic() - began < LONG_S / 2
