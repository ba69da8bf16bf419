"""gateway.py: the path of a call, with a fake provider that replaces Reader._start.

The tests of the endpoints use `Scripted` and `play` too.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from typing import Any, TypeAlias, cast

import pytest

from completion import (
    Batch,
    Completion,
    CompletionRequest,
    Delta,
    EndReason,
    Event,
    Finished,
    Started,
    Thought,
    Usage,
    Used,
)
from config import Settings, Timeouts
from errors import (
    ClientGone,
    InternalError,
    InvalidRequest,
    ModelForbidden,
    ModelNotFound,
    RateLimited,
    SluiceError,
    StreamExists,
    Unavailable,
    UnsupportedParameter,
    UpstreamError,
    UpstreamTimeout,
)
from gateway.attempts import Reader
from gateway.call import COMMENTS, Call, Outcome, raise_for
from gateway.capabilities import Candidate
from gateway.echo import echoed
from gateway.gateway import Gateway
from keys.key import Key, allows
from keys.redaction import Secret
from ledger.entries import Claim, Entry, Settlement
from ledger.ledger import Ledger
from providers.base import Target, UpstreamCall
from providers.fanout import FanOut
from providers.local.call import LocalCall
from providers.transport.abort import Aborted
from providers.transport.http_call import HttpCall
from quota.quota import Quota
from routing.router import Route
from streams.mailbox import (
    End,
    Nudge,
)
from streams.stream import Stream
from tests.support.pace import HANG_S

ROWS: dict[str, dict[str, Any]] = {
    name: {"base_url": "http://127.0.0.1:1/v1", "completions": True, "cannot": cannot}
    for name, cannot in (("sim", []), ("other", []), ("poor", ["echo", "seed", "suffix",
                                                                "prompt_list"]))
}  # fmt: skip
PRICES = {"sim/m": {"input_per_mtok": 1, "output_per_mtok": 2}}

Step: TypeAlias = "Batch | BaseException | Callable[[], object]"


class Scripted(UpstreamCall):
    """An attempt that follows its steps: it yields batches, raises exceptions and calls functions.

    The step `wait` waits until the attempt is aborted. After that, the attempt raises Aborted, or
    with `just_ends` it ends without an exception.
    """

    def __init__(self, *steps: Step, just_ends: bool = False) -> None:
        self.steps = list(steps)
        self.aborts = 0
        self.closes = 0
        self.reached = threading.Event()
        """Set when the attempt reaches a `wait` step."""
        self.wound_up = False
        self._just_ends = just_ends
        self._aborted = threading.Event()

    def events(self) -> Iterator[Batch]:
        for step in self.steps:
            if isinstance(step, list):
                yield step
            elif isinstance(step, BaseException):
                raise step
            elif step is wait:
                self.reached.set()
                self._aborted.wait(HANG_S)
                if self._just_ends:
                    return
                raise Aborted
            else:
                step()

    def abort(self) -> None:
        self.aborts += 1
        self._aborted.set()

    def wind_up(self) -> None:
        self.wound_up = True

    def close(self) -> None:
        self.closes += 1


def wait() -> None:
    """Stand for the step that waits until the attempt is aborted."""


def play(monkeypatch: pytest.MonkeyPatch, *attempts: UpstreamCall) -> list[Candidate]:
    """Use these attempts, in turn, for the next upstream calls of any gateway.

    Returns:
        A list that collects the candidates that are tried.
    """
    waiting, asked = list(attempts), []

    def start(_reader: Reader, candidate: Candidate, _timeouts: Timeouts) -> UpstreamCall:
        asked.append(candidate)
        return waiting.pop(0)

    monkeypatch.setattr(Reader, "_start", start)
    return asked


def a_key(**fields: Any) -> Key:
    defaults = {
        "id": "key_1",
        "name": "test",
        "hash": "sha256:" + "0" * 64,
        "created": datetime(2026, 1, 1, tzinfo=UTC),
    }
    return Key(**{**defaults, **fields})


class Records:
    """A callback for `settled` that records its calls, and can fail."""

    def __init__(self, failure: Exception | None = None) -> None:
        self.outcomes: list[Outcome] = []
        self.streams: list[Stream] = []
        self._failure = failure

    def __call__(self, stream: Stream, outcome: Outcome) -> None:
        self.streams.append(stream)
        self.outcomes.append(outcome)
        if self._failure is not None:
            raise self._failure

    @property
    def only(self) -> Outcome:
        (outcome,) = self.outcomes
        return outcome


class NullLedger:
    """A ledger that accepts everything and records nothing."""

    def open(self, entry: Entry, claim: Claim | None) -> bool:
        return True

    def settle(self, settlement: Settlement) -> None:
        return


QUIET = COMMENTS[Nudge.KEEP_ALIVE]


class Words:
    """An encoder whose frames are words."""

    def begin(self) -> bytes:
        return b"begin "

    def events(self, batch: Batch) -> bytes:
        return b"".join(event.text.encode() + b" " for event in batch if isinstance(event, Delta))

    def last_frames(self, outcome: Outcome) -> bytes:
        return outcome.reason.encode()


@pytest.fixture
def records() -> Records:
    return Records()


@pytest.fixture
def gateway(records: Records) -> Gateway:
    return a_gateway(records)


def a_gateway(records: Records, **settings: Any) -> Gateway:
    options: dict[str, Any] = {"providers": ROWS, "prices": PRICES, "retries": 0}
    found = Settings(**options | settings)
    return Gateway(found, Quota(found.reserve_tokens), cast(Ledger, NullLedger()), records)


def open_call(
    gateway: Gateway, model: str = "sim/m", *fallbacks: str, byok: str | None = None, **fields: Any
) -> Call:
    key = fields.pop("key", a_key())
    strict, continues = fields.pop("strict", False), fields.pop("continues", False)
    request = CompletionRequest(**{"prompts": ("Hi there",), "stream": True, **fields})
    route = Route(
        model=model, fallbacks=fallbacks, byok_api_key=Secret(byok) if byok is not None else None
    )
    return gateway.open(
        request,
        route,
        key=key,
        endpoint="/v1/completions",
        request_id="r-1",
        stream_id="s-1",
        strict=strict,
        continues=continues,
    )


def eventually(condition: Callable[[], bool]) -> bool:
    until = time.monotonic() + HANG_S
    while not condition() and time.monotonic() < until:
        time.sleep(0.001)
    return condition()


HELLO: Batch = [Started("m-up", 8), Delta(0, "Hello")]
REST: Batch = [Delta(0, " there"), Finished(0, "stop"), Used(Usage(8, 3))]
BROKEN = UpstreamError("It broke.", upstream_status=500)


# Calls that aren't streamed


def test_a_whole_answer_is_folded_from_its_events(
    gateway: Gateway, records: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt = Scripted(HELLO, REST)
    play(monkeypatch, attempt)
    call = open_call(gateway, stream=False)
    completion, outcome = call.result()
    assert [choice.text for choice in completion.choices] == ["Hello there"]
    assert completion.usage == Usage(8, 3)
    assert outcome is records.only
    assert (outcome.reason, outcome.status, outcome.error) == ("completed", 200, None)
    assert (outcome.usage, outcome.cost) == (Usage(8, 3), 8_000 + 6_000)
    assert outcome.first_event is not None
    assert 0 <= outcome.first_event <= outcome.duration
    assert 0 <= outcome.latency <= outcome.duration
    assert (attempt.aborts, attempt.closes) == (0, 1)
    assert len(gateway.streams) == 0


def test_a_stopped_whole_answer_has_the_text_received_so_far(
    gateway: Gateway, records: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt = Scripted(HELLO, wait)
    play(monkeypatch, attempt)
    call = open_call(gateway, stream=False)
    assert attempt.reached.wait(HANG_S)
    gateway.streams.stop("key_1", "s-1")
    completion, outcome = call.result()
    assert completion.choices[0].text == "Hello"
    assert (outcome.reason, outcome.status) == ("stopped", 200)
    assert outcome.usage == Usage(8, 2, source="estimate")
    assert records.only is outcome
    assert attempt.aborts == 1


@pytest.mark.parametrize(
    ("failure", "kind", "status"),
    [
        (BROKEN, UpstreamError, 502),
        (UpstreamError("Slow.", upstream_status=429, retry_after=3), RateLimited, 429),
        (UpstreamError("No.", upstream_status=400), InvalidRequest, 400),
        (UpstreamTimeout("connect", 1), UpstreamTimeout, 504),
        (ModelNotFound("Model 'x' was not found."), ModelNotFound, 404),
        (RuntimeError("the inside"), InternalError, 500),
        (MemoryError(), InternalError, 500),
    ],
    ids=repr,
)
@pytest.mark.parametrize("stream", [True, False])
def test_a_failure_before_the_first_event_raises_the_matching_error(
    gateway: Gateway,
    records: Records,
    monkeypatch: pytest.MonkeyPatch,
    failure: Exception,
    kind: type[SluiceError],
    status: int,
    stream: bool,
) -> None:
    attempt = Scripted(failure)
    play(monkeypatch, attempt)
    call = open_call(gateway, stream=stream)
    with pytest.raises(kind) as caught:
        call.wait() if stream else call.result()
    outcome = records.only
    assert outcome.error is caught.value
    reason = "deadline" if kind is UpstreamTimeout else "provider_error"
    assert (outcome.reason, outcome.status) == (reason, status)
    assert (outcome.usage, outcome.cost, outcome.first_event) == (Usage(), 0, None)
    assert eventually(lambda: attempt.closes == 1)
    assert "the inside" not in caught.value.message


def test_a_client_that_hangs_up_on_a_whole_answer_stops_its_provider(
    gateway: Gateway, records: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt = Scripted(wait)
    play(monkeypatch, attempt)
    call = open_call(gateway, stream=False)
    assert attempt.reached.wait(HANG_S)
    call.stream.end("client_gone")
    with pytest.raises(ClientGone):
        call.result()
    assert (records.only.reason, records.only.status) == ("client_gone", 499)
    assert attempt.aborts == 1


# Streams


def frames(call: Call) -> Iterator[bytes]:
    call.wait()
    return call.frames(Words())


def test_a_stream_has_its_events_and_then_its_end_reason(
    gateway: Gateway, records: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    play(monkeypatch, Scripted(HELLO, REST))
    call = open_call(gateway)
    assert b"".join(frames(call)) == b"Hello  there completed"
    assert (records.only.reason, records.only.usage) == ("completed", Usage(8, 3))
    call.close()
    assert len(records.outcomes) == 1


def test_batches_that_have_arrived_are_sent_in_one_write(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    play(monkeypatch, Scripted(HELLO, REST))
    call = open_call(gateway)
    assert eventually(lambda: call.stream.mailbox.ended_by == "completed")
    assert list(frames(call)) == [b"Hello  there completed"]


def test_a_failure_after_the_first_event_ends_the_stream_with_its_reason(
    gateway: Gateway, records: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = threading.Event()
    play(monkeypatch, Scripted(HELLO, lambda: go_on.wait(HANG_S), BROKEN))
    found = frames(open_call(gateway))
    assert next(found) == b"Hello "
    go_on.set()
    assert list(found) == [b"provider_error"]
    outcome = records.only
    assert (outcome.reason, outcome.status) == ("provider_error", 200)
    assert isinstance(outcome.error, UpstreamError)
    assert outcome.usage == Usage(8, 2, source="estimate")


def test_a_failure_together_with_the_first_event_ends_the_stream(
    gateway: Gateway, records: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    play(monkeypatch, Scripted(HELLO, BROKEN))
    call = open_call(gateway)
    assert eventually(lambda: call.stream.mailbox.ended_by == "provider_error")
    assert list(frames(call)) == [b"Hello provider_error"]
    assert records.only.status == 200


def test_a_release_sends_the_status_line_before_the_first_event(
    gateway: Gateway, records: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = threading.Event()
    play(monkeypatch, Scripted(lambda: go_on.wait(HANG_S), BROKEN))
    call = open_call(gateway)
    call.stream.mailbox.nudge(Nudge.KEEP_ALIVE)  # ignored, because there is no stream yet
    call.stream.mailbox.nudge(Nudge.RELEASE)
    found = frames(call)
    assert next(found) == b"begin "
    go_on.set()
    assert list(found) == [b"provider_error"]
    assert records.only.status == 200


@pytest.mark.parametrize(
    ("nudges", "expected"),
    [
        ([[Nudge.RELEASE], [Nudge.RELEASE]], [b"begin ", b"", b"Hello completed"]),
        (
            [[Nudge.RELEASE], [Nudge.KEEP_ALIVE]],
            [b"begin ", QUIET, b"Hello completed"],
        ),
    ],
)
def test_a_stream_begins_once(
    gateway: Gateway,
    monkeypatch: pytest.MonkeyPatch,
    nudges: list[list[Nudge]],
    expected: list[bytes],
) -> None:
    go_on = threading.Event()
    play(monkeypatch, Scripted(lambda: go_on.wait(HANG_S), HELLO))
    call = open_call(gateway)
    call.stream.mailbox.nudge(nudges[0][0])
    found = frames(call)
    written = [next(found)]
    for (nudge,) in nudges[1:]:
        call.stream.mailbox.nudge(nudge)
        written.append(next(found))
    go_on.set()
    written.append(b"".join(found))
    assert written == expected


def test_a_release_after_the_first_event_writes_no_beginning(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt = Scripted(HELLO, wait)
    play(monkeypatch, attempt)
    call = open_call(gateway)
    assert attempt.reached.wait(HANG_S)
    call.stream.mailbox.nudge(Nudge.RELEASE)
    found = frames(call)
    assert next(found) == b"Hello "
    gateway.streams.stop("key_1", "s-1")
    assert list(found) == [b"stopped"]


def test_events_without_a_frame_do_not_suppress_keep_alive_comments(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client needs comments even if the provider sends only usage reports."""
    second = threading.Event()
    attempt = Scripted(HELLO, lambda: second.wait(HANG_S), [Used(Usage(8, 9))], wait)
    play(monkeypatch, attempt)
    call = open_call(gateway)
    found = frames(call)
    assert next(found) == b"Hello "
    second.set()
    assert attempt.reached.wait(HANG_S)
    assert next(found) == b""
    wrote = call.stream.deadlines.last_write
    call.stream.mailbox.nudge(Nudge.KEEP_ALIVE)
    assert next(found) == QUIET
    assert call.stream.deadlines.last_write == wrote
    call.stream.mailbox.nudge(Nudge.KEEP_ALIVE)
    assert next(found) == QUIET
    assert call.stream.deadlines.last_write > wrote
    call.close()


