"""Tests that the cost of a call and of an event stays within a tenth of the recorded cost.

tests/support/costs.py says what is counted.
"""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.support.costs import FACES, RECORD
from tests.support.paths import ROOT

TOLERANCE = 0.1
ANEW = (
    "If the change is intended, record the new counts and commit tests/costs.json: "
    ".venv/bin/python -m tests.support.costs --record. (Record lower counts too. Otherwise they "
    "creep up again unnoticed.)"
)
RECORDED: dict[str, float] = json.loads(RECORD.read_text())


def judged(counted: dict[str, float], recorded: dict[str, float]) -> list[str]:
    """Return a message for each count that differs by more than TOLERANCE."""
    return [
        f"{name}: {counted[name]:g} function calls, but {of:g} are recorded"
        for name, of in recorded.items()
        if abs(counted[name] - of) > TOLERANCE * of
    ]


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="recorded with Python 3.11")
def test_a_call_and_an_event_stay_within_a_tenth_of_the_recorded_cost() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "tests.support.costs"], cwd=ROOT, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    found = judged(json.loads(run.stdout), RECORDED)
    assert not found, "\n".join([*found, ANEW])


def test_costs_are_recorded_for_both_apis() -> None:
    kinds = ("call", "event", "event alone")
    assert RECORDED.keys() == {f"{face} {kind}" for face in FACES for kind in kinds}


@pytest.mark.parametrize(("factor", "differs"), [(0.85, True), (0.95, False), (1.0, False)])
def test_a_cost_difference_above_a_tenth_is_reported(factor: float, differs: bool) -> None:
    for counted in (
        {n: of * factor for n, of in RECORDED.items()},
        {n: of / factor for n, of in RECORDED.items()},
    ):
        assert len(judged(counted, RECORDED)) == (len(RECORDED) if differs else 0)
