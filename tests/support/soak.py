"""A long run under load: many clients, failing providers, stops and disconnects, both faces.

    .venv/bin/python -m tests.support.soak --minutes 10 --clients 200

The soak prints the worker's memory, sockets and threads meanwhile. At the end it prints all
problems: sockets, threads, streams or memory that were leaked, lost rows, and rows that don't agree
with their client's response. If there are any, the exit status is 1.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from statistics import median

from tests.support import calls, mixture, proofs
from tests.support import fake as fp
from tests.support.books import Row, by_request, ledger_of, rows
from tests.support.fake import FakeProvider
from tests.support.load import Kind, Load, Sent, scripts
from tests.support.servers import Server
from tests.support.watch import Held, held

EVERY_S = 5.0
SPARE_THREADS = 4
"""The number of threads that pools may add without a leak."""
ENV = {"SLUICE_LOG_LEVEL": "error"}
NOBODY = "http://127.0.0.1:1/v1"
LIMITS = "timeouts = { first_event = 2, idle = 2 }\n"
JUNK = fp.event(b"data: {\n\n")
FAULTS: dict[str, tuple[Sequence[fp.Step], bool]] = {
    "bad500": (fp.error(500), False),
    "bad429": (fp.error(429, headers={"Retry-After": "1"}), False),
    "badreset": ([fp.reset()], False),
    "badlate": ([fp.hold()], False),
    "badhead": (fp.error(503), True),
    "badcut": (mixture.begun(calls.EVENT, fp.close()), True),
    "badjunk": (mixture.begun(calls.EVENT, JUNK), True),
    "badstall": (mixture.begun(calls.EVENT, fp.hold()), True),
}
"""The scripts of failing providers, with True for a fault in a stream."""


def config(base_url: str) -> str:
    rows = [calls.toml_row(name, base_url).rstrip() + f"\n{LIMITS}\n" for name in FAULTS]
    return "".join((mixture.config(base_url), *rows, calls.toml_row("refused", NOBODY)))


def kinds() -> list[Kind]:
    """Return all kinds. About one call in twenty fails at its provider."""
    return [*well(), *ended_by_clients(), *failing()]


def well() -> list[Kind]:
    def slowly(
        texts: int, every: float, usage: tuple[int, int], *, chat: bool = False
    ) -> list[fp.Step]:
        return fp.sse(fp.chunks(["some text "] * texts, chat=chat, usage=usage), interval=every)

    unary = fp.answer(fp.body("x" * 200, usage=(5, 7)))
    chat = slowly(10, 0.1, (7, 31), chat=True)
    return [
        Kind("unary", unary, weight=150),
        Kind("slowunary", [fp.sleep(1), *unary], weight=150),
        Kind("stream", slowly(10, 0.1, (7, 30)), stream=True, weight=300),
        Kind("long", slowly(50, 0.1, (9, 99)), stream=True, weight=60),
        Kind("burst", slowly(400, 0, (9, 800)), stream=True, weight=40),
        Kind("chat", chat, stream=True, model="fakechat/m", weight=100),
        Kind("local", model="local/pydoc", more={"max_tokens": 30}, weight=20),
    ]


def ended_by_clients() -> list[Kind]:
    flow = mixture.begun(calls.EVENT, fp.repeat(calls.EVENT.data, 0.1))
    silent = mixture.begun(calls.EVENT, fp.hold())
    gone = "client_gone"
    found = [
        Kind("stopflow", flow, "stopped", stream=True, act="stop"),
        Kind("stopsilent", silent, "stopped", stream=True, act="stop"),
        Kind("leaveflow", flow, gone, 499, stream=True, act="leave"),
        Kind("leavesilent", silent, gone, 499, stream=True, act="leave"),
        Kind("leaveunary", [fp.hold()], gone, 499, act="leave"),
    ]
    return [kind._replace(after=2.0, weight=30) for kind in found]


def failing() -> list[Kind]:
    """Return a kind per fault, each with its own provider, and a kind that succeeds there.

    The result of a call depends on earlier calls, because the circuit breaker of its provider may
    be open.
    """
    good = fp.answer(fp.body("x"))
    found = [
        Kind(name, steps, "any", stream=stream, model=f"{name}/m", weight=6)
        for name, (steps, stream) in FAULTS.items()
    ]
    found += [kind._replace(name=f"beside{kind.name}", steps=good, weight=12) for kind in found]
    found = [kind._replace(stream=kind.stream and kind.steps is not good) for kind in found]
    other = {"fallbacks": ["fake/m"]}
    return [*found, Kind("nobody", good, "any", model="refused/m", more=other, weight=6)]


@dataclass
class Report:
    samples: list[tuple[float, Held, int]] = field(default_factory=list)
    """Seconds since the start, resources of the worker, and the number of calls so far."""
    reasons: Counter[str] = field(default_factory=Counter)
    statuses: Counter[int] = field(default_factory=Counter)
    calls: int = 0
    rows: int = 0
    failures: list[str] = field(default_factory=list)


def run(
    fake: FakeProvider,
    *,
    seconds: float,
    clients: int,
    warm: float,
    growth: float,
    tell: Callable[[str], None] = lambda _: None,
) -> Report:
    """Run the soak and check its results.

    Args:
        warm: The seconds of warm-up, whose memory isn't judged.
        growth: The fraction by which memory may grow after that.
        tell: A function that is called with each line of progress.
    """
    report = Report()
    fake.named(scripts(kinds()))
    server = Server(config(fake.base_url), env=ENV)
    keys = mixture.add_keys(server)
    server.key = keys["main"]
    with server:
        [worker] = server.worker_pids()
        before = held(worker, server.port)
        load = Load(server, keys, kinds(), clients=clients)
        with load.running():
            watch(report, load, fake, lambda: held(worker, server.port), seconds, tell)
        server.wait(lambda: proofs.metric(server, "sluice_streams_active") == 0)
        proofs.wait_settled(server, ledger_of(server))
        server.wait(lambda: not held(worker, server.port).clients)
        after = held(worker, server.port)
        report.failures += leaks(before, after, report, clients=clients, warm=warm, growth=growth)
        if server.worker_pids() != [worker]:
            report.failures.append("the worker was replaced during the soak")
        account(report, load, by_request(rows(ledger_of(server))))
    if "Traceback" in server.output():
        report.failures.append(f"the server logged a traceback:\n{server.output()[-4000:]}")
    return report


def watch(
    report: Report,
    load: Load,
    fake: FakeProvider,
    look: Callable[[], Held],
    seconds: float,
    tell: Callable[[str], None],
) -> None:
    """Sample the worker's resources every EVERY_S seconds during the load."""
    began = time.monotonic()
    for number in count(1):
        time.sleep(max(0.0, began + number * EVERY_S - time.monotonic()))
        at, now = time.monotonic() - began, look()
        report.samples.append((at, now, len(load.sent)))
        tell(
            f"{at:5.0f} s  {now.rss / 1e6:6.1f} MB  {now.sockets:4} sockets, "
            f"{now.clients:4} of clients  {now.threads:3} threads  {len(load.sent):7} calls"
        )
        fake.forget()
        for sent in load.sent:
            sent.answer = None
        if at >= seconds:
            return


