"""The fault matrix: dialects x faults x unary or stream x with or without a fallback.

- Each cell is a call through a real server. Its response, its requests at the provider and its row
  are checked.
- All cells run at once. Each has its own provider, so no cell opens another cell's circuit breaker.
"""

from __future__ import annotations

import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import pytest

from tests.support import fake as fp
from tests.support.books import Row, assert_sound, by_request, ledger_of, open_rows, rows
from tests.support.calls import COMPLETIONS, kinds
from tests.support.fake import FakeProvider
from tests.support.faults import (
    DIALECTS,
    EXCEPTIONS,
    FAULTS,
    HEALTHY,
    HEALTHY_TEXT,
    LIMIT_S,
    RETRIES,
    SLOW,
    Expected,
    expected,
)
from tests.support.pace import HANG_S
from tests.support.raw_client import Frame
from tests.support.servers import Server

pytestmark = pytest.mark.thorough

AT_ONCE = 24
CHAT = "/api/v1/chat/completions"
ROW = '[providers.{}]\ndialect = "{}"\nbase_url = "{}"\ncompletions = {}\n{}\n'
LIMITS = f"timeouts = {{ first_event = {LIMIT_S}, idle = {LIMIT_S} }}\n"
WHOLE, CUT = ["finish", "usage_final", "DONE"], ["usage_final", "error"]
NOBODY = "http://127.0.0.1:1"


class Cell(NamedTuple):
    dialect: str
    fault: str
    stream: bool
    fallback: bool

    @property
    def name(self) -> str:
        mode = "stream" if self.stream else "whole"
        return f"{self.dialect}-{self.fault}-{mode}" + ("-fallback" if self.fallback else "")

    @property
    def path(self) -> str:
        return CHAT if DIALECTS[self.dialect].passes else COMPLETIONS

    @property
    def healthy(self) -> str:
        """The name of the cell's fallback."""
        chat = "chat-" if DIALECTS[self.dialect].passes else ""
        return f"{HEALTHY}-{chat}{'stream' if self.stream else 'whole'}"

    @property
    def expected(self) -> Expected:
        fault = FAULTS[self.fault]
        place = (self.dialect, self.fault, self.stream)
        outcome = EXCEPTIONS.get(place, fault.stream if self.stream else fault.whole)
        return expected(outcome, fallback=self.fallback)

    @property
    def text(self) -> str:
        """The text that the client gets: all of it, its first piece, or nothing."""
        first, whole = DIALECTS[self.dialect].text
        if self.expected.by_fallback:
            return HEALTHY_TEXT
        if self.expected.code is None:
            return whole if self.stream else FAULTS[self.fault].text or whole
        if (self.dialect, self.fault, self.stream) in EXCEPTIONS:
            return whole
        return first if self.expected.status == 200 else ""


CELLS = [
    Cell(dialect, fault, stream, fallback)
    for dialect in DIALECTS
    for fault in FAULTS
    for stream in (False, True)
    for fallback in (False, True)
]


class Answer(NamedTuple):
    """The client's response. `ended` has the kinds of a stream's frames after its text."""

    status: int
    headers: dict[str, str]
    text: str
    code: str | None
    provider: str | None
    ended: list[str]
    details: dict[str, Any]


class Run(NamedTuple):
    answers: dict[str, Answer]
    rows: dict[str, Row]
    reached: Counter[str]


def config(fake: FakeProvider) -> str:
    found = [
        ROW.format(
            cell.name,
            DIALECTS[cell.dialect].dialect,
            (NOBODY if FAULTS[cell.fault].refused else fake.origin) + f"/{cell.name}/v1",
            str(DIALECTS[cell.dialect].completions).lower(),
            LIMITS if FAULTS[cell.fault].quick else "",
        )
        for cell in CELLS
    ]
    healthy = {cell.healthy for cell in CELLS}
    found += [ROW.format(n, "openai", f"{fake.origin}/{n}/v1", "true", "") for n in healthy]
    return "".join(found)


def arm(fake: FakeProvider) -> None:
    scripts: dict[str, Any] = {
        cell.name: FAULTS[cell.fault].scripts(DIALECTS[cell.dialect], cell.stream) for cell in CELLS
    }
    for name, chat in ((HEALTHY, False), (f"{HEALTHY}-chat", True)):
        frames = fp.chunks([HEALTHY_TEXT], usage=(3, 5), chat=chat)
        scripts[f"{name}-whole"] = [fp.answer(fp.body(HEALTHY_TEXT, chat=chat))]
        scripts[f"{name}-stream"] = [fp.sse(frames)]
    fake.placed(scripts)


def play(server: Server, cell: Cell) -> Answer:
    try:
        return ask(server, cell)
    except (OSError, EOFError) as failure:  # only this cell must fail
        return Answer(0, {}, repr(failure), None, None, [], {})


