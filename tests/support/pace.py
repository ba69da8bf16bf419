"""Timeouts and time bounds of tests, adapted to the speed of the machine.

- A test waits for a condition. `HANG_S` ends the wait only when something hangs.
- A bound on a time holds on an idle machine. `scaled` stretches it by the machine's pace, which is
  measured once per run: 1 is the machine that the bounds were set on, 3 means that the same work
  takes three times as long.
"""

from __future__ import annotations

import os
import time
from typing import Final

HANG_S: Final = 120.0
"""Seconds until a condition that doesn't come true counts as a hang."""

VARIABLE: Final = "TEST_PACE"
"""The environment variable that passes the measured pace on to child processes."""

ROUNDS: Final = 300
REFERENCE_S: Final = 0.4
"""The seconds that the work of `measured` took on the idle machine that set the bounds."""


def measured() -> float:
    """Return the wall time of a fixed amount of work, as a multiple of REFERENCE_S."""
    began = time.perf_counter()
    for _ in range(ROUNDS):
        sum(range(100_000))
    return (time.perf_counter() - began) / REFERENCE_S


def machine_pace() -> float:
    """Return the pace. Measure it unless this process or its parent has done so."""
    if VARIABLE not in os.environ:
        os.environ[VARIABLE] = f"{max(1.0, measured()):.2f}"
    return float(os.environ[VARIABLE])


def scaled(seconds: float) -> float:
    """Return a time bound for an idle machine, multiplied by this machine's pace."""
    return seconds * machine_pace()


def scaled_cpu(seconds: float) -> float:
    """Return a bound on CPU time that holds under coverage and beside other work.

    Tracing doubles it, and so does a shared core. What such a bound guards against takes ten times
    as long or more.
    """
    return 4 * scaled(seconds)
