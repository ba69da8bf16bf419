"""threads.py: work that never lets go of its thread, under threads and under gevent."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.ledgers import at_once
from tests.test_layers import MODULES, tree_of
from threads import NativeThread, greenlets

ROOT = Path(__file__).parent.parent


def test_the_result_is_the_work_s() -> None:
    thread = NativeThread()
    assert thread.run(divmod, 7, 2) == (3, 1)
    assert thread.run(int, "ff", base=16) == 255


@pytest.mark.parametrize("failure", [ValueError("x"), SystemExit(3), MemoryError()], ids=repr)
def test_what_the_work_raises_is_raised(failure: BaseException) -> None:
    def work() -> None:
        raise failure

    thread = NativeThread()
    with pytest.raises(type(failure)) as caught:
        thread.run(work)
    assert caught.value is failure
    assert thread.run(int, "1") == 1, "it goes on"


def test_one_works_at_a_time_also_at_first() -> None:
    thread, busy, overlaps = NativeThread(), threading.Lock(), list[int]()

    def work() -> None:
        if not busy.acquire(blocking=False):
            overlaps.append(1)
            return
        threading.Event().wait(0.002)
        busy.release()

    assert at_once(*[lambda: thread.run(work)] * 20) == [None] * 20
    assert overlaps == []


def test_threads_of_the_system_are_no_greenlets() -> None:
    assert not greenlets()


SCRIPT = """
from gevent import monkey
get_ident = __import__("_thread").get_ident
monkey.patch_all()
import json, time
import gevent
from threads import NativeThread, greenlets

native_sleep = monkey.get_original("time", "sleep")
thread = NativeThread()
ticks, over, order, inside, most = 0, False, [], 0, 0

def tick():
    global ticks
    while not over:
        time.sleep(0.01)
        ticks += 1

def work(number):
    global inside, most
    inside += 1
    most = max(most, inside)
    native_sleep(0.05)
    order.append(number)
    inside -= 1
    return get_ident()

def fail():
    raise KeyError("inside")

ticker = gevent.spawn(tick)
jobs = [gevent.spawn(thread.run, work, number) for number in range(6)]
gevent.joinall(jobs)
over = True
try:
    thread.run(fail)
    failure = None
except KeyError as error:
    failure = str(error)
print(json.dumps({
    "greenlets": greenlets(), "threads": len({job.value for job in jobs}),
    "elsewhere": get_ident() not in {job.value for job in jobs},
    "order": order, "most": most, "ticked": ticks >= 10, "failure": failure,
}))
"""


def test_greenlets_go_on_while_a_thread_of_the_system_works_for_them() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), "a failure is raised, and not printed"
    assert json.loads(done.stdout) == {
        "greenlets": True,
        "threads": 1,
        "elsewhere": True,
        "order": [0, 1, 2, 3, 4, 5],
        "most": 1,
        "ticked": True,
        "failure": "'inside'",
    }


PLAIN = frozenset(
    {
        *("add", "append", "clear", "discard", "get", "items", "pop", "popleft", "remove", "set"),
        *("setdefault", "values", "monotonic", "time", "settimeout", "suppress"),
        *("bool", "dict", "deque", "iter", "len", "list", "max", "min", "next"),
        *("Group", "StreamExists", "Unavailable", "too_many", "too_many_of_key"),
    }
)
"""What may be called under a lock that is held briefly; `set` is an event's, which waits for
nobody."""
LOOKED_AT = {
    "cooldown": {"_clock", "_forget_well", "_learn", "_tell", "_trouble"}
    | {"ask", "failed", "key_of", "place_of", "succeeded"},
    "counters": {"_now", "counts", "left", "place_of", "tokens"},
    "providers.switch": {"_shut"},
    "stream": {"_overdue", "end"},
    "streams": {"_may_begin"},
}
"""Functions of ours that were looked at: they neither wait, nor start a thread, nor log."""


def calls_in(tree: ast.AST) -> list[ast.Call]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.Call)]


def test_under_a_brief_lock_nothing_waits() -> None:
    found = {}
    for module in MODULES:
        tree = tree_of(module)
        if "BriefLock()" not in {ast.unparse(node) for node in calls_in(tree)}:
            continue
        called = {
            ast.unparse(call.func).rpartition(".")[2]
            for block in ast.walk(tree)
            if isinstance(block, ast.With)
            and any(ast.unparse(item.context_expr) == "self._lock" for item in block.items)
            for statement in block.body
            for call in calls_in(statement)
        }
        found[module] = called - PLAIN
    assert {module: names for module, names in found.items() if names} == LOOKED_AT


def test_under_gevent_a_brief_lock_is_the_system_s() -> None:
    script = (
        "import _thread; real = _thread.LockType\n"
        "from gevent import monkey; monkey.patch_all()\n"
        "from threads import BriefLock; print(isinstance(BriefLock(), real))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.stdout == "True\n", done.stderr