def ask(server: Server, cell: Cell) -> Answer:
    fields: dict[str, Any] = {"model": f"{cell.name}/m", "stream": cell.stream}
    asked = [{"role": "user", "content": "Say it"}]
    fields |= {"messages": asked} if cell.path == CHAT else {"prompt": "Say it"}
    if cell.fallback:
        fields["fallbacks"] = [f"{cell.healthy}/m"]
    with server.client(timeout=HANG_S) as client:
        client.request("POST", cell.path, fields, {"X-Request-ID": cell.name})
        head = client.read_head()
        if head.headers["content-type"].startswith("text/event-stream"):
            return of_stream(head.status, head.headers, list(client.frames()))
        found = client.json()
    code, provider = found.get("code"), found.get("provider")
    details = found.get("details") or {}
    return Answer(head.status, head.headers, found["data"], code, provider, [], details)


def of_stream(status: int, headers: dict[str, str], frames: list[Frame]) -> Answer:
    events = [frame.json for frame in frames if frame.data not in (None, "[DONE]")]
    texts = [part["data"] for part in events if part["type"] == "content"]
    code = events[-1].get("code")
    provider = events[0]["provider"]
    ended = [kind for kind in kinds(frames) if kind not in ("usage_start", "content", "comment")]
    details = events[-1].get("details") or {}
    return Answer(status, headers, "".join(texts), code, provider, ended, details)


@pytest.fixture(scope="module")
def run(fake_process: FakeProvider) -> Run:
    fake_process.reset()
    arm(fake_process)
    env = {"SLUICE_RETRIES": str(RETRIES), "SLUICE_LOG_LEVEL": "error"}
    with Server(config(fake_process), env=env) as server, ThreadPoolExecutor(AT_ONCE) as pool:
        answers = dict(
            zip(map(name, CELLS), pool.map(lambda c: play(server, c), CELLS), strict=True)
        )
        place = ledger_of(server)
        server.wait(lambda: not open_rows(place))
        assert_sound(place)
        found = by_request(rows(place))
        reached = Counter(request.path.split("/")[1] for request in fake_process.requests)
    fake_process.reset()
    assert "Traceback" not in server.output()
    return Run(answers, found, reached)


def name(cell: Cell) -> str:
    return cell.name


def test_each_call_of_the_fault_matrix_has_one_ledger_row(run: Run) -> None:
    assert set(run.rows) == {cell.name for cell in CELLS}


@pytest.mark.parametrize("cell", CELLS, ids=name)
def test_each_fault_gives_the_expected_answer_attempts_and_ledger_row(cell: Cell, run: Run) -> None:
    wanted, answer, row = cell.expected, run.answers[cell.name], run.rows[cell.name]
    assert (answer.status, answer.code) == (wanted.status, wanted.code)
    assert answer.text == cell.text
    assert answer.headers["x-sluice-attempts"] == str(len(wanted.tries))
    assert_row(cell, row)
    own = len(wanted.tries) - wanted.by_fallback
    assert run.reached[cell.name] == (0 if FAULTS[cell.fault].refused else own)
    if wanted.status == 200:
        assert answer.provider == row["provider"]
        # After an exception's whole text, its finish reason came before the error.
        excepted = (cell.dialect, cell.fault, cell.stream) in EXCEPTIONS
        cut = ["finish", *CUT] if excepted else CUT
        assert answer.ended == ([] if not cell.stream else cut if wanted.code else WHOLE)
    if wanted.code == SLOW:
        silent = wanted.status != 200 and not (cell.stream and FAULTS[cell.fault].started)
        phase = "first_event" if silent else "idle"
        assert (answer.details["phase"], answer.details["seconds"]) == (phase, LIMIT_S)
    if wanted.status == 429:
        assert answer.headers["retry-after"] == "30"


def assert_row(cell: Cell, row: Row) -> None:
    wanted = cell.expected
    expected = {
        "status": wanted.status,
        "end_reason": wanted.reason,
        "error_code": wanted.code,
        "attempts": len(wanted.tries),
        "provider": cell.healthy if wanted.by_fallback else cell.name,
        "streamed": cell.stream,
        "endpoint": cell.path,
    }
    assert {column: row[column] for column in expected} == expected
    if len(wanted.tries) == 1:
        assert row["tries"] is None
    else:
        tries = json.loads(row["tries"])
        assert [each["code"] for each in tries] == list(wanted.tries)
        assert {each["provider"] for each in tries[: -1 if wanted.by_fallback else None]} == {
            cell.name
        }
    used = row["input_tokens"], row["output_tokens"]
    if wanted.code is None:  # after a timeout, the provider may bill its work
        begun = FAULTS[cell.fault].started and cell.stream
        if not begun:
            assert row["usage_source"] == ("estimate" if SLOW in wanted.tries else "provider")
        assert min(used) > 0
    elif wanted.status != 200 and not (FAULTS[cell.fault].started and cell.stream):
        assert (used == (0, 0)) is (SLOW not in wanted.tries)
