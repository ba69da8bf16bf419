"""The choice of a test's cases that `make test` runs. `make test-all` runs the others."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def sampled(values: Iterable[object], *kept: object) -> list[Any]:
    """Return the values as parameters of a test. Mark all but those in `kept` as thorough.

    Raises:
        ValueError: One of `kept` is no value.
    """
    found = list(values)
    if missing := [value for value in kept if value not in found]:
        raise ValueError(f"no parameter has the value {missing}")
    return [
        pytest.param(value, marks=() if value in kept else pytest.mark.thorough) for value in found
    ]
