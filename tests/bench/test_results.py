"""Tests of what several rounds and runs say together."""

from __future__ import annotations

from pathlib import Path

from bench.results import Run, figures, load_all, ratios, save, spread, systems_of, worst


def run_of(*rounds: dict[str, float], scenario: str = "unary") -> Run:
    """Return a run with a CPU time for each system, by round."""
    found = [
        {system: {scenario: {"cpu": cpu, "failed": 0}} for system, cpu in one.items()}
        for one in rounds
    ]
    return {"started": "2026-12-01T10:00:00Z", "compare": found}


def test_a_spread_has_the_median_of_the_runs_medians_and_the_range_of_all_rounds() -> None:
    found = spread([[1.0, 2.0, 9.0], [4.0, 4.0, 5.0], [3.0]])
    assert found == (3.0, 1.0, 9.0, (2.0, 4.0, 3.0))


def test_a_run_without_values_counts_for_nothing() -> None:
    assert spread([[], [2.0]]) == (2.0, 2.0, 2.0, (2.0,))
    assert spread([[], []]) is None


def test_a_ratio_compares_figures_of_one_round() -> None:
    """In the second round the machine was ten times slower, for both systems."""
    runs = [run_of({"one": 50, "other": 100}, {"one": 500, "other": 1000})]
    found = ratios(runs, ("one", "unary"), ("other", "unary"))
    assert found == (0.5, 0.5, 0.5, (0.5,))


def test_a_round_without_one_of_the_systems_has_no_ratio() -> None:
    runs = [run_of({"one": 50}), run_of({"one": 50, "other": 100}, {"other": 100})]
    found = ratios(runs, ("one", "unary"), ("other", "unary"))
    assert found == (0.5, 0.5, 0.5, (0.5,))
    assert ratios(runs, ("one", "burst"), ("other", "burst")) is None


def test_figures_are_those_of_one_system_and_scenario() -> None:
    runs = [run_of({"one": 1, "other": 2}), run_of({"one": 3})]
    assert figures(runs, "one", "unary", "cpu") == (2.0, 1.0, 3.0, (1.0, 3.0))
    assert figures(runs, "one", "many", "cpu") is None
    assert systems_of(runs) == ["one", "other"]
    assert worst(runs, "one", "unary", "cpu") == 3
    assert worst(runs, "one", "many", "failed") == 0


def test_runs_are_kept_and_read_oldest_first(tmp_path: Path) -> None:
    late = {"started": "2026-12-02T08:00:00Z", "start": {"seconds": 1.0}}
    early = {"started": "2026-12-01T20:00:00Z"}
    path = save(late, tmp_path)
    save(early, tmp_path)
    assert path.name == "2026-12-02T080000Z.json"
    assert load_all(tmp_path) == [early, late]
    save(late | {"seconds": 2}, tmp_path)  # the next part of a run is done
    assert load_all(tmp_path) == [early, late | {"seconds": 2}]
