"""request_parts.py: extra parameters never overwrite parameters that the request sets."""

from __future__ import annotations

import time
from typing import Any

import pytest

from errors import InvalidRequest
from providers.request_parts import merge


def test_merge_adds_members_at_any_depth_and_changes_no_other_object() -> None:
    asked = {"a": {"b": 1}, "c": 2}
    extra = {"a": {"b": 1, "d": {"e": 3}}, "c": None, "g": None}
    body: dict[str, Any] = dict(asked)
    merge(body, extra)
    merge(body, {"a": {"d": {"f": 4}}})
    assert body == {"a": {"b": 1, "d": {"e": 3, "f": 4}}, "c": 2, "g": None}
    assert asked == {"a": {"b": 1}, "c": 2}
    assert extra == {"a": {"b": 1, "d": {"e": 3}}, "c": None, "g": None}


@pytest.mark.parametrize(
    ("extra", "name"),
    [
        ({"c": 3}, "c"),
        ({"c": {"x": 1}}, "c"),
        ({"a": {"b": 9}}, "b"),
        ({"a": None}, "a"),
        ({"a": [1]}, "a"),
        ({"kept": 1}, "kept"),
    ],
)
def test_merge_refuses_what_contradicts_the_body(extra: dict[str, Any], name: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        merge({"a": {"b": 1}, "c": 2}, extra, {"kept"})
    assert caught.value.param == name


def test_many_fields_are_merged_in_time_proportional_to_their_number() -> None:
    def cost(number: int) -> float:
        extra = {f"f{index}": {"x": index} for index in range(number)}
        began = time.process_time()
        merge({"f0": {"y": 1}}, extra)
        return time.process_time() - began

    assert cost(100_000) < 100 * max(cost(10_000), 0.001)
