"""Run all benchmarks or some: python -m bench [PART...] [--rounds N]

Each run is kept as a file in bench/results/runs/. The page bench/results/latest.md and its plots
show all kept runs; the part `report` only writes them again.
"""

from __future__ import annotations

import argparse
import datetime
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench import compare, growth, machine, report, resumable
from bench.results import Run, save

REPORT = "report"


class Runner:
    """A run in progress, which is saved whenever a part of it is done."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self._options, self._folder = options, folder
        self._began = time.monotonic()
        self._load = os.getloadavg()[0]
        now = datetime.datetime.now(datetime.UTC)
        self.run: Run = {
            "started": f"{now:%Y-%m-%dT%H:%M:%SZ}",
            "commit": machine.commit(),
            "about": machine.described(),
            "scale": options.scale,
        }
        self.parts: dict[str, Callable[[], None]] = {
            "compare": self._compare,
            "resumable": lambda: self._resumable("resumable", shared=False),
            "resumable-redis": lambda: self._resumable("resumable-redis", shared=True),
            "growth": self._growth,
            "added": lambda: self._keep("added", growth.added(folder)),
            "start": self._start,
        }

    def _keep(self, part: str, found: Any) -> None:
        self.run[part] = found
        self.run["seconds"] = round(time.monotonic() - self._began)
        self.run["load_average"] = [self._load, os.getloadavg()[0]]
        save(self.run)

    def _compare(self) -> None:
        options = self._options
        systems = compare.systems(options.only)
        self.run["versions"] = systems.versions
        found = []
        for one in compare.compare(
            *(self._folder, options.rounds, systems),
            scenarios=options.scenarios,
            scale=options.scale,
        ):
            found.append(one)
            self._keep("compare", found)

    def _resumable(self, part: str, *, shared: bool) -> None:
        found = resumable.cost(self._folder, self._options.rounds, shared=shared)
        self._keep(part, found)

    def _growth(self) -> None:
        found: dict[str, list[dict[str, float]]] = {}
        for kind, size in growth.growth(self._folder):
            print(kind, size, flush=True)
            found.setdefault(kind, []).append(size._asdict())
            self._keep("growth", found)

    def _start(self) -> None:
        seconds, megabytes = growth.start_up()
        self._keep("start", {"seconds": seconds, "megabytes": megabytes})


def scenarios(text: str) -> list[str]:
    """Return the scenarios of a list of shapes, kinds, and kinds with a shape."""
    kinds = {(kind or "completion-").rstrip("-"): kind for kind in compare.KINDS}
    known = {
        f"{kind}-{shape}": f"{start}{shape}"
        for kind, start in kinds.items()
        for shape in compare.SHAPES
        if f"{start}{shape}" in compare.SCENARIOS
    }
    found = []
    for name in text.split(","):
        fitting = [one for words, one in known.items() if name in (words, *words.split("-"))]
        if not fitting:
            raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(known)}")
        found += fitting
    return list(dict.fromkeys(found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "parts", nargs="*", choices=[*report.PARTS, REPORT, []], help="default: all"
    )
    parser.add_argument("--rounds", type=int, default=3, help="default: 3")
    parser.add_argument(
        "--only", action="append", default=[], metavar="SYSTEM", help="repeatable; default: all"
    )
    parser.add_argument(
        "--scenarios",
        type=scenarios,
        default=[],
        metavar="A,B,...",
        help="shapes (unary, burst, many), kinds (completion, chat, fim, resumable), or kinds with "
        "a shape (chat-unary); default: all",
    )
    parser.add_argument(
        "--scale", type=float, default=1.0, help="a factor for the length of each scenario"
    )
    options = parser.parse_args()
    parts = [part for part in options.parts or report.PARTS if part != REPORT]
    if parts:
        with tempfile.TemporaryDirectory() as name:
            machine.build(Path(name))
            runner = Runner(options, Path(name))
            for part in parts:
                runner.parts[part]()
    report.write()


if __name__ == "__main__":
    main()
