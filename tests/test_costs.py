"""A call and an event cost what they did, within a tenth: see costs.py for what is counted."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.costs import FACES, RECORD

ROOT = RECORD.parent.parent
TOLERANCE = 0.1
ANEW = (
    "If it should be so, write it down: .venv/bin/python -m tests.costs --record, and commit "
    "tests/costs.json. (What costs less is written down too, or it creeps back.)"
)
RECORDED: dict[str, float] = json.loads(RECORD.read_text())


def judged(counted: dict[str, float], recorded: dict[str, float]) -> list[str]:
    """What differs by more than TOLERANCE, in words."""
    return [
        f"{name}: {counted[name]:g} calls of functions, where {of:g} are recorded"
        for name, of in recorded.items()
        if abs(counted[name] - of) > TOLERANCE * of
    ]


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="recorded with Python 3.11")
def test_a_call_and_an_event_cost_what_they_did() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "tests.costs"], cwd=ROOT, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    found = judged(json.loads(run.stdout), RECORDED)
    assert not found, "\n".join([*found, ANEW])


def test_both_faces_are_recorded() -> None:
    kinds = ("call", "event", "event alone")
    assert RECORDED.keys() == {f"{face} {kind}" for face in FACES for kind in kinds}


@pytest.mark.parametrize(("factor", "differs"), [(0.85, True), (0.95, False), (1.0, False)])
def test_more_and_less_than_a_tenth_are_told(factor: float, differs: bool) -> None:
    for counted in (
        {n: of * factor for n, of in RECORDED.items()},
        {n: of / factor for n, of in RECORDED.items()},
    ):
        assert len(judged(counted, RECORDED)) == (len(RECORDED) if differs else 0)
