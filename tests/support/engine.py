"""A simulated engine: a server of completions that answers each request after a random time.

The text of an answer is JSON: the engine's port, and the calls that it had when the request
arrived, with it. An engine can be killed, and started again at its port.

    python -m tests.support.engine PORT LEAST_S MOST_S
"""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
from typing import Self

from tests.support.pace import HANG_S
from tests.support.paths import ROOT
from tests.support.servers import free_port


class Engine:
    """An engine in a process of its own: `with Engine() as engine: ...`

    Args:
        least, most: The bounds of the seconds that an answer takes.
    """

    def __init__(self, least: float = 0.01, most: float = 0.05) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}/v1"
        arguments = (str(self.port), str(least), str(most))
        self._command = [sys.executable, "-m", "tests.support.engine", *arguments]
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Start the process, and wait until it listens."""
        self._process = subprocess.Popen(
            self._command, cwd=ROOT, stdout=subprocess.PIPE, text=True, process_group=0
        )
        assert self._process.stdout is not None
        self._process.stdout.readline()

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate(timeout=HANG_S)
            self._process = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


async def serve(port: int, least: float, most: float) -> None:
    in_flight = 0

    async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal in_flight
        while head := await head_of(reader):
            await reader.readexactly(length_of(head))
            in_flight += 1
            text = json.dumps({"port": port, "in_flight": in_flight})
            try:
                await asyncio.sleep(random.uniform(least, most))
            finally:
                in_flight -= 1
            choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": "stop"}
            usage = {"prompt_tokens": 300, "completion_tokens": 8, "total_tokens": 308}
            body = json.dumps({"object": "text_completion", "choices": [choice], "usage": usage})
            answer = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: "
            writer.write(f"{answer}{len(body)}\r\n\r\n{body}".encode())
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(respond, "127.0.0.1", port)
    print("ready", flush=True)
    await server.serve_forever()


async def head_of(reader: asyncio.StreamReader) -> str:
    """Return the head of the next message; empty at the end of the connection."""
    try:
        return (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    except (asyncio.IncompleteReadError, ConnectionError):
        return ""


def field(head: str, name: str) -> str:
    lines = (line.partition(":") for line in head.split("\r\n"))
    return next((value.strip() for key, _, value in lines if key.lower() == name), "")


def length_of(head: str) -> int:
    return int(field(head, "content-length") or 0)


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3])))
