"""Clients that lose their connection again and again, and pick up their streams by the last id.

- A client keeps nothing of a frame that it hasn't read whole.
- Each frame is checked: its id follows the one before or covers a range of ids, and its text is
  that of the pieces of this range.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.support.raw_client import Frame, RawClient

PATHS = ("/api/v1/completions", "/v1/completions")
AWAY_S = 0.2
PIECES = [f"w{n} \u00e9\n" if n % 7 == 0 else f"w{n} " for n in range(1000)]
"""The texts of a stream's events. No two are equal."""


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
    waits: list[float] = field(default_factory=list)
    """Seconds from each reconnect to the first missed frame, where one was missed."""
    request_id: str = ""
    done: bool = False
    faults: list[str] = field(default_factory=list)


def number_of(frame: Frame) -> int:
    [line] = [line for line in frame.text.split("\n") if line.startswith("id: ")]
    return int(line[4:])


def texts_of(frame: Frame) -> str:
    """Return the text of choice 0 in a frame of either face."""
    if frame.data == "[DONE]":
        return ""
    return "".join(choice["text"] for choice in frame.json.get("choices", ()))


def take(resumed: Resumed, frame: Frame, first: int) -> None:
    """Add a frame to what a client has read.

    Args:
        first: the id of the frame with the first piece.
    """
    number, text = number_of(frame), texts_of(frame)
    if number <= resumed.last:
        resumed.faults.append(f"{number} after {resumed.last}")
    covered = range(max(resumed.last + 1, first) - first, number - first + 1)
    if text and text != "".join(PIECES[covered.start : covered.stop]):
        resumed.faults.append(f"{text!r} isn't the text of {covered}")
    if number > resumed.last + 1:
        resumed.joined += 1
        if not text:
            resumed.faults.append(f"{number} after {resumed.last}, without text")
    resumed.last, resumed.text = number, resumed.text + text
    resumed.frames += 1
    resumed.done = resumed.done or frame.data == "[DONE]"


def read_with_cuts(
    connect: Callable[[], RawClient],
    body: dict[str, Any],
    path: str,
    cuts: Sequence[int],
    chance: random.Random,
) -> Resumed:
    """Read a stream to its end. Cut the connection after each of some ids.

    Every other time, the client waits before it comes back, so that it misses frames.

    Args:
        cuts: the ids, in rising order.
    """
    resumed = Resumed(str(body["stream_id"]), path)
    first = 2 if path == PATHS[0] else 1
    left = list(cuts)
    while not resumed.done and not resumed.faults:
        missed = resumed.cuts % 2 == 1
        if missed:
            time.sleep(AWAY_S)
        began = time.monotonic()
        with connect() as client:
            if resumed.last:
                sent = {"Accept": "text/event-stream", "Last-Event-ID": str(resumed.last)}
                client.request("GET", f"{path}/{resumed.stream_id}", headers=sent)
            else:
                client.request("POST", path, body)
            head = client.read_head()
            if head.status != 200:
                resumed.faults.append(f"status {head.status}")
                break
            resumed.request_id = resumed.request_id or head.headers["x-request-id"]
            left = [cut for cut in left if cut > resumed.last]
            cut = left[0] if left else None
            for frame in client.frames():
                take(resumed, frame, first)
                if missed:
                    missed = False
                    resumed.waits.append(time.monotonic() - began)
                if cut is not None and resumed.last >= cut and not resumed.done:
                    resumed.cuts += 1
                    if chance.random() < 0.5:
                        client.reset()
                    break
    return resumed


def state_of(client: RawClient, resumed: Resumed) -> dict[str, Any]:
    client.request("GET", f"{resumed.path}/{resumed.stream_id}")
    assert client.read_head().status == 200
    found: dict[str, Any] = json.loads(client.body())
    return found
