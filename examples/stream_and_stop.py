"""Stream a completion, and stop it once it is long enough.

    SLUICE_KEY=sk-sluice-... python examples/stream_and_stop.py "The list type"

SLUICE_URL is the gateway's URL, SLUICE_MODEL the model, and ENOUGH the number of characters after
which the example stops the stream. The example needs the package requests.
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
KEY = os.environ.get("SLUICE_KEY", "")
HEADERS = {"Authorization": "Bearer " + KEY}
MODEL = os.environ.get("SLUICE_MODEL", "local/slow")
ENOUGH = int(os.environ.get("ENOUGH", "200"))


def stream(prompt: str, stream_id: str) -> Iterator[dict[str, Any]]:
    """Yield the events of a streamed completion as they arrive. Raises RuntimeError on failure."""
    body = {
        "model": MODEL,
        "prompt": prompt,
        "max_tokens": 4000,
        "stream": True,
        "stream_id": stream_id,
    }
    url = f"{URL}/api/v1/completions"
    # The second timeout limits the time between two reads. A silent stream sends a comment every
    # 15 s.
    with requests.post(url, headers=HEADERS, json=body, stream=True, timeout=(10, 60)) as response:
        if not response.ok:
            raise RuntimeError(reason(response))
        for line in response.iter_lines():
            if line == b"data: [DONE]":
                return
            if line.startswith(b"data: "):
                event = json.loads(line[6:])
                if event["type"] == "error":
                    raise RuntimeError(event["error"])
                yield event
    raise RuntimeError("The connection closed before the end of the stream.")


def reason(response: requests.Response) -> str:
    """Return the message of an error response; its status if it isn't one of Sluice's."""
    try:
        return str(response.json()["detail"])
    except (ValueError, KeyError, TypeError):
        return f"{URL} answered with status {response.status_code}. Is it a Sluice server?"


def stop(stream_id: str) -> bool:
    """Stop a stream. Any process that has the API key can do this.

    Return False if the stream has already ended.
    """
    url = f"{URL}/api/v1/completions/stop-stream/{stream_id}"
    response = requests.post(url, headers=HEADERS, timeout=10)
    if response.status_code == 404:
        return False
    response.raise_for_status()
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
    if not KEY:
        sys.exit("Set SLUICE_KEY to an API key. './sluice keys create --name NAME' makes one.")
    try:
        main()
    except requests.ConnectionError:
        sys.exit(f"No server answers at {URL}. Start one with 'make run', or set SLUICE_URL.")
    except (requests.RequestException, RuntimeError) as error:
        sys.exit(str(error))
