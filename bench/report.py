"""The page with the results of all kept runs, and its plots."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

from bench import plots
from bench.plots import Line, Value
from bench.results import (
    BASELINE,
    Run,
    Spread,
    figures,
    load_all,
    ratios,
    rounds_of,
    spread,
    systems_of,
    worst,
)

RESULTS = Path(__file__).parent / "results"
UNITS = {"unary": "us per request", "burst": "us per event", "many": "us per event"}
SHAPES = {
    "unary": "Responses without streaming, 32 at a time",
    "burst": "Streams of 100 events without pauses, 32 at a time",
    "many": "500 streams with an event every 50 ms",
}
KINDS = {
    "": "completions",
    "chat-": "chats",
    "fim-": "fill-in-the-middle",
    "resumable-": "resumable",
}
NAMES = {
    "sluice": "Sluice",
    "sluice before": "Sluice before",
    "sluice, 2 workers": "Sluice, 2 workers",
    "sluice before, 2 workers": "Sluice before, 2 workers",
    BASELINE: "Flask + requests",
    "litellm": "LiteLLM",
    "portkey": "Portkey",
}
OTHER = "plain Flask + requests"
NONE = ""
READING = """\
Each round measures all systems, one after the other, under equal load and in front of one simulated
provider. CPU time is that of all processes of a system. Ratios are to plain Flask + requests
(`bench/peers/plain_flask.py`), measured in the same round, because machines are noisy. A ratio is
the median of the rounds, followed by the range over all rounds in parentheses. With several runs it
is the median of the runs' medians, and the range of these medians is in brackets: quote that range.
"""
SLUICE = """\
Sluice has all its features on: a key with limits and a budget, the ledger, metrics, the log. Two
workers share a Redis, whose CPU time isn't included. Resumable streams are Sluice's only. Sluice
fills in the middle by a template of the model's family; the other systems pass the suffix on.
"""


CHECK = """\
**Not to be quoted:** a run below was shortened (`--scale`), so it checks the tools and measures
little.

