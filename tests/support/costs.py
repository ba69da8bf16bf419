"""The cost of a call: the number of function calls, Python's and C's, in all threads.

Unlike a timing, the number hardly changes on a busy machine. There, a thread may be late to return
to its pool, and the next call then starts another one. So the calls are counted in groups, and the
group with the fewest function calls counts.

- The process runs gunicorn's worker with the whole app: a key, limits, a budget, the ledger,
  metrics and log lines. The upstream sends fixed bytes.
- It runs without gevent. gevent's part is mostly C, and under gevent there would be no threads in
  which calls could be counted.

    python -m tests.support.costs             # print the counts as JSON
    python -m tests.support.costs --record    # and record them for tests/project/test_costs.py
"""

from __future__ import annotations

import io
import itertools
import json
import logging
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import Any

from gunicorn.config import Config

from server.http1 import FastRequestParser
from server.worker import Worker
from tests.support.pace import HANG_S
from tests.support.paths import TESTS

RECORD = TESTS / "costs.json"
GROUPS, CALLS, WARM_UP = 10, 10, 20
FEW_EVENTS, MANY_EVENTS = 10, 110
SLOW_CALLS, SLOW_EVENTS, SLOW_S = 1, 40, 0.004
FACES = {
    "openai": "/v1/completions",
    "native": "/api/v1/completions",
    "chat": "/v1/chat/completions",
    "native chat": "/api/v1/chat/completions",
}
TEXT = "Write a haiku:"


class Upstream:
    """A server whose response to each request is chosen by the request's path.

    Its own function calls aren't counted.
    """

    def __init__(self, answers: dict[bytes, bytes]) -> None:
        self._answers = answers
        self.written: list[bytes] = []
        """What the client of the current call has got."""
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            client, _ = self._listener.accept()
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        sys.setprofile(None)
        with client, client.makefile("rb") as lines:
            while line := lines.readline():
                length = 0
                while (field := lines.readline().strip().lower()) != b"":
                    if field.startswith(b"content-length:"):
                        length = int(field.partition(b":")[2])
                lines.read(length)
                name = line.split(b"/")[1]
                answer = self._answers[name]
                if name.startswith(b"slow"):
                    *pieces, answer = answer.split(b"\n\n", SLOW_EVENTS)
                    for piece in pieces:
                        self._send_alone(client, piece + b"\n\n")
                client.sendall(answer)

    def _send_alone(self, client: socket.socket, piece: bytes) -> None:
        """Send a piece, and return when it has reached the client and the threads wait again."""
        before = len(self.written)
        client.sendall(piece)
        until = time.monotonic() + HANG_S
        while len(self.written) == before and time.monotonic() < until:
            time.sleep(SLOW_S)
        time.sleep(SLOW_S)


def answer(kind: str, body: str) -> bytes:
    head = f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    return (head + body).encode()


def streamed(events: int, *, chat: bool = False) -> bytes:
    text: dict[str, Any] = {"delta": {"content": " word"}} if chat else {"text": " word"}
    end: dict[str, Any] = {"delta": {}} if chat else {"text": ""}
    top = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "m"} if chat else {}
    chunks: Iterable[Any] = (
        *(top | {"choices": [{"index": 0} | text]} for _ in range(events)),
        top | {"choices": [{"index": 0, "finish_reason": "length"} | end]},
        top | {"choices": [], "usage": {"prompt_tokens": 8, "completion_tokens": events}},
    )
    frames = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks)
    return answer("text/event-stream", frames + "data: [DONE]\n\n")


def whole(choice: dict[str, Any]) -> bytes:
    """Return the bytes of a whole answer with one choice."""
    choices = [{"index": 0, "finish_reason": "length"} | choice]
    usage = {"prompt_tokens": 8, "completion_tokens": 1}
    return answer("application/json", json.dumps({"choices": choices, "usage": usage}))


ANSWERS = {
    b"whole": whole({"text": " word"}),
    b"few": streamed(FEW_EVENTS),
    b"many": streamed(MANY_EVENTS),
    b"slow": streamed(SLOW_EVENTS),
    b"whole-chat": whole({"message": {"role": "assistant", "content": " word"}}),
    b"few-chat": streamed(FEW_EVENTS, chat=True),
    b"many-chat": streamed(MANY_EVENTS, chat=True),
    b"slow-chat": streamed(SLOW_EVENTS, chat=True),
}
"""The upstream's answer to each request, by the path. A path of "slow" gets its events singly."""


