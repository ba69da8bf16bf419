"""Tests of telemetry/key_metrics.py: the labels of keys, and the bound on their number."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

from completion import Usage
from keys.key import Key, fingerprint
from telemetry.key_metrics import LASTS_S, MOST_KEYS, OTHER, CurrentLabels, KeyLabels
from tests.telemetry.test_metrics import make, series, value


def a_key(name: str) -> Key:
    hash_ = fingerprint(name)
    return Key(id=f"key_{name}", name=name, hash=hash_, created=datetime.now(UTC))


def test_a_call_and_a_refusal_count_for_their_key_and_group() -> None:
    target = make()
    target.watch_keys(lambda key_id: KeyLabels(key_id.removeprefix("key_"), "team"))
    assert target.keys is not None
    target.keys.ended("key_ada", 200, Usage(30, 12), 1_500_000_000)
    target.keys.ended("key_ada", 499, Usage(5, 1), None)
    target.keys.refused("key_ada", "rate_limited:requests")
    labels = {"key": "ada", "group": "team"}
    assert value(target, "sluice_key_requests_total", **labels, status="499") == 1
    assert value(target, "sluice_key_tokens_total", **labels, direction="input") == 35
    assert value(target, "sluice_key_tokens_total", **labels, direction="output") == 13
    assert value(target, "sluice_key_cost_dollars_total", **labels) == 1.5
    reason = {"reason": "rate_limited:requests"}
    assert value(target, "sluice_key_refusals_total", **labels, **reason) == 1


def test_the_number_of_keys_with_a_label_is_bounded() -> None:
    target = make()
    target.watch_keys(lambda key_id: KeyLabels(key_id, ""))
    assert target.keys is not None
    for _ in range(2):
        for number in range(MOST_KEYS + 20):
            target.keys.ended(f"key_{number}", 200, Usage(1, 1), 1)
    found = {labels["key"] for labels in series(target, "sluice_key_requests_total")}
    assert len(found) == MOST_KEYS + 1
    others = {"key": OTHER, "group": OTHER, "status": "200"}
    assert value(target, "sluice_key_requests_total", **others) == 40


def test_a_label_is_the_current_name_of_a_key_or_the_id_of_a_deleted_one() -> None:
    def names() -> Iterator[list[Key]]:
        yield [a_key("ada")]
        yield [a_key("ben")]

    found, now = names(), [LASTS_S]
    labels = CurrentLabels(lambda: next(found), lambda: now[0])
    assert labels("key_ada") == KeyLabels("ada", "")
    assert labels("key_ben") == KeyLabels("key_ben", "")
    now[0] += LASTS_S
    assert labels("key_ben") == KeyLabels("ben", "")
    assert labels("key_ada") == KeyLabels("key_ada", "")