"""


def page(runs: Sequence[Run]) -> tuple[str, dict[str, str]]:
    """Return the page in Markdown, and its plots by the name of their file."""
    parts = [f"# Benchmarks\n\n{about(runs)}"]
    drawn: dict[str, str] = {}
    for name, make in PARTS.items():
        having = [run for run in runs if run.get(name)]
        if having:
            body, more = make(having)
            parts.append(body)
            drawn |= more
    return "\n".join(parts), drawn


def write(folder: Path = RESULTS) -> None:
    """Write the page and its plots."""
    text, drawn = page(load_all(folder / "runs"))
    for name, plot in drawn.items():
        (folder / name).write_text(plot)
    (folder / "latest.md").write_text(text)


def about(runs: Sequence[Run]) -> str:
    head = ("run (UTC)", "commit", "parts", "rounds", "load average, start and end", "minutes")
    rows = []
    for run in runs:
        parts = [name for name in PARTS if run.get(name)]
        rounds = str(len(rounds_of(run)) or NONE)
        if run.get("scale", 1) != 1:
            rounds += f", each scenario {run['scale']:g} times as long as usual"
        loads = " and ".join(f"{load:.1f}" for load in run["load_average"])
        minutes = f"{run['seconds'] / 60:.0f}"
        when = run["started"].replace("T", " ").removesuffix("Z")
        rows.append((when, run["commit"], ", ".join(parts), rounds, loads, minutes))
    machines = dict.fromkeys(run["about"] for run in runs)
    text = CHECK if any(run.get("scale", 1) < 1 for run in runs) else ""
    return text + "".join(f"{wrapped(one)}.\n\n" for one in machines) + table(head, rows)


# Side by side


def comparison(runs: Sequence[Run]) -> tuple[str, dict[str, str]]:
    parts = [f"## Side by side\n\n{READING}\n{SLUICE}\n{versions(runs)}"]
    drawn = {}
    for shape, title in SHAPES.items():
        kinds = [kind for kind in KINDS if measured(runs, kind + shape)]
        if not kinds:
            continue
        order = by_cost(runs, shape, kinds)
        values = {
            name_of(system): {
                KINDS[kind]: Value(*found[:3])
                for kind in kinds
                if (found := ratio(runs, system, kind, shape)) is not None
            }
            for system in order
        }
        values = {name: found for name, found in values.items() if found}
        parts.append(f"### {title}\n")
        if values:
            parts.append(f"![CPU time of each system, relative to {OTHER}]({shape}.svg)\n")
            drawn[f"{shape}.svg"] = plots.dots(
                title,
                values,
                f"CPU time {UNITS[shape].removeprefix('us ')}, relative to {OTHER} (logarithmic)",
                reference=f"{OTHER} = 1",
                bold="Sluice",
            )
            parts.append(ratio_table(runs, order, kinds, shape))
        parts.append(detail_table(runs, order, kinds, shape))
        if shape == "many":
            drawn["first-event.svg"] = first_events(runs, order, kinds)
            parts.append("![Time to the first event of 500 streams](first-event.svg)\n")
    parts += [beside_completions(runs), beside_before(runs)]
    return "\n".join(parts), drawn


def ratio(runs: Sequence[Run], system: str, kind: str, shape: str) -> Spread | None:
    """Return the CPU time relative to the baseline, whose streams are never resumable."""
    plain = "" if kind == "resumable-" else kind
    return ratios(runs, (system, kind + shape), (BASELINE, plain + shape))


def measured(runs: Sequence[Run], scenario: str) -> bool:
    return any(figures(runs, system, scenario, "cpu") for system in systems_of(runs))


def by_cost(runs: Sequence[Run], shape: str, kinds: Sequence[str]) -> list[str]:
    """Return the systems, the one with the least CPU time first."""

    def cost(system: str) -> float:
        for kind in kinds:
            if found := figures(runs, system, kind + shape, "cpu"):
                return found.median
        return float("inf")

    return sorted(systems_of(runs), key=cost)


def name_of(system: str) -> str:
    return NAMES.get(system, system)


def versions(runs: Sequence[Run]) -> str:
    found: dict[str, list[str]] = {}
    for run in runs:
        for system, version in run.get("versions", {}).items():
            if version and version not in found.get(system, []):
                found.setdefault(system, []).append(version)
    names = [f"{name_of(system)} {' and '.join(several)}" for system, several in found.items()]
    return wrapped(f"Versions: {', '.join(names)}.") + "\n" if names else ""


def ratio_table(runs: Sequence[Run], order: Sequence[str], kinds: Sequence[str], shape: str) -> str:
    head = (f"CPU time / {OTHER}", *(KINDS[kind] for kind in kinds))
    rows = [
        (name_of(system), *(in_words(ratio(runs, system, kind, shape)) for kind in kinds))
        for system in order
    ]
    return table(head, rows)


def detail_table(
    runs: Sequence[Run], order: Sequence[str], kinds: Sequence[str], shape: str
) -> str:
    head = (
        *("system", "calls", f"CPU, {UNITS[shape]}", "per second", "first byte p50, ms", "p99, ms"),
        *(f"p99 / {OTHER}", "gap p99, ms", "MB", "failed"),
    )
    rows = []
    for kind in kinds:
        for system in order:
            scenario = kind + shape
            if figures(runs, system, scenario, "cpu") is None:
                continue

            def one(
                name: str, form: str = "{:,.1f}", system: str = system, scenario: str = scenario
            ) -> str:
                found = figures(runs, system, scenario, name)
                return NONE if found is None else form.format(found.median)

            plain = "" if kind == "resumable-" else kind
            first = ratios(runs, (system, scenario), (BASELINE, plain + shape), "first_p99")
            failed = f"{worst(runs, system, scenario, 'failed'):.0f}"
            rows.append(
                (
                    *(name_of(system), KINDS[kind], one("cpu"), one("rate", "{:,.0f}")),
                    *(one("first_p50"), one("first_p99"), in_words(first)),
                    *(one("gap_p99"), one("memory", "{:,.0f}"), failed),
                )
            )
    return table(head, rows)


def first_events(runs: Sequence[Run], order: Sequence[str], kinds: Sequence[str]) -> str:
    values: dict[str, dict[str, Value]] = {}

    def last(system: str) -> float:
        found = figures(runs, system, f"{kinds[0]}many", "first_p99")
        return 0 if found is None else found.median

    for system in sorted(order, key=last):
        for name, label in (("first_p50", "p50"), ("first_p99", "p99")):
            found = figures(runs, system, f"{kinds[0]}many", name)
            if found is not None and found.low > 0:
                values.setdefault(name_of(system), {})[label] = Value(*found[:3])
    title = f"Time to the first event of 500 streams ({KINDS[kinds[0]]})"
    return plots.dots(
        title, values, "milliseconds (logarithmic)", bold="Sluice", form=plots.duration_text
    )


def beside_completions(runs: Sequence[Run]) -> str:
    """Return a table of what other calls cost, compared with a completion of the same round."""
    rows = []
    for system in systems_of(runs):
        for kind, label in list(KINDS.items())[1:]:
            several = [ratios(runs, (system, kind + s), (system, s)) for s in SHAPES]
            if any(several):
                rows.append((name_of(system), label, *map(in_words, several)))
    if not rows:
        return ""
    head = ("system", "CPU time / a completion's", *SHAPES.values())
    return f"### Other calls beside completions\n\n{table(head, rows)}"


def beside_before(runs: Sequence[Run]) -> str:
    """Return a table of Sluice's cost, compared with that of the checkout $BEFORE."""
    rows = []
    for system in ("sluice", "sluice, 2 workers"):
        before = system.replace("sluice", "sluice before")
        for kind, label in KINDS.items():
            several = [ratios(runs, (system, kind + s), (before, kind + s)) for s in SHAPES]
            if any(several):
                rows.append((name_of(system), label, *map(in_words, several)))
    if not rows:
        return ""
    head = ("system", "CPU time / that of the checkout before", *SHAPES.values())
    return f"### Beside the checkout before\n\n{table(head, rows)}"


# The other parts


