"""Stream a completion, and stop it when there is enough of it.

    SLUICE_KEY=sk-sluice-... python examples/stream_and_stop.py "The list type"

SLUICE_URL and SLUICE_MODEL say where to and which model; ENOUGH how many characters are enough.
It needs the package requests.
"""

from __future__ import annotations

import json
import os
import sys
import uuid
from collections.abc import Iterator
from typing import Any

import requests

URL = os.environ.get("SLUICE_URL", "http://127.0.0.1:8000")
HEADERS = {"Authorization": "Bearer " + os.environ["SLUICE_KEY"]}
MODEL = os.environ.get("SLUICE_MODEL", "local/pydoc")
ENOUGH = int(os.environ.get("ENOUGH", "200"))


def stream(prompt: str, stream_id: str) -> Iterator[dict[str, Any]]:
    """The events of a streamed completion, as they come. Raises RuntimeError on a failure."""
    body = {
        "model": MODEL,
        "prompt": prompt,
        "max_tokens": 4000,
        "stream": True,
        "stream_id": stream_id,
    }
    url = f"{URL}/api/v1/completions"
    # The second time limit is for silence; a stream has a comment every 15 s.
    with requests.post(url, headers=HEADERS, json=body, stream=True, timeout=(10, 60)) as answer:
        if not answer.ok:
            raise RuntimeError(answer.json()["detail"])
        for line in answer.iter_lines():
            if line == b"data: [DONE]":
                return
            if line.startswith(b"data: "):
                event = json.loads(line[6:])
                if event["type"] == "error":
                    raise RuntimeError(event["error"])
                yield event
    raise RuntimeError("The stream broke off.")


def stop(stream_id: str) -> bool:
    """Stop a stream, from any process with the same key. False: it had ended by itself."""
    url = f"{URL}/api/v1/completions/stop-stream/{stream_id}"
    answer = requests.post(url, headers=HEADERS, timeout=10)
    if answer.status_code == 404:
        return False
    answer.raise_for_status()
    return True


def main() -> None:
    prompt = " ".join(sys.argv[1:]) or "The list type"
    stream_id = f"example-{uuid.uuid4()}"
    characters, stopped = 0, False
    for event in stream(prompt, stream_id):
        match event["type"]:
            case "content":
                print(event["data"], end="", flush=True)
                characters += len(event["data"])
                if characters >= ENOUGH and not stopped:
                    stopped = True
                    stop(stream_id)
            case "finish":
                print(f"\n\nfinish_reason: {event['finish_reason']}")
            case "usage_final":
                print(f"output_tokens: {event['output_tokens']}, cost: {event['cost_usd']}")


if __name__ == "__main__":
    main()
