"""Tests of concurrency/native.py: blocking work, with threads and with gevent."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import threading

import pytest

from concurrency.native import NativeThread, OneWaiterEvent, greenlets
from tests.project.test_layers import MODULES, tree_of
from tests.support.ledgers import at_once
from tests.support.pace import HANG_S
from tests.support.paths import ROOT


def test_run_returns_the_result_of_the_work() -> None:
    thread = NativeThread()
    assert thread.run(divmod, 7, 2) == (3, 1)
    assert thread.run(int, "ff", base=16) == 255


@pytest.mark.parametrize("failure", [ValueError("x"), SystemExit(3), MemoryError()], ids=repr)
def test_run_raises_the_exception_of_the_work(failure: BaseException) -> None:
    def work() -> None:
        raise failure

    thread = NativeThread()
    with pytest.raises(type(failure)) as caught:
        thread.run(work)
    assert caught.value is failure
    assert thread.run(int, "1") == 1, "the thread still works"


def test_a_native_thread_runs_one_piece_of_work_at_a_time() -> None:
    thread, busy, overlaps = NativeThread(), threading.Lock(), list[int]()

    def work() -> None:
        if not busy.acquire(blocking=False):
            overlaps.append(1)
            return
        threading.Event().wait(0.002)
        busy.release()

    assert at_once(*[lambda: thread.run(work)] * 20) == [None] * 20
    assert overlaps == []


def test_greenlets_is_false_without_gevent() -> None:
    assert not greenlets()


SCRIPT = """
from gevent import monkey
get_ident = __import__("_thread").get_ident
monkey.patch_all()
import json, time
import gevent
from concurrency.native import NativeThread, OneWaiterEvent, greenlets

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


def test_greenlets_run_while_a_native_thread_works() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=HANG_S,
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
        *(
            "add",
            "append",
            "clear",
            "discard",
            "extend",
            "get",
            "items",
            "pop",
            "popleft",
            "remove",
            "set",
        ),
        *("setdefault", "values", "monotonic", "time", "settimeout", "suppress"),
        *("bool", "dict", "deque", "iter", "len", "list", "max", "min", "next"),
        *("enumerate", "tuple"),
        *("Group", "StreamExists", "Unavailable", "too_many", "too_many_of_key"),
    }
)
"""The functions that may be called under a BriefLock. `set` is the method of an event, which never
waits."""
LOOKED_AT = {
    "routing.circuit_breaker": {
        "_clock",
        "_forget_closed",
        "_apply",
        "_announce",
        "_circuit",
        "_limit",
        "_limited_until",
    }
    | {"enter", "failed", "is_host", "keys_of", "left", "open", "succeeded", "target_key"},
    "quota.memory": {"Hold", "_now", "counts", "left", "refusal_of", "tokens", "window_of"},
    "providers.transport.abort": {"_shut"},
    "streams.stream": {"_late", "end", "go_to"},
    "streams.registry": {"_may_begin", "later"},
    "streams.replay_store": {"_count", "_drop", "_is_full", "_make_room", "_oldest", "trim"},
}
"""Functions of Sluice that were reviewed: they neither wait nor start a thread nor log."""


def calls_in(tree: ast.AST) -> list[ast.Call]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.Call)]


def test_code_under_a_brief_lock_calls_nothing_that_waits() -> None:
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


def test_a_brief_lock_under_gevent_is_a_native_lock() -> None:
    script = (
        "import _thread; real = _thread.LockType\n"
        "from gevent import monkey; monkey.patch_all()\n"
        "from concurrency.native import BriefLock; print(isinstance(BriefLock(), real))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.stdout == "True\n", done.stderr


def test_an_event_without_gevent_is_that_of_threading() -> None:
    assert isinstance(OneWaiterEvent(), threading.Event)


EVENTS = """
from gevent import monkey
monkey.patch_all()
import gevent
from concurrency.native import OneWaiterEvent

seen = []

def waiter(event, name):
    event.wait()
    seen.append(name)

def started(name):
    event = OneWaiterEvent()
    job = gevent.spawn(waiter, event, name)
    gevent.sleep(0)
    return event, job

early = OneWaiterEvent()
early.set()
waiter(early, "set before")

event, job = started("set twice")
event.set(), event.set()
seen.append("the setter goes on")
job.join()

event, job = started("set again after a clear")
event.set(), event.clear()
gevent.sleep(0.01)
seen.append("still waiting" if not job.dead else "woken")
event.set()
job.join()

event, job = started("killed")
event.set()
job.kill(block=False)
job.join()
gevent.sleep(0.01)

event, job = started("killed while it waits")
job.kill()
event.set()
gevent.sleep(0.01)
print(seen)
"""


def test_an_event_wakes_its_greenlet_once_and_none_that_was_killed() -> None:
    done = subprocess.run(
        [sys.executable, "-c", EVENTS],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=HANG_S,
        check=False,
    )
    assert done.stderr == ""
    found = ast.literal_eval(done.stdout)
    assert found[:5] == [
        "set before",
        "the setter goes on",
        "set twice",
        "still waiting",
        "set again after a clear",
    ]
    assert found[5:] in ([], ["killed"]), "the event came first, or the exception"
