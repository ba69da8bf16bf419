"""retry_after.py: conversion of response headers to a delay in seconds."""

from __future__ import annotations

import time
from collections.abc import Mapping

import pytest

from providers.decoding.retry_after import retry_after

DATE = "Sun, 22 Nov 2026 12:00:00 GMT"
WAITS: list[tuple[Mapping[str, str], float | None]] = [
    ({}, None),
    ({"retry-after": "20"}, 20.0),
    ({"retry-after": " 1.5 "}, 1.5),
    ({"retry-after": "0"}, 0.0),
    ({"retry-after": "-3"}, 0.0),
    ({"retry-after": "soon"}, None),
    ({"retry-after": "nan"}, None),
    ({"retry-after": "inf"}, None),
    ({"retry-after-ms": "250", "retry-after": "1"}, 0.25),
    ({"retry-after-ms": "x", "retry-after": "1"}, 1.0),
    ({"retry-after": DATE}, None),
    ({"retry-after": DATE, "date": "yesterday"}, None),
    ({"retry-after": DATE, "date": "Sun, 22 Nov 2026 11:59:00 GMT"}, 60.0),
    ({"retry-after": DATE, "date": "Sun, 22 Nov 2026 13:00:00 GMT"}, 0.0),
    ({"retry-after": DATE, "date": "Sun, 22 Nov 2026 11:59:00 -0000"}, None),
    ({"date": DATE}, None),
    ({"retry-after": "1795348830", "date": DATE}, 30.0),
    ({"retry-after": "1795348830.5", "date": DATE}, 30.5),
    ({"retry-after": "1795348830000", "date": DATE}, 30.0),
    ({"retry-after": "1795348740", "date": DATE}, 0.0),
    ({"retry-after-ms": "1795348830000", "date": DATE}, 30.0),
    ({"retry-after-ms": "1795348830", "date": DATE}, 30.0),
    ({"retry-after-ms": "86400000"}, 86400.0),
    ({"retry-after": "86400"}, 86400.0),
]


@pytest.mark.parametrize(("headers", "seconds"), WAITS)
def test_retry_after_headers_become_seconds(
    headers: Mapping[str, str], seconds: float | None
) -> None:
    assert retry_after(headers) == seconds


@pytest.mark.parametrize("date", [{}, {"date": "yesterday"}])
@pytest.mark.parametrize("unit", [1, 1000])
def test_a_time_since_1970_without_a_date_is_compared_with_the_clock(
    date: Mapping[str, str], unit: int
) -> None:
    found = retry_after({"retry-after": str(round((time.time() + 30) * unit)), **date})
    assert found == pytest.approx(30, abs=2)
