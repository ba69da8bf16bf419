"""The kept results of the benchmarks: one JSON file per run, and what several runs say together.

- A run is written after each round and each part, so an interrupted run keeps what it has measured.
- Figures of different rounds are compared as ratios within a round. A machine that is slower at
  another hour is slower for all systems of the round.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

RUNS = Path(__file__).parent / "results" / "runs"
BASELINE = "plain-flask"

Round: TypeAlias = dict[str, dict[str, dict[str, float]]]
"""The figures of one round: by system, by scenario, by name."""
Run: TypeAlias = dict[str, Any]
"""A run: when and where it was measured, and the results of the parts that it ran."""


class Spread(NamedTuple):
    """The results of several rounds."""

    median: float
    """The median of the runs' medians."""
    low: float
    """The lowest value of any round."""
    high: float
    """The highest value of any round."""
    runs: tuple[float, ...]
    """The median of each run."""


def spread(runs: Iterable[Sequence[float]]) -> Spread | None:
    """Return the spread of each run's values, or None if there are none."""
    found = [values for values in runs if values]
    if not found:
        return None
    medians = tuple(statistics.median(values) for values in found)
    everything = [value for values in found for value in values]
    return Spread(statistics.median(medians), min(everything), max(everything), medians)


def save(run: Run, folder: Path = RUNS) -> Path:
    """Write a run to its file, whose name is the time of its start."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{run['started'].replace(':', '')}.json"
    path.write_text(json.dumps(run, indent=1) + "\n")
    return path


def load_all(folder: Path = RUNS) -> list[Run]:
    """Return all kept runs, oldest first."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]


def rounds_of(run: Run) -> list[Round]:
    found: list[Round] = run.get("compare", [])
    return found


def figures(runs: Iterable[Run], system: str, scenario: str, name: str) -> Spread | None:
    """Return the spread of a figure."""

    def of_round(found: Round) -> float | None:
        return found.get(system, {}).get(scenario, {}).get(name)

    return over_rounds(runs, of_round)


def ratios(
    runs: Iterable[Run], one: tuple[str, str], other: tuple[str, str], name: str = "cpu"
) -> Spread | None:
    """Return the spread of a ratio of two figures of each round.

    Args:
        one: a system and a scenario.
        other: the system and the scenario that it is compared with.
        name: the name of the figure.
    """

    def of_round(found: Round) -> float | None:
        above, below = (
            found.get(system, {}).get(scenario, {}).get(name) for system, scenario in (one, other)
        )
        return above / below if above is not None and below else None

    return over_rounds(runs, of_round)


def over_rounds(runs: Iterable[Run], value: Callable[[Round], float | None]) -> Spread | None:
    several = ([value(found) for found in rounds_of(run)] for run in runs)
    return spread([v for v in values if v is not None] for values in several)


def systems_of(runs: Iterable[Run]) -> list[str]:
    """Return the systems that any round measured, in the order of their first appearance."""
    names = (name for run in runs for found in rounds_of(run) for name in found)
    return list(dict.fromkeys(names))


def worst(runs: Iterable[Run], system: str, scenario: str, name: str) -> float:
    """Return the highest value of a figure in any round; 0 if there is none."""
    found = figures(runs, system, scenario, name)
    return 0 if found is None else found.high
