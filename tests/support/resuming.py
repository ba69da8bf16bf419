"""Clients that lose their connection again and again, and pick up their streams by the last id.

- A client keeps nothing of a frame that it hasn't read whole.
- Each frame is checked: its id follows the one before or covers a range of ids, and its text is
  that of the pieces of this range.
- A client comes back at any of some processes, chosen at random.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from tests.support import fake as fp
from tests.support.books import Place, assert_sound, by_request, rows
from tests.support.ledgers import at_once
from tests.support.load import failed
from tests.support.pace import HANG_S
from tests.support.raw_client import Frame, RawClient

PATHS = ("/api/v1/completions", "/v1/completions")
FIRST = {PATHS[0]: 2, PATHS[1]: 1}
"""The id of the frame with the first piece."""
BESIDE = {PATHS[0]: 4, PATHS[1]: 2}
"""The number of a whole stream's frames that have no piece."""
LOST_ID = 1 << 40
"""The id of the error with which a stream ends whose process died."""
SSE = {"Accept": "text/event-stream"}
AWAY_S = 0.2
AGAIN_S = 0.05
"""The pause of a client before it tries again, after a 503 or a connection that broke."""
PIECES = [f"w{n} \u00e9\n" if n % 7 == 0 else f"w{n} " for n in range(1000)]
"""The texts of a stream's events. No two are equal."""

Connect: TypeAlias = Callable[[], RawClient]


@dataclass
class Resumed:
    """The frames that a client has read of one stream, over all its connections."""

    stream_id: str
    path: str
    last: int = 0
    text: str = ""
    frames: int = 0
    joined: int = 0
    """The frames that covered more than one id."""
    cuts: int = 0
    """The connections that the client cut."""
    broken: int = 0
    """The connections that broke without being cut by the client."""
    refused: int = 0
    """The responses with 503, after each of which the client tried again."""
    owner: int = -1
    """The number of the process that runs the call."""
    elsewhere: int = 0
    """The connections to a process that doesn't run the call."""
    waits: list[float] = field(default_factory=list)
    """Seconds from each reconnect to the first missed frame, where one was missed."""
    remote_waits: list[float] = field(default_factory=list)
    """Those of `waits` at a process that doesn't run the call."""
    request_id: str = ""
    error: str | None = None
    """The code of the error with which the stream ended."""
    error_at: float = 0.0
    """The monotonic time at which the error arrived."""
    done: bool = False
    faults: list[str] = field(default_factory=list)

    @property
    def first(self) -> int:
        """The id of the frame with the first piece."""
        return FIRST[self.path]

    def add_wait(self, seconds: float, *, away: bool) -> None:
        self.waits.append(seconds)
        if away:
            self.remote_waits.append(seconds)


def script(events: int, interval: float) -> list[fp.Step]:
    """Return a provider's stream of the first pieces, one every `interval` seconds."""
    frames = fp.chunks(PIECES[:events], finish="length", usage=(7, events))
    return fp.sse(frames, interval=interval)


def number_of(frame: Frame) -> int:
    [line] = [line for line in frame.text.split("\n") if line.startswith("id: ")]
    return int(line[4:])


def texts_of(frame: Frame) -> str:
    """Return the text of choice 0 in a frame of either face."""
    if frame.data == "[DONE]":
        return ""
    return "".join(choice["text"] for choice in frame.json.get("choices", ()))


def take(resumed: Resumed, frame: Frame) -> None:
    """Add a frame to what a client has read."""
    number, text, first = number_of(frame), texts_of(frame), resumed.first
    if number <= resumed.last:
        resumed.faults.append(f"{number} after {resumed.last}")
    covered = range(max(resumed.last + 1, first) - first, number - first + 1)
    if text and text != "".join(PIECES[covered.start : covered.stop]):
        resumed.faults.append(f"{text!r} isn't the text of {covered}")
    if frame.data == "[DONE]":
        resumed.done = True
    elif not resumed.error and (code := failed(frame.json)):
        resumed.error, resumed.error_at = code, frame.at
    if number > resumed.last + 1 and number != LOST_ID:
        resumed.joined += 1
        if not text:
            resumed.faults.append(f"{number} after {resumed.last}, without text")
    resumed.last, resumed.text = number, resumed.text + text
    resumed.frames += 1


def read_with_cuts(
    processes: Sequence[Connect],
    body: dict[str, Any],
    cuts: Sequence[int],
    chance: random.Random,
    resumed: Resumed,
    *,
    patient: bool = False,
) -> Resumed:
    """Read a stream to its end. Cut the connection after each of some ids.

    Every other time, the client waits before it comes back, so that it misses frames.

    Args:
        processes: the functions that connect to each process. One is chosen for each connection.
        cuts: the ids, in rising order.
        resumed: the record to fill, at which others may look meanwhile.
        patient: whether the client tries again after a 503 or a connection that breaks. Otherwise
            these are faults.

    Returns:
        The record.
    """
    until = time.monotonic() + HANG_S
    while not (resumed.done or resumed.error or resumed.faults):
        had, missed = resumed.frames, resumed.cuts % 2 == 1
        if missed:
            time.sleep(AWAY_S)
        try:
            _connect(processes, body, resumed, cuts, chance, missed=missed, patient=patient)
        except (OSError, EOFError) as failure:
            resumed.broken += 1
            if not patient or isinstance(failure, TimeoutError):
                resumed.faults.append(f"after {resumed.last}: {failure!r}")
        if resumed.frames > had:
            until = time.monotonic() + HANG_S
        elif not patient or time.monotonic() > until:
            resumed.faults.append(f"a connection after {resumed.last} brings nothing")
        else:
            time.sleep(AGAIN_S)
    return resumed


