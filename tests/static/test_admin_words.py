"""Tests of static/admin_words.js: the health of a provider and the reason of a refusal in words."""

from __future__ import annotations

from typing import Any

from ledger.refusals import REASONS
from tests.support.javascript import call_each, needs_node

pytestmark = needs_node


def provider(state: str = "closed", paused: int = 0, **fields: Any) -> dict[str, Any]:
    found = {"reachable": True, "models": 5, "calls": 10, "failures": 0, "error_rate": 0.0}
    pauses = [{"model": "m", "key_number": None, "replica": None, "seconds": 7.2}] * paused
    return found | {"breaker": {"state": state, "paused": pauses, "paused_total": paused}} | fields


def test_each_reason_of_a_refusal_has_words() -> None:
    found = call_each("admin_words.js", "refusalText", *((reason,) for reason in REASONS))
    assert all(text[:3].isdigit() for text in found), found
    assert len(set(found)) == len(REASONS)
    assert call_each("admin_words.js", "refusalText", ("new:one",)) == ["new:one"]


def test_a_provider_is_down_if_its_calls_fail_or_it_cannot_be_reached() -> None:
    quiet: dict[str, Any] = {"calls": 0, "error_rate": None}
    cases = {
        "works": provider(),
        "works, with errors": provider(failures=1, error_rate=0.1),
        "failing": provider(failures=6, error_rate=0.6),
        "failing; some calls are paused": provider("open"),
        "can\u2019t be reached": provider(reachable=False, **quiet),
        "doesn\u2019t run": provider(reachable=False, models=None, **quiet),
        "not used yet": provider(reachable=None, models=None, **quiet),
        "rate limited": provider("limited"),
        "being tried again": provider("half_open"),
    }
    found = call_each("admin_words.js", "healthOf", *((case,) for case in cases.values()))
    assert [one["text"] for one in found] == list(cases)
    down = [one["text"] for one in found if one["down"]]
    assert down == list(cases)[2:5]


def test_pauses_are_listed_briefly() -> None:
    found = call_each("admin_words.js", "pausesOf", (provider(),), (provider("open", 5),))
    assert found == [[], ["m: for 8 s"] * 3 + ["and 2 more"]]


def test_an_unknown_share_of_failures_is_not_0() -> None:
    assert call_each("admin_words.js", "percent", (None,), (0,), (0.0251,)) == [
        "\u2013",
        "0%",
        "2.5%",
    ]