def test_a_stream_stopped_before_its_first_event_ends_with_stopped(
    gateway: Gateway, records: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt = Scripted(wait)
    play(monkeypatch, attempt)
    call = open_call(gateway)
    assert attempt.reached.wait(HANG_S)
    gateway.streams.stop("key_1", "s-1")
    assert list(frames(call)) == [b"stopped"]
    assert (records.only.reason, records.only.status) == ("stopped", 200)


# Each call is settled once, however it ends


def read_on(call: Call, found: Iterator[bytes]) -> None:
    list(found)


def close_the_generator(call: Call, found: Any) -> None:
    found.close()


def never_start_it(call: Call, found: Iterator[bytes]) -> None:
    call.close()


def stop(call: Call, found: Iterator[bytes]) -> None:
    call.stream.end("stopped")
    list(found)


def shut_down(call: Call, found: Iterator[bytes]) -> None:
    call.stream.end("shutdown", Unavailable("The server is shutting down."))
    list(found)


def run_out_of_time(call: Call, found: Iterator[bytes]) -> None:
    call.stream.look(call.stream.opened + 1801)
    list(found)


def fall_silent(call: Call, found: Iterator[bytes]) -> None:
    call.stream.look(call.stream.deadlines.last_event + 121)
    list(found)


def break_the_encoder(call: Call, found: Iterator[bytes]) -> None:
    def fail(*_: object) -> bytes:
        raise ZeroDivisionError

    encoder = Words()
    encoder.events = encoder.last_frames = fail  # type: ignore[method-assign, assignment]
    call.stream.mailbox.put(HELLO, 1)
    with pytest.raises(ZeroDivisionError):
        list(call.frames(encoder))


def everything_at_once(call: Call, found: Iterator[bytes]) -> None:
    call.stream.end("stopped")
    call.stream.end("client_gone")
    call.stream.end("shutdown", Unavailable("Later."))
    list(found)
    call.close()
    call.close()


ENDS: list[tuple[Callable[[Call, Iterator[bytes]], None], EndReason, int]] = [
    (close_the_generator, "client_gone", 499),
    (never_start_it, "client_gone", 499),
    (stop, "stopped", 200),
    (shut_down, "shutdown", 200),
    (run_out_of_time, "deadline", 200),
    (fall_silent, "deadline", 200),
    (break_the_encoder, "client_gone", 499),
    (everything_at_once, "stopped", 200),
]


@pytest.mark.parametrize(("end", "reason", "status"), ENDS, ids=lambda v: getattr(v, "__name__", v))
@pytest.mark.parametrize("just_ends", [True, False])
@pytest.mark.parametrize("failure", [None, OSError("disk full")])
def test_an_active_call_is_settled_once_whatever_ends_it(
    monkeypatch: pytest.MonkeyPatch,
    end: Callable[[Call, Iterator[bytes]], None],
    reason: EndReason,
    status: int,
    just_ends: bool,
    failure: Exception | None,
) -> None:
    records = Records(failure)
    gateway = a_gateway(records)
    attempt = Scripted(HELLO, wait, just_ends=just_ends)
    play(monkeypatch, attempt)
    call = open_call(gateway)
    found = frames(call)
    if end not in (never_start_it, break_the_encoder):
        assert next(found) == b"Hello "
    assert attempt.reached.wait(HANG_S)
    end(call, found)
    assert (records.only.reason, records.only.status) == (reason, status)
    assert records.only.usage == Usage(8, 2, source="estimate")
    assert records.streams == [call.stream]
    assert len(gateway.streams) == 0
    assert attempt.aborts >= 1
    assert eventually(lambda: attempt.closes == 1)
    call.close()
    assert len(records.outcomes) == 1


@pytest.mark.parametrize("stream", [True, False])
def test_a_drained_call_is_settled_once_when_the_drain_ends(
    records: Records, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    gateway = a_gateway(records, disconnect="drain")
    go_on, waits = threading.Event(), threading.Event()
    attempt = Scripted(HELLO, waits.set, lambda: go_on.wait(HANG_S), REST)
    play(monkeypatch, attempt)
    call = open_call(gateway, stream=stream)
    assert waits.wait(HANG_S)
    call.stream.end("client_gone")
    closing = [threading.Thread(target=call.close) for _ in range(2)]
    for thread in closing:
        thread.start()
    time.sleep(0.03)
    assert records.outcomes == []
    assert gateway.streams.of("key_1") == [call.stream]
    go_on.set()
    for thread in closing:
        thread.join(HANG_S)
    outcome = records.only
    assert (outcome.reason, outcome.status) == ("client_gone", 499)
    assert (outcome.usage, outcome.cost) == (Usage(8, 3), 14_000)
    assert (attempt.aborts, attempt.closes, attempt.wound_up) == (0, 1, True)
    assert len(gateway.streams) == 0


@pytest.mark.parametrize("status", [503, 400])
def test_no_fallback_is_tried_for_a_client_that_has_gone(
    records: Records, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    gateway = a_gateway(records, disconnect="drain")
    go_on = threading.Event()
    failure = UpstreamError("No.", upstream_status=status)
    asked = play(monkeypatch, Scripted(lambda: go_on.wait(HANG_S), failure))
    call = open_call(gateway, "sim/m", "other/m")
    assert eventually(lambda: len(call.stream.attempts) == 1)
    call.stream.end("client_gone")
    go_on.set()
    call.close()
    assert len(asked) == 1
    assert (records.only.reason, records.only.error) == ("client_gone", None)
    assert records.only.usage == Usage()


@pytest.mark.parametrize("end", ["stopped", "shutdown"])
def test_a_stop_or_shutdown_during_a_drain_settles_the_call_at_once(
    records: Records, monkeypatch: pytest.MonkeyPatch, end: EndReason
) -> None:
    gateway = a_gateway(records, disconnect="drain")
    attempt = Scripted(HELLO, wait)
    play(monkeypatch, attempt)
    call = open_call(gateway)
    found = frames(call)
    assert next(found) == b"Hello "
    assert attempt.reached.wait(HANG_S)
    threading.Timer(0.02, call.stream.end, [end]).start()
    found.close()  # type: ignore[attr-defined]
    assert (records.only.reason, records.only.status) == ("client_gone", 499)
    assert records.only.usage == Usage(8, 2, source="estimate")
    assert attempt.aborts == 1


def test_a_drain_ends_at_the_disconnect_cost_limit(
    records: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit is two tokens: a token of output costs 2,000 nano-dollars."""
    gateway = a_gateway(records, disconnect="drain", disconnect_cost=4000)
    go_on = threading.Event()
    more: list[Step] = [[Delta(0, "more")] for _ in range(5)]
    play(monkeypatch, Scripted(HELLO, lambda: go_on.wait(HANG_S), *more))
    call = open_call(gateway)
    call.wait()
    call.stream.end("client_gone")
    go_on.set()
    call.close()
    assert records.only.usage == Usage(8, 1 + 1 + 3, source="estimate")


def test_a_failed_settlement_does_not_lose_the_answer(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    gateway = a_gateway(Records(OSError("disk full")))
    play(monkeypatch, Scripted(HELLO, REST))
    completion, outcome = open_call(gateway, stream=False).result()
    assert completion.choices[0].text == "Hello there"
    assert outcome.reason == "completed"
    (record,) = [record for record in caplog.records if record.message == "settlement failed"]
    assert record.__dict__["request_id"] == "r-1"


def test_a_failed_price_lookup_settles_the_call_without_a_cost(
    gateway: Gateway, records: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: Target) -> None:
        raise ArithmeticError

    play(monkeypatch, Scripted(HELLO, REST))
    monkeypatch.setattr(gateway.prices, "of", fail)
    open_call(gateway, stream=False).result()
    assert (records.only.cost, records.only.usage) == (None, Usage(8, 3))
    assert len(gateway.streams) == 0


def test_a_defect_in_an_attempt_is_logged_with_the_request_id(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    play(monkeypatch, Scripted(RuntimeError("the inside")))
    with pytest.raises(InternalError):
        open_call(gateway).wait()
    (record,) = [
        record for record in caplog.records if record.message == "internal error in a call"
    ]
    assert record.levelno == logging.ERROR
    assert record.__dict__["request_id"] == "r-1"


def test_a_call_stopped_before_its_attempt_starts_counts_no_attempt(
    gateway: Gateway, records: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt = Scripted(HELLO)
    begin, begun = threading.Event(), threading.Event()

    def start(_reader: Reader, _candidate: Candidate, _timeouts: Timeouts) -> UpstreamCall:
        begun.set()
        begin.wait(HANG_S)
        return attempt

    monkeypatch.setattr(Reader, "_start", start)
    call = open_call(gateway)
    assert begun.wait(HANG_S)
    gateway.streams.stop("key_1", "s-1")
    begin.set()
    assert list(frames(call)) == [b"stopped"]
    assert eventually(lambda: attempt.closes == 1)
    assert (len(call.stream.attempts), call.stream.first_visible) == (0, None)


def test_a_reader_delivers_nothing_after_its_stream_was_stopped(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = threading.Event()
    attempt = Scripted(HELLO, lambda: go_on.wait(HANG_S), REST, RuntimeError("not reached"))
    play(monkeypatch, attempt)
    found = frames(open_call(gateway))
    next(found)
    gateway.streams.stop("key_1", "s-1")
    go_on.set()
    assert list(found) == [b"stopped"]
    assert eventually(lambda: attempt.closes == 1)


# Fallbacks


def test_the_next_target_is_tried_when_a_target_fails(
    gateway: Gateway, records: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = [Scripted(BROKEN), Scripted(UpstreamError("Gone."))]
    asked = play(monkeypatch, *broken, Scripted(HELLO, REST))
    call = open_call(gateway, "other/a", "other/b", "sim/m", stream=False)
    completion, outcome = call.result()
    assert completion.choices[0].text == "Hello there"
    assert [candidate.target.name for candidate in asked] == ["other/a", "other/b", "sim/m"]
    assert (len(call.stream.attempts), call.stream.target.name) == (3, "sim/m")
    assert outcome.cost == 14_000
    assert outcome is records.only
    assert [attempt.closes for attempt in broken] == [1, 1]


@pytest.mark.parametrize("status", [400, 401, 404, 422])
def test_a_client_error_of_a_provider_is_not_retried_on_a_fallback(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    asked = play(monkeypatch, Scripted(UpstreamError("No.", upstream_status=status)))
    with pytest.raises(SluiceError) as caught:
        open_call(gateway, "sim/m", "other/m").wait()
    assert len(asked) == 1
    assert (caught.value.details or {})["upstream_status"] == status


def test_no_fallback_is_tried_after_the_first_event(
    gateway: Gateway, records: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = play(monkeypatch, Scripted(HELLO, BROKEN))
    assert b"".join(frames(open_call(gateway, "sim/m", "other/m"))) == b"Hello provider_error"
    assert len(asked) == 1
    assert records.only.status == 200


def test_the_failure_of_the_last_target_is_raised(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    last = UpstreamError("Slow.", upstream_status=429, retry_after=3)
    play(monkeypatch, Scripted(BROKEN), Scripted(last))
    with pytest.raises(RateLimited) as caught:
        open_call(gateway, "sim/m", "other/m").wait()
    assert "other" in caught.value.message


@pytest.mark.parametrize("just_ends", [True, False])
def test_a_first_event_timeout_moves_the_call_to_the_next_target(
    gateway: Gateway, records: Records, monkeypatch: pytest.MonkeyPatch, just_ends: bool
) -> None:
    late = Scripted(wait, just_ends=just_ends)
    play(monkeypatch, late, Scripted(HELLO, REST))
    call = open_call(gateway, "sim/m", "other/m")
    assert late.reached.wait(HANG_S)
    call.stream.look(call.stream.attempt_began + 601)
    assert b"".join(frames(call)) == b"Hello  there completed"
    assert records.only.reason == "completed"
    assert late.aborts == 1


@pytest.mark.parametrize("just_ends", [True, False])
def test_a_first_event_timeout_without_a_fallback_ends_as_a_deadline(
    gateway: Gateway, records: Records, monkeypatch: pytest.MonkeyPatch, just_ends: bool
) -> None:
    late = Scripted(wait, just_ends=just_ends)
    play(monkeypatch, late)
    call = open_call(gateway)
    assert late.reached.wait(HANG_S)
    call.stream.look(call.stream.attempt_began + 601)
    with pytest.raises(UpstreamTimeout) as caught:
        call.wait()
    assert caught.value.phase == "first_event"
    assert (caught.value.details or {})["provider"] == "sim"
    assert (records.only.reason, records.only.status) == ("deadline", 504)
    assert records.only.usage == Usage(2, 0, source="estimate")


def test_a_failed_fallback_raises_its_own_error_after_a_first_timeout(
    gateway: Gateway, records: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    late = Scripted(wait)
    play(monkeypatch, late, Scripted(BROKEN))
    call = open_call(gateway, "sim/m", "other/m")
    assert late.reached.wait(HANG_S)
    call.stream.look(call.stream.attempt_began + 601)
    with pytest.raises(UpstreamError, match=r"It broke\."):
        call.wait()
    assert records.only.reason == "provider_error"


def test_a_failure_after_the_first_event_timeout_is_raised_as_a_timeout(
    gateway: Gateway, records: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = threading.Event()
    late = Scripted(lambda: go_on.wait(HANG_S), BROKEN)
    play(monkeypatch, late)
    call = open_call(gateway)
    assert eventually(lambda: len(call.stream.attempts) == 1)
    call.stream.look(call.stream.attempt_began + 601)
    go_on.set()
    with pytest.raises(UpstreamTimeout):
        call.wait()
    assert records.only.reason == "deadline"


# Admission


@pytest.mark.parametrize("byok", [None, "sk-own"])
def test_a_call_costs_its_list_price_and_zero_with_a_byok_key(
    gateway: Gateway, records: Records, monkeypatch: pytest.MonkeyPatch, byok: str | None
) -> None:
    play(monkeypatch, Scripted(HELLO, REST), Scripted(HELLO, REST))
    open_call(gateway, stream=False, byok=byok).result()
    open_call(gateway, "sim/of-unknown-price", stream=False, byok=byok).result()
    costs = [outcome.cost for outcome in records.outcomes]
    assert costs == ([14_000, None] if byok is None else [0, 0])


def test_a_stream_id_already_in_use_is_refused(
    gateway: Gateway, records: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    play(monkeypatch, Scripted(wait))
    call = open_call(gateway)
    with pytest.raises(StreamExists):
        open_call(gateway)
    assert records.outcomes == []
    call.close()


def test_a_call_above_max_streams_is_refused(
    records: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway = a_gateway(records, max_streams=1, queue=0)
    asked = play(monkeypatch, Scripted(wait), Scripted(HELLO, REST))
    call = open_call(gateway)
    with pytest.raises(Unavailable):
        open_call(gateway, key=a_key(id="key_2"))
    assert eventually(lambda: len(asked) == 1)
    call.close()
    open_call(gateway, stream=False).result()


def test_a_call_is_refused_when_no_thread_can_be_started(
    gateway: Gateway, records: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    play(monkeypatch, Scripted(wait), Scripted(HELLO, REST))
    busy = open_call(gateway)  # this starts the threads, and keeps the reader's thread busy

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(Unavailable):
            open_call(gateway, stream=False, key=a_key(id="key_2")).result()
    busy.close()
    assert len(gateway.streams) == 0
    assert [outcome.status for outcome in records.outcomes] == [503, 499]


@pytest.mark.parametrize(
    ("models", "expected"),
    [
        (("*",), ["sim/m", "other/m"]),
        (("other/*",), ["other/m"]),
        (("sim/m", "other/x"), ["sim/m"]),
    ],
)
def test_a_key_reaches_only_the_targets_of_its_models(
    gateway: Gateway, models: tuple[str, ...], expected: list[str]
) -> None:
    route = Route(model="sim/m", fallbacks=("other/m",))
    targets = gateway.router.targets(route, partial(allows, a_key(models=models)))
    assert [target.name for target in targets] == expected


@pytest.mark.parametrize("models", [(), ("sim/x",), ("SIM/M",)])
def test_a_key_without_a_permitted_target_gets_an_error_naming_the_model(
    gateway: Gateway, models: tuple[str, ...]
) -> None:
    with pytest.raises(ModelForbidden) as caught:
        open_call(gateway, key=a_key(models=models))
    assert "sim/m" in caught.value.message
    assert caught.value.param == "model"
    assert len(gateway.streams) == 0


@pytest.mark.parametrize("by_server", [True, False])
def test_strict_mode_is_set_by_the_server_or_the_caller(
    records: Records, monkeypatch: pytest.MonkeyPatch, by_server: bool
) -> None:
    play(monkeypatch, Scripted(HELLO, REST))
    gateway = a_gateway(records, strict=by_server)
    with pytest.raises(UnsupportedParameter):
        open_call(gateway, "poor/m", seed=7, strict=not by_server)
    lenient = a_gateway(records)
    call = open_call(lenient, "poor/m", seed=7)
    assert b"completed" in b"".join(frames(call))
    assert call.stream.dropped == ("seed",)


@pytest.mark.parametrize("stream", [True, False])
def test_release_and_keep_alive_nudges_go_to_streams_only(
    records: Records, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    gateway = a_gateway(records, timeouts=Timeouts(first_event=1e9, total=1e9))
    attempt = Scripted(wait)
    play(monkeypatch, attempt)
    call = open_call(gateway, stream=stream)
    assert attempt.reached.wait(HANG_S)
    call.stream.look(call.stream.opened + 86400)
    call.stream.end("stopped")
    nudges: list[Any] = [Nudge.RELEASE, Nudge.KEEP_ALIVE] if stream else []
    assert call.stream.mailbox.take() == [*nudges, End("stopped")]
    call.close()


# Upstream requests


def candidate(gateway: Gateway, model: str, *prompts: str, **more: Any) -> Candidate:
    (target,) = gateway.router.targets(Route(model=model))
    return Candidate(target, CompletionRequest(prompts=prompts), **more)


@pytest.mark.parametrize(
    ("model", "split", "kind"),
    [
        ("local/pydoc", False, LocalCall),
        ("sim/m", False, HttpCall),
        ("sim/m", True, FanOut),
        ("local/pydoc", True, FanOut),
    ],
)
def test_the_attempt_class_follows_the_dialect_and_the_split(
    gateway: Gateway, model: str, split: bool, kind: type[UpstreamCall]
) -> None:
    asked = candidate(gateway, model, "a", "b", split=split)
    attempt = gateway.reader._start(asked, Timeouts())
    assert type(attempt) is kind
    attempt.close()


def test_the_embedded_model_answers(gateway: Gateway, records: Records) -> None:
    completion, outcome = open_call(
        gateway, "local/pydoc", stream=False, max_tokens=3, temperature=0.0
    ).result()
    assert completion.choices[0].text
    assert outcome.usage.output_tokens == 3
    assert (outcome.usage.source, outcome.cost) == ("provider", 0)


def test_an_echo_that_a_target_lacks_is_put_before_its_text(
    gateway: Gateway, records: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = play(monkeypatch, Scripted(HELLO, REST))
    completion, _ = open_call(gateway, "poor/m", stream=False, echo=True).result()
    assert completion.choices[0].text == "Hi thereHello there"
    assert asked[0].request.echo is False
    assert records.only.usage == Usage(8, 3)


def test_an_echo_is_not_metered_as_output(
    gateway: Gateway, records: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The provider reports no usage. The estimate leaves out the prompt that Sluice echoed."""
    play(monkeypatch, Scripted([Started(), Delta(0, "abcd" * 10), Finished(0, "stop")]))
    open_call(gateway, "poor/m", stream=False, echo=True, prompts=("p" * 400,)).result()
    assert records.only.usage == Usage(100, 10, source="estimate")


STARTED = Started("m", 3)
ONE: Event = Delta(0, "one")


@pytest.mark.parametrize(
    ("fields", "batches", "expected"),
    [
        ({}, [], []),
        ({}, [[ONE], [ONE]], [[Delta(0, "Hi"), ONE], [ONE]]),
        ({}, [[STARTED, ONE]], [[STARTED, Delta(0, "Hi"), ONE]]),
        ({}, [[STARTED], [ONE]], [[STARTED], [Delta(0, "Hi"), ONE]]),
        ({}, [[STARTED], [], [Thought(9)], [Finished(0, "stop")]],
         [[STARTED], [], [Thought(9)], [Delta(0, "Hi"), Finished(0, "stop")]]),
        ({"n": 2}, [[ONE]], [[Delta(0, "Hi"), Delta(1, "Hi"), ONE]]),
        ({"prompts": ("a", "b")}, [[ONE]], [[Delta(0, "a"), Delta(1, "b"), ONE]]),
        ({"prompts": ("a", "b"), "n": 2}, [[ONE]],
         [[Delta(0, "a"), Delta(1, "a"), Delta(2, "b"), Delta(3, "b"), ONE]]),
        ({"prompts": ((1, 2), "b")}, [[ONE]], [[Delta(1, "b"), ONE]]),
        ({"prompts": ((1, 2),)}, [[ONE], [ONE]], [[ONE], [ONE]]),
    ],
)  # fmt: skip
def test_each_prompt_is_echoed_once_before_its_choices(
    fields: dict[str, Any], batches: list[Batch], expected: list[Batch]
) -> None:
    request = CompletionRequest(**{"prompts": ("Hi",), **fields})
    assert list(echoed(iter(batches), request)) == expected


# The end


@pytest.mark.parametrize("reason", ["completed", "stopped"])
def test_an_end_without_a_failure_raises_nothing(reason: EndReason) -> None:
    raise_for(End(reason))


def test_an_end_with_a_failure_raises_its_error() -> None:
    with pytest.raises(UpstreamError):
        raise_for(End("provider_error", BROKEN))
    with pytest.raises(ClientGone):
        raise_for(End("client_gone"))


def test_unreported_usage_is_none_in_the_answer_and_estimated_in_the_outcome(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    play(monkeypatch, Scripted([Started(), Delta(0, "abcde"), Finished(0, "length")]))
    completion, outcome = open_call(gateway, stream=False).result()
    assert isinstance(completion, Completion)
    assert completion.usage is None
    assert outcome.usage == Usage(2, 2, source="estimate")
