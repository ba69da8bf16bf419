"""Chats of LiteLLM: python litellm_chat.py URL KEY. Prints the results as JSON."""

import json
import os
import sys
from typing import Any

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # otherwise it is fetched

import litellm  # type: ignore[import-not-found]
from pydantic import BaseModel


class Weather(BaseModel):
    city: str
    celsius: float


PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}}
TOOLS = [{"type": "function", "function": {"name": "get_weather", "parameters": PARAMETERS}}]
litellm.suppress_debug_info = True


def ask(**more: Any) -> Any:
    return litellm.completion(
        model="openai/fake/m",
        api_base=f"{sys.argv[1]}/v1",
        api_key=sys.argv[2],
        messages=[{"role": "user", "content": "Say it"}],
        max_retries=0,
        **more,
    )


def result(answer: Any) -> list[Any]:
    usage = answer.usage
    return [answer.choices[0].message.content, usage.prompt_tokens, usage.completion_tokens]


def calls(answer: Any) -> list[list[Any]]:
    found = answer.choices[0].message.tool_calls
    return [[call.function.name, json.loads(call.function.arguments)] for call in found]


def joined(**more: Any) -> Any:
    return litellm.stream_chunk_builder(list(ask(stream=True, **more)))


whole = ask()
streamed = joined(stream_options={"include_usage": True})
called = calls(ask(tools=TOOLS))
called_in_a_stream = calls(joined(tools=TOOLS))
found = ask(response_format=Weather).choices[0].message.content
try:
    error = repr(ask())
except Exception as failure:  # noqa: BLE001 - any failure is a result
    error = f"{type(failure).__name__}: {failure}"
try:
    broken = repr([chunk.choices[0].delta.content for chunk in ask(stream=True)])
except Exception as failure:  # noqa: BLE001 - any failure is a result
    broken = f"{type(failure).__name__}: {failure}"
print(
    json.dumps(
        {
            "whole": result(whole),
            "streamed": result(streamed),
            "called": called,
            "called in a stream": called_in_a_stream,
            "object": json.loads(found),
            "error": error,
            "broken": broken,
        }
    )
)
