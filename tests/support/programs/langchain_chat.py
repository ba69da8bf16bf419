"""Chats of LangChain's ChatOpenAI: python langchain_chat.py URL KEY. Prints the results as JSON."""

import json
import sys

from langchain_openai import ChatOpenAI  # type: ignore[import-not-found]
from pydantic import BaseModel


class Weather(BaseModel):
    """The weather of a city."""

    city: str
    celsius: float


def get_weather(city: str) -> str:
    """Get the weather of a city."""
    return city


llm = ChatOpenAI(
    base_url=f"{sys.argv[1]}/v1",
    api_key=sys.argv[2],
    model="fake/m",
    max_retries=0,
    stream_usage=True,
)
whole = llm.invoke("Say it")
first, *rest = llm.stream("Say it")
streamed = sum(rest, first)
tools = llm.bind_tools([get_weather])
called = tools.invoke("Weather?")
first, *rest = tools.stream("Weather?")
joined = sum(rest, first)
found = llm.with_structured_output(Weather, method="json_schema").invoke("Weather?")
try:
    error = repr(llm.invoke("Say it"))
except Exception as failure:  # noqa: BLE001 - any failure is a result
    error = f"{type(failure).__name__}: {failure}"
try:
    broken = repr([chunk.content for chunk in llm.stream("Say it")])
except Exception as failure:  # noqa: BLE001 - any failure is a result
    broken = f"{type(failure).__name__}: {failure}"


def usage(message: object) -> list[int]:
    metadata = message.usage_metadata  # type: ignore[attr-defined]
    return [metadata["input_tokens"], metadata["output_tokens"]]


print(
    json.dumps(
        {
            "whole": [whole.content, *usage(whole)],
            "streamed": [streamed.content, *usage(streamed)],
            "called": [[call["name"], call["args"]] for call in called.tool_calls],
            "called in a stream": [[call["name"], call["args"]] for call in joined.tool_calls],
            "object": found.model_dump(),
            "error": error,
            "broken": broken,
        }
    )
)
