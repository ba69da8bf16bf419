"""Stream a completion with the openai SDK, and stop it once it is long enough.

    SLUICE_KEY=sk-sluice-... python examples/openai_sdk.py "The list type"

SLUICE_URL is the gateway's URL, SLUICE_MODEL the model, and ENOUGH the number of characters after
which the example stops the stream. The example needs the package openai.
"""

from __future__ import annotations

import contextlib
import os
import sys
import uuid

try:
    import openai
except ImportError:
    sys.exit("The openai package is missing: pip install openai")

KEY = os.environ.get("SLUICE_KEY", "")
URL = os.environ.get("SLUICE_URL", "http://127.0.0.1:8000")
MODEL = os.environ.get("SLUICE_MODEL", "local/slow")
ENOUGH = int(os.environ.get("ENOUGH", "200"))


def main() -> None:
    client = openai.OpenAI(base_url=f"{URL}/v1", api_key=KEY)
    stream_id = f"example-{uuid.uuid4()}"
    stream = client.completions.create(
        model=MODEL,
        prompt=" ".join(sys.argv[1:]) or "The list type",
        max_tokens=4000,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"stream_id": stream_id},
    )
    characters, stopped = 0, False
    for chunk in stream:
        for choice in chunk.choices:
            print(choice.text, end="", flush=True)
            characters += len(choice.text)
            if choice.finish_reason:
                # OpenAI has no finish_reason for a stopped stream. Sluice sends "stop", and
                # "cancelled" in native_finish_reason.
                reason = (choice.model_extra or {}).get("native_finish_reason")
                print(f"\n\nfinish_reason: {reason or choice.finish_reason}")
        if characters >= ENOUGH and not stopped:
            stopped = True
            with contextlib.suppress(openai.NotFoundError):  # the stream has already ended
                client.post(f"/completions/stop-stream/{stream_id}", cast_to=object)
        if chunk.usage:
            cost = (chunk.usage.model_extra or {}).get("cost")
            print(f"output_tokens: {chunk.usage.completion_tokens}, cost: {cost}")


if __name__ == "__main__":
    if not KEY:
        sys.exit("Set SLUICE_KEY to an API key. './sluice keys create --name NAME' makes one.")
    try:
        main()
    except openai.APIConnectionError:
        sys.exit(f"No server answers at {URL}. Start one with 'make run', or set SLUICE_URL.")
    except openai.APIError as error:
        sys.exit(" ".join(error.message.split()))
