"""What a call costs, counted: how many functions the interpreter calls for it, Python's and C's, in
all threads. A count says the same on a busy machine, which no timing does.

In a process of its own, without gunicorn (whose part doesn't change with our code): the whole app
with a key, limits, a budget, the ledger and metrics, and an upstream that answers fixed bytes.

    python -m tests.costs             # count, as JSON
    python -m tests.costs --record    # and write it down, for tests/test_costs.py
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
from collections.abc import Callable, Iterable
from pathlib import Path
from types import FrameType
from typing import Any

from werkzeug.test import create_environ

RECORD = Path(__file__).with_name("costs.json")
CALLS, WARM_UP = 100, 20
FEW_EVENTS, MANY_EVENTS = 10, 110
FACES = {"openai": "/v1/completions", "native": "/api/v1/completions"}


class Upstream:
    """Answers each request with the bytes that its path stands for."""

    def __init__(self, answers: dict[bytes, bytes]) -> None:
        self._answers = answers
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            client, _ = self._listener.accept()
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, client.makefile("rb") as lines:
            while line := lines.readline():
                length = 0
                while (field := lines.readline().strip().lower()) != b"":
                    if field.startswith(b"content-length:"):
                        length = int(field.partition(b":")[2])
                lines.read(length)
                client.sendall(self._answers[line.split(b"/")[1]])


def answer(kind: str, body: str) -> bytes:
    head = f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    return (head + body).encode()


def streamed(events: int) -> bytes:
    chunks: Iterable[Any] = (
        *({"choices": [{"index": 0, "text": " word"}]} for _ in range(events)),
        {"choices": [{"index": 0, "text": "", "finish_reason": "length"}]},
        {"choices": [], "usage": {"prompt_tokens": 8, "completion_tokens": events}},
    )
    frames = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks)
    return answer("text/event-stream", frames + "data: [DONE]\n\n")


WHOLE = answer(
    "application/json",
    json.dumps(
        {
            "choices": [{"index": 0, "text": " word", "finish_reason": "length"}],
            "usage": {"prompt_tokens": 8, "completion_tokens": 1},
        }
    ),
)


class Nowhere(io.StringIO):
    """What is written to it is gone."""

    def write(self, text: str) -> int:
        return len(text)


class Counted:
    """The app, and the calls of functions while it answers."""

    def __init__(self, directory: Path) -> None:
        upstream = Upstream(
            {b"whole": WHOLE, b"few": streamed(FEW_EVENTS), b"many": streamed(MANY_EVENTS)}
        )
        self._count = itertools.count()
        threading.setprofile(self._called)  # before the app has threads

        from app import create_app
        from config import Settings
        from tests.test_app import make_key

        line, self._key = make_key(requests_per_minute=10**9, tokens_per_hour=10**9, budget_usd=1e6)
        names = ("whole", "few", "many")
        origin = f"http://127.0.0.1:{upstream.port}"
        self._app = create_app(
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
        for handler in logging.getLogger().handlers:  # its lines are shown to nobody
            handler.setStream(Nowhere())  # type: ignore[attr-defined]

    def _called(self, _frame: FrameType, event: str, _argument: object) -> None:
        if event in ("call", "c_call"):
            next(self._count)

    def of_a_call(self, path: str, model: str, *, stream: bool) -> float:
        """How many functions are called for one, on average."""
        body = {"model": f"{model}/m", "prompt": "Write a haiku:", "max_tokens": 100}
        headers = {"Authorization": f"Bearer {self._key}"}
        environs = [
            create_environ(path, method="POST", json=body | {"stream": stream}, headers=headers)
            for _ in range(WARM_UP + CALLS)
        ]
        for environ in environs[:WARM_UP]:
            self._ask(environ)
        sys.setprofile(self._called)
        first = next(self._count)
        for environ in environs[WARM_UP:]:
            self._ask(environ)
        last = next(self._count)
        sys.setprofile(None)
        return (last - first) / CALLS

    def _ask(self, environ: dict[str, Any]) -> None:
        statuses: list[str] = []
        start: Callable[..., Any] = lambda status, *_: statuses.append(status)  # noqa: E731
        response: Any = self._app.wsgi_app(environ, start)
        answered = b"".join(response)
        response.close()
        assert statuses == ["200 OK"], answered


def count() -> dict[str, float]:
    """What a unary call takes, and an event of a stream beyond that, at each face."""
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as directory:
        counted = Counted(Path(directory))
        for face, path in FACES.items():
            found[f"{face} call"] = round(counted.of_a_call(path, "whole", stream=False))
            few, many = (counted.of_a_call(path, m, stream=True) for m in ("few", "many"))
            found[f"{face} event"] = round((many - few) / (MANY_EVENTS - FEW_EVENTS), 1)
    return found


if __name__ == "__main__":
    result = json.dumps(count(), indent=2)
    if "--record" in sys.argv:
        RECORD.write_text(result + "\n")
    print(result, flush=True)
