"""Helpers for live tests: requests to a server, its log lines, and facts about its processes."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tests.support import fake as fp
from tests.support.fake import FakeProvider
from tests.support.raw_client import Frame, RawClient
from tests.support.servers import Server

COMPLETIONS = "/api/v1/completions"
EVENT = fp.event(fp.chunks(["word "], finish=None)[0])
"""An event with text, for a stream that continues."""
BEGUN = fp.sse(fp.chunks(["Hello"], finish=None), done=False, complete=False)
"""The beginning of a stream, up to its first text."""


def toml_row(name: str, base_url: str, **fields: str) -> str:
    more = "".join(f'{field} = "{value}"\n' for field, value in fields.items())
    return f'[providers.{name}]\nbase_url = "{base_url}"\ncompletions = true\n{more}\n'


def ask(client: RawClient, **fields: object) -> None:
    client.request("POST", COMPLETIONS, {"model": "fake/m", "prompt": "Say it", **fields})


def begin_stream(client: RawClient, **fields: object) -> str:
    """Request a stream and read it up to its first text. Return its id."""
    ask(client, stream=True, **fields)
    head = client.read_head()
    assert head.status == 200, client.body()
    while client.frame().json["type"] != "content":
        pass
    return head.headers["x-stream-id"]


def complete(server: Server, **fields: object) -> dict[str, Any]:
    """Make a unary call and return the response's JSON. Fail if the status isn't 200."""
    with server.client() as client:
        ask(client, **fields)
        head, answer = client.read_head(), client.json()
    assert head.status == 200, answer
    assert isinstance(answer, dict)
    return answer


def kinds(frames: Sequence[Frame]) -> list[str]:
    """Return the type of each frame. A comment is "comment", and [DONE] is "DONE"."""
    return [
        "comment" if f.data is None else "DONE" if f.data == "[DONE]" else f.json["type"]
        for f in frames
    ]


class Answer(NamedTuple):
    sent_at: float
    """The monotonic time at which the request was sent."""
    took: float
    """Seconds until the response's headers."""
    status: int
    headers: dict[str, str]
    json: Any


def get(server: Server, path: str, key: str | None = None) -> Answer:
    return _exchange(server, "GET", path, key)


def stop(server: Server, stream_id: str, key: str | None = None) -> Answer:
    return _exchange(server, "POST", f"{COMPLETIONS}/stop-stream/{stream_id}", key)


def _exchange(server: Server, method: str, path: str, key: str | None) -> Answer:
    with server.client() as client:
        client.key = key or client.key
        sent_at = time.monotonic()
        client.request(method, path)
        head = client.read_head()
        return Answer(sent_at, head.at - sent_at, head.status, head.headers, client.json())


def active(server: Server, key: str | None = None) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = get(server, f"{COMPLETIONS}/streams", key).json
    return found


def wait_active(server: Server, count: int, key: str | None = None) -> None:
    server.wait(lambda: len(active(server, key)) == count)


def settled(server: Server, stream_id: str) -> dict[str, Any]:
    """Wait until the log has the line of a call. Return the line."""
    found: list[dict[str, Any]] = []

    def there() -> bool:
        found[:] = [line for line in log_lines(server) if line.get("stream_id") == stream_id]
        return bool(found)

    server.wait(there)
    assert len(found) == 1, found
    return found[0]


def log_lines(server: Server) -> list[dict[str, Any]]:
    lines = server.output().splitlines()
    return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]


def closed_after(request: fp.Request, since: float) -> float:
    """Return the seconds from `since` until the peer closed the request's connection."""
    assert (request.closed_by, request.outcome) == ("peer", "aborted")
    assert request.closed_at is not None
    return request.closed_at - since


def wait_blocked(fake: FakeProvider) -> int:
    """Wait until the fake provider can't send any more. Return the bytes that it has sent."""
    before = -1
    while (sent := sum(request.bytes_sent for request in fake.requests)) > before:
        before = sent
        time.sleep(0.3)
    return sent


def resident(pid: int) -> int:
    """Return the resident memory of a process in bytes."""
    status = Path(f"/proc/{pid}/status").read_text()
    [line] = [line for line in status.splitlines() if line.startswith("VmRSS:")]
    return int(line.split()[1]) * 1024


def best_of(tries: int, bound: float, measure: Callable[[], float]) -> float:
    """Return the smallest of up to `tries` measurements. Stop when one is below the bound.

    Any single measurement may be delayed by a busy machine.
    """
    best = float("inf")
    for _ in range(tries):
        best = min(best, measure())
        if best < bound:
            break
    return best