def leaks(
    before: Held, after: Held, report: Report, *, clients: int, warm: float, growth: float
) -> list[str]:
    """Return the resources that the worker leaked.

    Idle connections to the provider aren't leaks, if there are no more than clients.
    """
    found = []
    if after.sockets > before.sockets + clients or after.clients:
        found.append(f"sockets: {before.sockets} before, {after.sockets} after, {after}")
    if after.threads > before.threads + SPARE_THREADS:
        found.append(f"threads: {before.threads} before, {after.threads} after")
    memory = [sample.rss for at, sample, _ in report.samples if at >= warm]
    base, last = median(memory[:3]), median(memory[-3:])
    if max(last, after.rss) > base * (1 + growth):
        found.append(f"memory: {base / 1e6:.1f} MB when warm, {last / 1e6:.1f} MB at the end")
    return found


def account(report: Report, load: Load, found: dict[str, Row]) -> None:
    report.calls, report.rows = len(load.sent), len(found)
    report.reasons = Counter(row["end_reason"] for row in found.values())
    report.statuses = Counter(row["status"] for row in found.values())
    ids = {sent.id for sent in load.sent}
    for what, missing in (("lost", ids - set(found)), ("unknown", set(found) - ids)):
        if missing:
            report.failures.append(f"{len(missing)} rows are {what}: {sorted(missing)[:5]}")
    wrong = [problem for sent in load.sent if (problem := odd(sent, found.get(sent.id)))]
    report.failures += [f"{len(wrong)} calls went wrong", *wrong[:10]] if wrong else []


def odd(sent: Sent, row: Row | None) -> str:
    """Return what is wrong with a call and its row, or ""."""
    if row is None:
        return ""  # already reported as lost
    if sent.failure or (sent.kind.act != "leave" and not sent.whole):
        return f"{sent}: the response was cut off"
    if sent.kind.reason != "any":
        differences = proofs.differences(sent, row)
        return f"{sent}: {differences}" if differences else ""
    if sent.status != row["status"]:
        return f"{sent}: the row says {row['status']}"
    if row["end_reason"] not in ("completed", "provider_error", "deadline"):
        return f"{sent}: {row['end_reason']}"
    return ""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--clients", type=int, default=200)
    options = parser.parse_args(arguments)
    with FakeProvider.start() as fake:
        report = run(
            fake,
            seconds=options.minutes * 60,
            clients=options.clients,
            warm=min(60.0, options.minutes * 20),
            growth=0.1,
            tell=lambda line: print(line, flush=True),
        )
    print(f"{report.calls} calls, {report.rows} rows")
    print("ended:", dict(report.reasons), "status:", dict(report.statuses))
    print("\n".join(report.failures) or "No problems found.")
    return 1 if report.failures else 0


if __name__ == "__main__":
    sys.exit(main())
