"""Chats of LlamaIndex's OpenAILike: python llamaindex_chat.py URL KEY. Prints JSON."""

import json
import sys

from llama_index.core.llms import ChatMessage  # type: ignore[import-not-found]
from llama_index.core.prompts import PromptTemplate  # type: ignore[import-not-found]
from llama_index.core.tools import FunctionTool  # type: ignore[import-not-found]
from llama_index.llms.openai_like import OpenAILike  # type: ignore[import-not-found]
from pydantic import BaseModel


class Weather(BaseModel):
    """The weather of a city."""

    city: str
    celsius: float


def get_weather(city: str) -> str:
    """Get the weather of a city."""
    return city


llm = OpenAILike(
    api_base=f"{sys.argv[1]}/v1",
    api_key=sys.argv[2],
    model="fake/m",
    max_retries=0,
    is_chat_model=True,
    is_function_calling_model=True,
    should_use_structured_outputs=True,
)
ask = [ChatMessage(role="user", content="Say it")]
tools = [FunctionTool.from_defaults(get_weather)]


def calls(response: object) -> list[list[object]]:
    found = llm.get_tool_calls_from_response(response, error_on_no_tool_call=False)
    return [[call.tool_name, call.tool_kwargs] for call in found]


def usage(response: object) -> list[int]:
    raw = response.raw.usage  # type: ignore[attr-defined]
    return [raw.prompt_tokens, raw.completion_tokens]


whole = llm.chat(ask)
*_, streamed = llm.stream_chat(ask, stream_options={"include_usage": True})
called = calls(llm.chat_with_tools(tools, chat_history=ask, allow_parallel_tool_calls=True))
*_, joined = llm.stream_chat_with_tools(tools, chat_history=ask, allow_parallel_tool_calls=True)
found = llm.structured_predict(Weather, PromptTemplate("Weather?"))
try:
    error = repr(llm.chat(ask))
except Exception as failure:  # noqa: BLE001 - any failure is a result
    error = f"{type(failure).__name__}: {failure}"
try:
    broken = repr([chunk.delta for chunk in llm.stream_chat(ask)])
except Exception as failure:  # noqa: BLE001 - any failure is a result
    broken = f"{type(failure).__name__}: {failure}"
print(
    json.dumps(
        {
            "whole": [whole.message.content, *usage(whole)],
            "streamed": [streamed.message.content, *usage(streamed)],
            "called": called,
            "called in a stream": calls(joined),
            "object": found.model_dump(),
            "error": error,
            "broken": broken,
        }
    )
)
