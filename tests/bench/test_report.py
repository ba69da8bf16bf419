"""Tests of the page with the results and of its plots."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from bench import report
from bench.plots import Line, Value, decade, dots, lines, nice
from bench.report import in_words, page, write
from bench.results import Run, Spread, save

FIGURES = {"rate": 10.0, "first_p50": 1.0, "first_p99": 2.0, "gap_p99": 3.0, "memory": 90.0}


def figures(cpu: float, failed: int = 0) -> dict[str, float]:
    return FIGURES | {"cpu": cpu, "failed": failed}


def run_of(started: str, ours: float) -> Run:
    one = {
        "nginx": {"unary": figures(10), "many": figures(10)},
        "litellm": {"unary": figures(20_000, failed=7), "chat-unary": figures(18_000)},
        "sluice": {
            "unary": figures(ours),
            "chat-unary": figures(550),
            "many": figures(50),
            "resumable-many": figures(60),
        },
        "plain-flask": {"unary": figures(1000), "chat-unary": figures(1100), "many": figures(100)},
    }
    size = {"kilobytes": 50.0, "cpu": 60.0, "stop_p50": 2.0, "stop_p99": 5.0}
    return {
        "started": started,
        "commit": "abc1234",
        "about": "2 x Processor",
        "scale": 1.0,
        "seconds": 600,
        "load_average": [0.1, 2.0],
        "versions": {"nginx": "1.22.1", "litellm": "1.108.7"},
        "compare": [one],
        "resumable": {"burst": {"plain": 8.0, "resumable": 9.0, "ratio": 1.13}},
        "growth": {
            kind: [{"streams": count, **size} for count in (10, 5000)]
            for kind in ("plain", "resumable")
        },
        "added": {"unary": [0.2, 0.3, 1.8, 2.5]},
        "start": {"seconds": 0.7, "megabytes": 86.0},
    }


@pytest.fixture
def runs() -> list[Run]:
    return [run_of("2026-12-01T10:00:00Z", 500), run_of("2026-12-02T10:00:00Z", 460)]


def rows_of(text: str, head: str) -> list[list[str]]:
    """Return the rows of the first table after a heading."""
    table = re.search(r"^\|.*\n(?:\|.*\n)+", text[text.index(head) :], re.MULTILINE)
    assert table is not None
    lines = table[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_systems_are_sorted_by_cost_and_compared_with_plain_flask(runs: list[Run]) -> None:
    text, _ = page(runs)
    found = rows_of(text, "### Responses without streaming")
    assert [row[0] for row in found] == ["nginx", "Sluice", "Flask + requests", "LiteLLM"]
    assert found[1][1] == "0.48 (0.46 to 0.50)"
    assert found[3] == ["LiteLLM", "20.00", "16.36"]


def test_resumable_streams_are_compared_with_plain_ones_of_flask(runs: list[Run]) -> None:
    text, _ = page(runs)
    found = {row[0]: row for row in rows_of(text, "### 500 streams")}
    assert found["Sluice"] == ["Sluice", "0.50", "0.60"]
    assert found["nginx"] == ["nginx", "0.10", ""]
    beside = rows_of(text, "### Other calls beside completions")
    assert ["Sluice", "resumable", "", "", "1.20"] in beside


def test_a_checkout_before_is_compared_in_a_table_of_its_own(runs: list[Run]) -> None:
    assert "Beside the checkout before" not in page(runs)[0]
    for run in runs:
        run["compare"][0]["sluice before"] = {"chat-unary": figures(1100)}
    found = rows_of(page(runs)[0], "### Beside the checkout before")
    assert found == [["Sluice", "chats", "0.50", "", ""]]


def test_failed_responses_are_shown(runs: list[Run]) -> None:
    text, _ = page(runs)
    [line] = [line for line in text.splitlines() if line.startswith("| LiteLLM | completions")]
    assert line.endswith("| 7 |")


def test_the_page_names_each_run_and_the_versions(runs: list[Run]) -> None:
    text, _ = page([runs[0] | {"scale": 0.25}, runs[1]])
    found = rows_of(text, "# Benchmarks")
    assert [row[0] for row in found] == ["2026-12-01 10:00:00", "2026-12-02 10:00:00"]
    assert found[0][3] == "1, each scenario 0.25 times as long as usual"
    assert "Versions: nginx 1.22.1, LiteLLM 1.108.7." in text


def test_a_page_with_a_shortened_run_is_not_to_be_quoted(runs: list[Run]) -> None:
    assert "Not to be quoted" not in page(runs)[0]
    assert "Not to be quoted" in page([runs[0] | {"scale": 0.25}, runs[1]])[0]


def test_a_part_without_results_is_left_out(runs: list[Run]) -> None:
    del runs[0]["growth"], runs[1]["growth"]
    text, drawn = page(runs)
    assert "Quiet streams" not in text
    assert "## Start-up" in text
    assert not any(name.startswith("growth") for name in drawn)


def test_a_round_without_plain_flask_still_has_its_figures(runs: list[Run]) -> None:
    for run in runs:
        del run["compare"][0]["plain-flask"]
    text, drawn = page(runs)
    assert "| Sluice | completions | 480.0 |" in text
    assert "unary.svg" not in drawn


def test_the_page_and_its_plots_are_written(tmp_path: Path, runs: list[Run]) -> None:
    for run in runs:
        save(run, tmp_path / "runs")
    write(tmp_path)
    pictures = re.findall(r"!\[.+\]\((.+)\)", (tmp_path / "latest.md").read_text())
    assert sorted(pictures) == sorted(path.name for path in tmp_path.glob("*.svg"))
    for name in pictures:
        ElementTree.parse(tmp_path / name)


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (None, ""),
        (Spread(0.5, 0.5, 0.5, (0.5,)), "0.50"),
        (Spread(0.5, 0.4, 0.6, (0.5,)), "0.50 (0.40 to 0.60)"),
        (Spread(0.5, 0.4, 0.6, (0.45, 0.5, 0.52)), "0.50 (0.40 to 0.60) [0.45 to 0.52]"),
        (Spread(0.5, 0.4, 0.6, (0.4, 0.6)), "0.50 (0.40 to 0.60)"),
    ],
)
def test_a_median_is_followed_by_its_ranges(found: Spread | None, text: str) -> None:
    assert in_words(found) == text


def test_dots_have_a_label_for_each_value_and_each_group() -> None:
    plot = dots(
        "Cost",
        {"Sluice": {"calls": Value(0.5, 0.4, 0.6)}, "A & B": {"calls": Value(30, 30, 30)}},
        "ratio",
        reference="plain = 1",
        bold="Sluice",
    )
    words = texts(plot)
    assert {"Cost", "Sluice", "A & B", "0.50 (0.40 to 0.60)", "30.00", "plain = 1"} <= words
    assert {"0.2", "1", "10"} <= words  # the axis


def test_lines_show_their_points_the_aim_and_the_axes() -> None:
    several = [
        Line("plain", [(10, Value(4, 3, 5)), (5000, Value(9, 9, 9))]),
        Line("resumable", [(10, Value(6, 6, 6)), (5000, Value(20, 20, 20))]),
    ]
    words = texts(lines("Stops", several, "streams", "ms", aim=(50, "aim: 50 ms")))
    assert {"plain", "resumable", "streams", "ms", "aim: 50 ms", "10", "5,000", "60"} <= words
    assert {"4", "9", "6", "20"} <= words


def texts(plot: str) -> set[str]:
    return {"".join(one.itertext()) for one in ElementTree.fromstring(plot).iter() if one.text}


def test_an_axis_ends_at_a_round_number() -> None:
    assert (decade(0.013), decade(30, up=True)) == (0.01, 50)
    assert [nice(step) for step in (0.9, 1.3, 3, 7)] == [1, 2, 5, 10]


def test_every_section_of_the_page_has_a_part_of_the_command() -> None:
    assert [*report.PARTS] == [
        "compare",
        "resumable",
        "resumable-redis",
        "growth",
        "added",
        "start",
    ]
