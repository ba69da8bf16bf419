"""How long a test may wait, and how slow this machine is.

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
"""Carries the pace from the process that measured it to the processes that it starts."""

ROUNDS: Final = 300
REFERENCE_S: Final = 0.4
"""What `measured` took on the machine that the bounds were set on, while it was idle."""


def measured() -> float:
    """Return the wall time of a fixed piece of work, as a multiple of the reference."""
    began = time.perf_counter()
    for _ in range(ROUNDS):
        sum(range(100_000))
    return (time.perf_counter() - began) / REFERENCE_S


def machine_pace() -> float:
    """Return the pace; measure it unless this process or its parent has done so."""
    if VARIABLE not in os.environ:
        os.environ[VARIABLE] = f"{max(1.0, measured()):.2f}"
    return float(os.environ[VARIABLE])


def scaled(seconds: float) -> float:
    """Return a bound that holds on an idle machine, stretched for this one."""
    return seconds * machine_pace()
