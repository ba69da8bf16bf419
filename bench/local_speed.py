"""Measure the embedded model: its tokens per second and its time to the first token.

usage: local_speed.py
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from completion import CompletionRequest, Delta
from providers.base import Target
from providers.hosts import BUILT_IN

TARGET = Target(BUILT_IN[0], "pydoc")


def run(**fields: object) -> tuple[float, int, float]:
    """Return the seconds to the first token, the number of tokens, and the total seconds."""
    from providers.local.call import LocalCall

    request = CompletionRequest(prompts=("The best way to open a file is",), **fields)  # type: ignore[arg-type]
    began, first, count = time.perf_counter(), 0.0, 0
    for batch in LocalCall(request, TARGET).events():
        found = sum(isinstance(event, Delta) for event in batch)
        if found and not count:
            first = time.perf_counter() - began
        count += found
    return first, count, time.perf_counter() - began


def main() -> None:
    first, _, _ = run(max_tokens=10)
    print(f"first token of the process {1000 * first:.1f} ms")
    for fields in ({}, {"temperature": 0.7, "top_p": 0.9}, {"logprobs": 2}, {"stop": ("zzz",)}):
        runs = [run(max_tokens=4096, n=20, seed=seed, **fields) for seed in range(3)]
        speed = sum(r[1] for r in runs) / sum(r[2] for r in runs)
        worst = max(r[0] for r in runs)
        print(f"{fields!s:40} {speed:9.0f} tokens/s, first token within {1000 * worst:.1f} ms")


if __name__ == "__main__":
    main()