def resuming(runs: Sequence[Run], part: str = "resumable") -> tuple[str, dict[str, str]]:
    """Return the section on resumable streams, without Redis or with it ("resumable-redis")."""
    rows = []
    for shape in dict.fromkeys(shape for run in runs for shape in run[part]):
        found = [run[part][shape] for run in runs if shape in run[part]]
        names = dict.fromkeys(name for one in found for name in one)
        rows += [
            (SHAPES.get(shape, shape), name, in_words(spread([one[name]] for one in found), ".1f"))
            if name != "ratio"
            else (SHAPES.get(shape, shape), name, in_words(spread([one[name]] for one in found)))
            for name in names
        ]
    head = ("streams", "CPU, us per event", "median")
    title = "Resumable streams beside plain ones, in one server and in turn"
    more = "" if part == "resumable" else ", with Redis"
    return f"## {title}{more}\n\n{table(head, rows)}", {}


GROWTH = (
    ("cpu", "CPU time per event", "CPU microseconds per event"),
    ("kilobytes", "Memory per stream", "kilobytes per stream"),
    ("stop_p99", "Time from a stop until the upstream's connection is closed, p99", "milliseconds"),
)
AIM_MS = 50


def growth(runs: Sequence[Run]) -> tuple[str, dict[str, str]]:
    kinds = list(dict.fromkeys(kind for run in runs for kind in run["growth"]))
    counts = sorted(
        {one["streams"] for run in runs for kind in kinds for one in run["growth"][kind]}
    )

    def value(kind: str, count: int, name: str) -> Spread | None:
        return spread(
            [one[name] for one in run["growth"].get(kind, []) if one["streams"] == count]
            for run in runs
        )

    parts = [
        "## Quiet streams: one event per second each, in one worker\n",
        f"Stops are sent while the streams run; the aim for their p99 is {AIM_MS} ms.\n",
    ]
    drawn = {}
    for name, title, unit in GROWTH:
        several = [
            Line(
                f"{kind} streams",
                [
                    (count, Value(*found[:3]))
                    for count in counts
                    if (found := value(kind, count, name)) is not None
                ],
            )
            for kind in kinds
        ]
        file = f"growth-{name.replace('kilobytes', 'memory').replace('_p99', '')}.svg"
        aim = (AIM_MS, f"aim: {AIM_MS} ms") if name == "stop_p99" else None
        drawn[file] = plots.lines(
            title, several, "streams in one worker (logarithmic)", unit, aim=aim
        )
        parts.append(f"![{title}, by the number of streams]({file})\n")
    head = ("streams", "kind", "KB per stream", "CPU us per event", "stop p50, ms", "stop p99, ms")
    names = ("kilobytes", "cpu", "stop_p50", "stop_p99")
    rows = [
        (f"{count:,}", kind, *(in_words(value(kind, count, name), ".1f") for name in names))
        for count in counts
        for kind in kinds
    ]
    return "\n".join([*parts, table(head, rows)]), drawn


def latency(runs: Sequence[Run]) -> tuple[str, dict[str, str]]:
    names = ("direct p50", "p99", "gateway p50", "p99", "added p50", "added p99")
    rows = []
    for what in dict.fromkeys(what for run in runs for what in run["added"]):
        found = [run["added"][what] for run in runs if what in run["added"]]
        values = [(*v, v[2] - v[0], v[3] - v[1]) for v in found]
        rows.append(
            (what, *(in_words(spread([v] for v in column)) for column in zip(*values, strict=True)))
        )
    return (
        f"## Latency that the gateway adds, one request at a time\n\n{table(('ms', *names), rows)}",
        {},
    )


def start(runs: Sequence[Run]) -> tuple[str, dict[str, str]]:
    seconds = in_words(spread([run["start"]["seconds"]] for run in runs))
    megabytes = in_words(spread([run["start"]["megabytes"]] for run in runs), ".0f")
    body = f"{seconds} s from the command to /ready.\n"
    body += f"{megabytes} MB when idle (PSS, including gunicorn's master).\n"
    return f"## Start-up\n\n{body}", {}


Section = Callable[[Sequence[Run]], tuple[str, dict[str, str]]]
PARTS: dict[str, Section] = {
    "compare": comparison,
    "resumable": resuming,
    "resumable-redis": partial(resuming, part="resumable-redis"),
    "growth": growth,
    "added": latency,
    "start": start,
}
"""The sections of the page, by the part of a run that they show."""


def in_words(found: Spread | None, form: str = "") -> str:
    """Return a median with its ranges in words; empty if nothing was measured.

    Args:
        form: the format of the numbers; by default that of a ratio.
    """
    if found is None:
        return NONE

    def text(value: float) -> str:
        return format(value, form) if form else plots.ratio_text(value)

    low, high = text(found.low), text(found.high)
    words = text(found.median) + (f" ({low} to {high})" if low != high else "")
    least, most = text(min(found.runs)), text(max(found.runs))
    if (least, most) not in ((low, high), (most, least)):
        words += f" [{least} to {most}]"
    return words


def wrapped(text: str) -> str:
    return textwrap.fill(text, 99, break_long_words=False, break_on_hyphens=False)


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines) + "\n"
