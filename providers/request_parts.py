"""Parameters that Sluice has no name for, put into a body beside what was asked for by name.

Rules that hold here: pure; what is there stays, in every depth.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def fill(body: dict[str, Any], extra: Mapping[str, Any]) -> None:
    """Add what `extra` has and `body` lacks; objects that both have are merged likewise."""
    for name, value in extra.items():
        there = body.get(name)
        if name not in body:
            body[name] = value
        elif isinstance(there, dict) and isinstance(value, Mapping):
            body[name] = merged = dict(there)
            fill(merged, value)
