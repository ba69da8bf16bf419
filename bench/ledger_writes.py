"""Measure how much a row of the ledger costs a call, and whether ledger writes stall streams.

usage: ledger_writes.py [CALLS]     (default: 8,000)
The script opens and settles calls under gevent, as the server does, with 1, 8 and 32 calls at a
time. The SQLite ledger is in a temporary directory, and the key has a budget. The script prints the
CPU time per call (user and system, all threads; a call does nothing else), the duration of a call,
and how late a greenlet that sleeps 2 ms at a time wakes up meanwhile.
"""

from __future__ import annotations

from gevent import monkey

monkey.patch_all()

import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from completion import Usage
from ledger import schema
from ledger.database import database_url
from ledger.entries import Budget, Claim, Entry, Settlement
from ledger.ledger import Ledger

NAP_S = 0.002
CLAIM = Claim(Budget(10**14, "2026-01-01"), 10_000, 20_000)


def call(ledger: Ledger) -> None:
    now = schema.now_us()
    entry = Entry(
        id=schema.new_id(),
        request_id="550e8400-e29b-41d4-a716-446655440000",
        stream_id="550e8400-e29b-41d4-a716-446655440001",
        key_id="key_1",
        endpoint="/v1/completions",
        provider="openai",
        model="gpt-4o-mini",
        streamed=False,
        byok=False,
        started_us=now,
        input_tokens=10,
        cost_nano=100,
    )
    ledger.open(entry, CLAIM)
    ledger.settle(
        Settlement(
            entry=entry,
            provider=entry.provider,
            model=entry.model,
            status=200,
            end_reason="completed",
            error_code=None,
            usage=Usage(10, 20),
            cost_nano=12_345,
            attempts=1,
            ended_us=now + 500,
            duration_us=500,
            latency_us=400,
            first_event_us=100,
        )
    )


def measure(ledger: Ledger, calls: int, at_once: int) -> str:
    took: list[float] = []
    late: list[float] = []
    over = threading.Event()

    def caller() -> None:
        for _ in range(calls // at_once):
            began = time.perf_counter()
            call(ledger)
            took.append(time.perf_counter() - began)

    def sleeper() -> None:
        while not over.is_set():
            began = time.perf_counter()
            time.sleep(NAP_S)
            late.append(time.perf_counter() - began - NAP_S)

    callers = [threading.Thread(target=caller) for _ in range(at_once)]
    threading.Thread(target=sleeper).start()
    cpu = time.process_time()
    for thread in callers:
        thread.start()
    for thread in callers:
        thread.join()
    cpu = time.process_time() - cpu
    over.set()
    return (
        f"{at_once:3} at a time: {cpu / len(took) * 1e6:5.0f} us CPU per call; "
        f"call p50 {percentile(took, 0.5):5.1f} p99 {percentile(took, 0.99):5.1f} ms; "
        f"lateness p99 {percentile(late, 0.99):4.1f} max {max(late) * 1e3:4.1f} ms"
    )


def percentile(seconds: list[float], share: float) -> float:
    """Return a percentile in milliseconds."""
    return sorted(seconds)[int(share * (len(seconds) - 1))] * 1e3


def main() -> None:
    calls = int(sys.argv[1]) if len(sys.argv) > 1 else 8_000
    with tempfile.TemporaryDirectory() as directory:
        ledger = Ledger(database_url(None, Path(directory) / "bench.db"))
        ledger.start()
        for at_once in (1, 8, 32):
            print(measure(ledger, calls if at_once > 1 else calls // 4, at_once), flush=True)
        ledger.close()


if __name__ == "__main__":
    main()
