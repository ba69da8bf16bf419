"""request_parts.py: extra parameters never overwrite parameters that the request sets."""

from __future__ import annotations

from providers.request_parts import fill


def test_fill_overwrites_no_value_at_any_depth() -> None:
    asked = {"a": {"b": 1}, "c": 2}
    body = dict(asked)
    fill(body, {"a": {"b": 9, "d": {"e": 3}}, "c": {"f": 4}, "g": None})
    assert body == {"a": {"b": 1, "d": {"e": 3}}, "c": 2, "g": None}
    assert asked == {"a": {"b": 1}, "c": 2}
