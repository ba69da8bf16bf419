"""Stream a completion that outlives its connection: whenever it breaks, go on where it broke.

    SLUICE_KEY=sk-sluice-... python examples/resume.py "The list type"

SLUICE_URL is the gateway's URL, SLUICE_MODEL the model, and TRIES the number of connections that
may fail one after another. The example needs the package requests.
"""

from __future__ import annotations

import json
import os
import sys
import time
import uuid
from collections.abc import Iterator
from typing import Any

import requests

URL = os.environ.get("SLUICE_URL", "http://127.0.0.1:8000")
KEY = os.environ.get("SLUICE_KEY", "")
HEADERS = {"Authorization": "Bearer " + KEY}
MODEL = os.environ.get("SLUICE_MODEL", "local/slow")
PATH = f"{URL}/api/v1/completions"
TRIES = int(os.environ.get("TRIES", "10"))
PAUSE_S = 0.2
TIMEOUT_S = (10, 60)
"""The second one limits the time between two reads. A silent stream sends a comment every 15 s."""


class Resumable:
    """A stream that is read over as many connections as it takes."""

    def __init__(self, prompt: str) -> None:
        self.id = f"example-{uuid.uuid4()}"
        self.body = {"model": MODEL, "prompt": prompt, "max_tokens": 100, "stream": True}
        self.body |= {"resumable": True, "stream_id": self.id}
        self.last = 0
        """The id of the last event that has arrived."""
        self.accepted = False
        self.reconnects = -1

    def events(self) -> Iterator[dict[str, Any]]:
        """Yield the events.

        Raises RuntimeError if the call fails, and ConnectionError after TRIES failed connections.
        """
        tries = 0
        while True:
            self.reconnects += 1
            before = self.last
            try:
                yield from self._connection()
            except (requests.ConnectionError, requests.exceptions.ChunkedEncodingError) as error:
                tries = 0 if self.last > before else tries + 1
                if tries >= TRIES:
                    raise ConnectionError from error
                time.sleep(PAUSE_S * tries)
            else:
                return

    def _connection(self) -> Iterator[dict[str, Any]]:
        """Yield the events of one connection. Raises an error if it ends before the stream does."""
        with self._response() as response:
            if response.status_code == 409 and not self.accepted:  # the first request did arrive
                self.accepted = True
                raise requests.ConnectionError
            if response.status_code == 503 and self.accepted:  # try again, at any process
                raise requests.ConnectionError
            if not response.ok:
                raise RuntimeError(reason(response))
            self.accepted = True
            number = 0
            for line in response.iter_lines():
                name, _, value = line.partition(b": ")
                if name == b"id":
                    number = int(value)
                elif name == b"data":
                    self.last = number
                    if value == b"[DONE]":
                        return
                    event = json.loads(value)
                    if event["type"] == "error":
                        raise RuntimeError(event["error"])
                    yield event
        raise requests.ConnectionError

    def _response(self) -> requests.Response:
        if not self.accepted:
            return requests.post(
                PATH, headers=HEADERS, json=self.body, stream=True, timeout=TIMEOUT_S
            )
        again = {"Accept": "text/event-stream", "Last-Event-ID": str(self.last)}
        url = f"{PATH}/{self.id}"
        return requests.get(url, headers=HEADERS | again, stream=True, timeout=TIMEOUT_S)


def reason(response: requests.Response) -> str:
    """Return the message of an error response; its status if it isn't one of Sluice's."""
    try:
        return str(response.json()["detail"])
    except (ValueError, KeyError, TypeError):
        return f"{URL} answered with status {response.status_code}. Is it a Sluice server?"


def main() -> None:
    stream = Resumable(" ".join(sys.argv[1:]) or "The list type")
    for event in stream.events():
        match event["type"]:
            case "content":
                print(event["data"], end="", flush=True)
            case "finish":
                print(f"\n\nfinish_reason: {event['finish_reason']}")
            case "usage_final":
                print(f"output_tokens: {event['output_tokens']}, cost: {event['cost_usd']}")
    print(f"reconnects: {stream.reconnects}")


if __name__ == "__main__":
    if not KEY:
        sys.exit("Set SLUICE_KEY to an API key. './sluice keys create --name NAME' makes one.")
    try:
        main()
    except ConnectionError:
        sys.exit(f"No server answers at {URL}. Start one with 'make run', or set SLUICE_URL.")
    except (requests.RequestException, RuntimeError) as error:
        sys.exit(str(error))
