"""Tests of concurrency/threads.py: the thread pool and background threads."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from functools import partial

import pytest

from concurrency.threads import BackgroundThread, ThreadPool


def wait(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.001)


def one_after_another(pool: ThreadPool, count: int) -> set[int | None]:
    """Run pieces of work one after another, and return the ids of their threads."""
    threads: list[int | None] = []
    for number in range(count):
        pool.start(lambda: threads.append(threading.get_ident()))
        wait(lambda number=number: len(threads) > number and len(pool._idle) == 1)  # type: ignore[misc]
    return set(threads)


def test_idle_thread_is_reused_for_the_next_piece_of_work() -> None:
    assert len(one_after_another(ThreadPool(), 20)) == 1


def test_blocked_work_does_not_stop_more_work_from_starting() -> None:
    ours, gate = ThreadPool(), threading.Event()
    done: list[int] = []

    def work(number: int) -> None:
        gate.wait(20)
        done.append(number)

    for number in range(100):
        ours.start(partial(work, number))
    gate.set()
    wait(lambda: len(done) == 100)
    assert sorted(done) == list(range(100))


def test_thread_pool_keeps_a_limited_number_of_idle_threads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("concurrency.threads.MOST_IDLE", 3)
    ours, gate = ThreadPool(), threading.Event()
    threads: list[threading.Thread] = []

    def work() -> None:
        threads.append(threading.current_thread())
        gate.wait(20)

    for _ in range(20):
        ours.start(work)
    wait(lambda: len(set(threads)) == 20)
    gate.set()
    wait(lambda: sum(thread.is_alive() for thread in threads) == 3)


def test_failing_work_is_logged_and_does_not_end_its_thread(
    caplog: pytest.LogCaptureFixture,
) -> None:
    ours = ThreadPool()
    ours.start(lambda: 1 / 0)
    wait(lambda: len(ours._idle) == 1)
    assert len(one_after_another(ours, 3)) == 1
    assert [r.levelno for r in caplog.records] == [logging.ERROR]


def test_start_raises_when_the_system_cannot_start_a_thread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(RuntimeError):
        ThreadPool().start(lambda: None)


def test_a_background_thread_is_started_once() -> None:
    starts: list[int] = []
    gate = threading.Event()

    def work() -> None:
        starts.append(threading.get_ident())
        gate.wait(20)

    background = BackgroundThread(work, "background")
    background.join(20)  # a no-op, because the thread is not started yet
    several = [threading.Thread(target=background.start) for _ in range(20)]
    for thread in several:
        thread.start()
    for thread in several:
        thread.join()
    wait(lambda: len(starts) == 1)
    gate.set()
    background.join(20)
    assert len(starts) == 1