def _connect(
    processes: Sequence[Connect],
    body: dict[str, Any],
    resumed: Resumed,
    cuts: Sequence[int],
    chance: random.Random,
    *,
    missed: bool,
    patient: bool,
) -> None:
    """Read on one connection, to the next cut or to the end. Raises OSError or EOFError."""
    number, began = chance.randrange(len(processes)), time.monotonic()
    with processes[number]() as client:
        if resumed.last:
            sent = {**SSE, "Last-Event-ID": str(resumed.last)}
            client.request("GET", f"{resumed.path}/{resumed.stream_id}", headers=sent)
        else:
            resumed.owner = number
            client.request("POST", resumed.path, body)
        head = client.read_head()
        if head.status != 200:
            resumed.refused += head.status == 503
            if head.status != 503 or not patient:
                resumed.faults.append(
                    f"status {head.status} after {resumed.last}: {client.body()!r}"
                )
            return
        resumed.request_id = resumed.request_id or head.headers["x-request-id"]
        away = number != resumed.owner
        resumed.elsewhere += away
        cut = next((cut for cut in cuts if cut > resumed.last), sys.maxsize)
        for frame in client.frames():
            take(resumed, frame)
            if missed:
                missed = False
                resumed.add_wait(time.monotonic() - began, away=away)
            if resumed.last >= cut and not resumed.done:
                resumed.cuts += 1
                if chance.random() < 0.5:
                    client.reset()
                return
        if not (resumed.done or resumed.error):
            resumed.faults.append(f"a clean end after {resumed.last}, which isn't the last frame")


def read_all(
    processes: Sequence[Connect],
    streams: int,
    events: int,
    cuts: int,
    seed: int,
    *,
    patient: bool = False,
    records: dict[int, Resumed] | None = None,
) -> list[Resumed | BaseException]:
    """Read streams at once, with cuts at random frames.

    Args:
        records: a dictionary that gets the record of each stream when it begins.
    """

    def read(number: int) -> Resumed:
        chance = random.Random(seed + number)
        path = PATHS[number % 2]
        body = {"model": "fake/m", "prompt": "Say it", "stream": True, "resumable": True}
        body |= {"stream_id": f"s-{seed}-{number}"}
        resumed = Resumed(str(body["stream_id"]), path)
        if records is not None:
            records[number] = resumed
        points = sorted(chance.sample(range(1, events), cuts))
        return read_with_cuts(processes, body, points, chance, resumed, patient=patient)

    return at_once(*[lambda n=n: read(n) for n in range(streams)])


def assert_whole(
    found: Sequence[Resumed | BaseException], place: Place, events: int
) -> list[Resumed]:
    """Check the texts and the ids of streams, and the ledger's rows, of which each has one.

    Args:
        events: the number of events of each stream.
    """
    done = assert_unbroken(found)
    text = "".join(PIECES[:events])
    accepted = by_request(rows(place))
    for resumed in done:
        assert resumed.error is None
        assert resumed.text == text
        assert resumed.last == events + BESIDE[resumed.path]
        row = accepted.pop(resumed.request_id)
        usage = (row["input_tokens"], row["output_tokens"])
        assert (row["status"], row["end_reason"], usage) == (200, "completed", (7, events))
    assert accepted == {}
    assert_sound(place)
    return done


def assert_unbroken(found: Sequence[Resumed | BaseException]) -> list[Resumed]:
    """Assert that each client got its frames in order, without a hole. Return the records."""
    done = []
    for resumed in found:
        assert isinstance(resumed, Resumed), resumed
        done.append(resumed)
    faults = {resumed.stream_id: resumed.faults for resumed in done if resumed.faults}
    assert faults == {}
    return done


def state_of(client: RawClient, resumed: Resumed) -> dict[str, Any]:
    client.request("GET", f"{resumed.path}/{resumed.stream_id}")
    assert client.read_head().status == 200
    found: dict[str, Any] = json.loads(client.body())
    return found


def described(found: Sequence[Resumed]) -> str:
    """Return what clients have read, and how long they waited, in a line."""
    sums = {
        name: sum(getattr(resumed, name) for resumed in found)
        for name in ("cuts", "elsewhere", "broken", "refused", "frames", "joined")
    }
    counts = ", ".join(f"{count} {name}" for name, count in sums.items())
    waits = {
        "anywhere": [wait for resumed in found for wait in resumed.waits],
        "at another process": [wait for resumed in found for wait in resumed.remote_waits],
    }
    times = "; ".join(f"{name} {percentiles(several)}" for name, several in waits.items())
    return f"{len(found)} streams, {counts}; from a reconnect to the first missed byte: {times}"


def percentiles(seconds: Sequence[float]) -> str:
    if not seconds:
        return "never"
    ordered = sorted(seconds)
    p50, p99 = (ordered[len(ordered) * part // 100] * 1000 for part in (50, 99))
    return f"p50 {p50:.1f} ms, p99 {p99:.1f} ms ({len(ordered)} times)"