class Nowhere(io.StringIO):
    """A file that discards all text."""

    def write(self, text: str) -> int:
        return len(text)


class Connection(socket.socket):
    """The server's side of a connection. It keeps what is sent: a full buffer can't block it."""

    def __init__(self, fileno: int) -> None:
        super().__init__(fileno=fileno)
        self.sent: list[bytes] = []
        self.sendall = self.sent.append  # type: ignore[assignment]  # a call of C, as the real one


class Counted:
    def __init__(self, directory: Path) -> None:
        self._upstream = upstream = Upstream(ANSWERS)
        self._count = itertools.count()
        threading.setprofile(self._called)  # before the app starts threads

        from app import create_app
        from config import Settings
        from tests.test_app import make_key

        line, self._key = make_key(requests_per_minute=10**9, tokens_per_hour=10**9, budget_usd=1e6)
        names = [name.decode() for name in ANSWERS]
        origin = f"http://127.0.0.1:{upstream.port}"
        app = create_app(
            Settings(
                keys=line,
                keys_file=directory / "keys.jsonl",
                database=directory / "sluice.db",
                providers={
                    n: {"dialect": "openai", "base_url": f"{origin}/{n}", "completions": True}
                    for n in names
                },
                prices={f"{n}/m": {"input_per_mtok": 1.0, "output_per_mtok": 2.0} for n in names},
            )
        )
        self._config = Config()
        self._config.set("http_parser", "python")  # as in gunicorn.conf.py
        vars(self._config).update({n: found.get() for n, found in self._config.settings.items()})
        self._worker = Worker(1, 1, [], None, 30, self._config, None)
        self._worker.wsgi = app
        [handler] = logging.getLogger().handlers
        assert isinstance(handler, logging.StreamHandler)
        handler.setStream(Nowhere())

    def _called(self, _frame: FrameType, event: str, _argument: object) -> None:
        if event in ("call", "c_call"):
            next(self._count)

    def of_a_call(self, path: str, model: str, *, stream: bool, calls: int = CALLS) -> float:
        """Return the number of function calls for a call, as the mean of a group of calls."""
        body: dict[str, Any] = {"model": f"{model}/m", "prompt": TEXT, "max_tokens": 100}
        if "chat" in path:
            body["model"], body["messages"] = f"{model}-chat/m", [{"role": "user", "content": TEXT}]
            del body["prompt"]
        content = json.dumps(body | {"stream": stream})
        request = (
            f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:8000\r\nAuthorization: Bearer {self._key}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n{content}"
        ).encode()
        client, plain = socket.socketpair()
        server = Connection(fileno=plain.detach())
        self._upstream.written = server.sent
        with client, server:
            parser = FastRequestParser(self._config, server, ("127.0.0.1", 50000))
            for _ in range(min(calls, WARM_UP)):
                self._ask(parser, client, server, request)
            sys.setprofile(self._called)
            marks = [next(self._count)]
            for _ in range(GROUPS):
                for _ in range(calls):
                    self._ask(parser, client, server, request)
                marks.append(next(self._count))
            sys.setprofile(None)
        return min(after - before for before, after in pairwise(marks)) / calls

    def _ask(
        self,
        parser: FastRequestParser,
        client: socket.socket,
        server: Connection,
        request: bytes,
    ) -> None:
        server.sent.clear()
        client.sendall(request)
        found = next(parser)
        self._worker.handle_request(("127.0.0.1", 8000), found, server, ("127.0.0.1", 50000))
        assert server.sent[0].startswith(b"HTTP/1.1 200 OK\r\n"), server.sent


def count() -> dict[str, float]:
    """Return the counts for each face.

    "call" is a unary call. "event" is an additional event of a stream whose events arrive together,
    and "event alone" an additional event that arrives by itself.
    """
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as directory:
        counted = Counted(Path(directory))
        for face, path in FACES.items():
            found[f"{face} call"] = round(counted.of_a_call(path, "whole", stream=False))
            few, many = (counted.of_a_call(path, m, stream=True) for m in ("few", "many"))
            found[f"{face} event"] = round((many - few) / (MANY_EVENTS - FEW_EVENTS), 1)
            slow = counted.of_a_call(path, "slow", stream=True, calls=SLOW_CALLS)
            found[f"{face} event alone"] = round((slow - few) / (SLOW_EVENTS - FEW_EVENTS), 1)
    return found


if __name__ == "__main__":
    result = json.dumps(count(), indent=2)
    if "--record" in sys.argv:
        RECORD.write_text(result + "\n")
    print(result, flush=True)
