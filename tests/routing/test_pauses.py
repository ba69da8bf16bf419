"""Tests of routing/pauses.py: what is paused, and for how long."""

from __future__ import annotations

from routing.pauses import Pause, cooling, pauses

KEY, OTHER = ("sim", "m", 1), ("sim@host:1", "n", 2)


def test_a_closed_circuit_breaker_is_no_pause() -> None:
    assert list(pauses(10.0, {KEY: 0.0}, ())) == []


def test_a_circuit_breaker_is_half_open_after_its_cool_down() -> None:
    found = list(pauses(10.0, {KEY: 12.0, OTHER: 10.0}, ()))
    assert found == [Pause(KEY, "open", 2.0), Pause(OTHER, "half_open", 0.0)]
    assert cooling(found) == {KEY: 2.0}


def test_a_wait_after_a_429_is_a_pause_of_each_model_until_it_is_over() -> None:
    limited = [(("sim", "", 1), {"m": 15.0, "": 11.0, "over": 10.0})]
    found = list(pauses(10.0, {KEY: 12.0}, limited))
    assert found[1:] == [Pause(KEY, "limited", 5.0), Pause(("sim", "", 1), "limited", 1.0)]
    assert cooling(found) == {KEY: 5.0, ("sim", "", 1): 1.0}
