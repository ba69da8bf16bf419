"""Run all benchmarks or some: python -m bench [PART...] [--rounds N]

The results go to bench/results/: latest.md and the plots. A benchmark that doesn't run keeps its
last result.
"""

from __future__ import annotations

import argparse
import datetime
import tempfile
from pathlib import Path

from bench import compare, growth, machine, report, resumable

UNITS = {"unary": "us per request", "burst": "us per event", "many": "us per event"}
MEANINGS = {
    "unary": "Responses without streaming, 32 at a time",
    "burst": "Streams of 100 events without pauses, 32 at a time",
    "many": "500 streams with an event every 50 ms",
}
UNITS |= {f"{compare.CHAT}{name}": unit for name, unit in UNITS.items()}
MEANINGS |= {f"{compare.CHAT}{name}": f"Chats: {text}" for name, text in MEANINGS.items()}


def comparison(folder: Path, rounds: int) -> str:
    found = compare.compare(folder, rounds)
    base = found[compare.BASELINE]
    parts = []
    for scenario, unit in UNITS.items():
        rows = []
        for name, by in found.items():
            f = by[scenario]
            times = (f"{ms:.1f}" for ms in (f.first_p50, f.first_p99, f.gap_p99))
            cost = (f"{f.cpu:.1f}", f"{f.cpu / base[scenario].cpu:.2f}", f"{f.rate:,.0f}")
            rows.append((name, *cost, *times, f"{f.memory:.0f}", int(f.failed)))
        head = ("system", f"CPU, {unit}", f"x {compare.BASELINE}", "per second")
        timing = ("first byte p50, ms", "p99", "gap p99, ms")
        parts.append(f"### {MEANINGS[scenario]}\n\n![]({scenario}.svg)\n")
        parts.append(report.table((*head, *timing, "MB", "failed"), rows))
        cpu = {name: by[scenario].cpu for name, by in found.items()}
        plot = report.bars(f"{MEANINGS[scenario]}: CPU time", cpu, unit)
        (report.RESULTS / f"{scenario}.svg").write_text(plot)
    parts.append(beside_completions(found))
    return f"Medians of {rounds} rounds. Each round runs all systems.\n\n" + "\n".join(parts)


def beside_completions(found: dict[str, dict[str, compare.Figures]]) -> str:
    """Return a table of what a chat costs, compared with a completion of the run."""
    names = [name for name in UNITS if not name.startswith(compare.CHAT)]
    rows = [
        (system, *(f"{by[compare.CHAT + name].cpu / by[name].cpu:.2f}" for name in names))
        for system, by in found.items()
    ]
    head = ("CPU of a chat / of a completion", *(MEANINGS[name] for name in names))
    return f"### Chats beside completions\n\n{report.table(head, rows)}"


def quiet(folder: Path) -> str:
    found = growth.growth(folder)
    rows = [
        (f"{s.streams:,}", *(f"{v:.0f}" for v in s[1:3]), *(f"{v:.1f}" for v in s[3:]))
        for s in found
    ]
    for name, title, unit, values in (
        ("growth-cpu", "CPU time per event, by streams", "us", [s.cpu for s in found]),
        ("growth-memory", "Memory per stream, by streams", "KB", [s.kilobytes for s in found]),
    ):
        points = list(zip((s.streams for s in found), values, strict=True))
        plot = report.lines(title, points, "quiet streams in one worker", unit)
        (report.RESULTS / f"{name}.svg").write_text(plot)
    head = ("streams", "KB per stream", "CPU us per event", "stop p50, ms", "stop p99, ms")
    return "![](growth-cpu.svg)\n![](growth-memory.svg)\n\n" + report.table(head, rows)


def latency(folder: Path) -> str:
    rows = [
        (what, *(f"{value:.2f}" for value in v), f"{v[2] - v[0]:.2f}", f"{v[3] - v[1]:.2f}")
        for what, v in growth.added(folder).items()
    ]
    head = ("ms", "direct p50", "p99", "gateway p50", "p99", "added p50", "added p99")
    return report.table(head, rows)


def start(_folder: Path) -> str:
    seconds, megabytes = growth.start_up()
    at_rest = f"{megabytes:.0f} MB when idle (PSS, including gunicorn's master)"
    return f"{seconds:.2f} s from the command to /ready; {at_rest}.\n"


def resuming(folder: Path, rounds: int) -> str:
    found = resumable.cost(folder, rounds)
    rows = [
        (MEANINGS[scenario], f"{by.plain:.1f}", f"{by.resumable:.1f}", f"{by.ratio:.2f}")
        for scenario, by in found.items()
    ]
    head = ("CPU, us per event", "plain", "resumable", "ratio")
    return f"Medians of {rounds} rounds, in turn.\n\n" + report.table(head, rows)


def resuming_anywhere(folder: Path, rounds: int) -> str:
    rows = []
    for scenario, by in resumable.cost(folder, rounds, shared=True).items():
        sluice = (f"{by.plain:.1f}", f"{by.resumable:.1f}", f"{by.ratio:.2f}")
        redis = (f"{by.redis_plain:.2f}", f"{by.redis_resumable:.2f}")
        rows.append((MEANINGS[scenario], *sluice, *redis))
    head = ("CPU, us per event", "plain", "resumable", "ratio", "Redis, plain", "Redis, resumable")
    return f"Medians of {rounds} rounds, in turn.\n\n" + report.table(head, rows)


TITLES = {
    "compare": "Side by side",
    "resumable": "Resumable streams beside plain ones",
    "resumable-redis": "Resumable streams beside plain ones, with Redis",
    "growth": "Quiet streams: one token per second each, in one worker",
    "added": "Latency that the gateway adds, one request at a time",
    "start": "Start-up",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[*TITLES, []], help="default: all")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    report.RESULTS.mkdir(exist_ok=True)
    now, about = datetime.datetime.now(datetime.UTC), machine.described()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        machine.build(folder)
        works = {
            "compare": lambda: comparison(folder, options.rounds),
            "resumable": lambda: resuming(folder, options.rounds),
            "resumable-redis": lambda: resuming_anywhere(folder, options.rounds),
            "growth": lambda: quiet(folder),
            "added": lambda: latency(folder),
            "start": lambda: start(folder),
        }
        for part in options.parts or TITLES:
            body = f"{now:%Y-%m-%d %H:%M} UTC. {about}.\n\n{works[part]()}"
            (report.RESULTS / f"{part}.md").write_text(body)
            print(body, flush=True)
    pages = [
        f"## {title}\n\n{(report.RESULTS / f'{part}.md').read_text()}"
        for part, title in TITLES.items()
        if (report.RESULTS / f"{part}.md").exists()
    ]
    (report.RESULTS / "latest.md").write_text("# Benchmarks\n\n" + "\n".join(pages))


if __name__ == "__main__":
    main()
