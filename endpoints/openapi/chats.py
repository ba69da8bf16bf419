"""Chats in the OpenAPI document: their bodies, schemas and examples."""

from __future__ import annotations

from typing import Any, Final

from endpoints import chat, request_fields
from endpoints.openapi import schemas
from endpoints.openapi.errors import Face
from endpoints.openapi.schemas import COUNT, TEXT, Schema, items

MESSAGES: Final = [
    {"role": "system", "content": "Answer in one sentence."},
    {"role": "user", "content": "Write a haiku about semicolons."},
]
BODIES: dict[Face, dict[str, dict[str, Any]]] = {
    "native": {"short": {"messages": MESSAGES, "model": "local/pydoc", "max_tokens": 40}},
    "openai": {
        "short": {"messages": MESSAGES, "model": "local/pydoc"},
        "stream": {
            "messages": MESSAGES,
            "model": "local/pydoc",
            "stream": True,
            "stream_options": {"include_usage": True},
            "max_tokens": 40,
        },
    },
}
STREAMS: dict[Face, str] = {
    "native": (
        "event: usage_start\n"
        'data: {"type":"usage_start","request_id":"550e8400","stream_id":"my-stream",'
        '"provider":"openai","model":"gpt-4o-mini","input_tokens":0}\n\n'
        'data: {"type":"content","data":"Hello","provider":"openai","choices":[{"index":0,'
        '"delta":{"content":"Hello"},"finish_reason":null}]}\n\n'
        'data: {"type":"finish","provider":"openai","finish_reason":"stop","choices":[{"index":0,'
        '"delta":{},"finish_reason":"stop"}]}\n\n'
        "event: usage_final\n"
        'data: {"type":"usage_final","input_tokens":8,"output_tokens":1,"cost_usd":1e-05,'
        '"latency_ms":450.2,"attempts":1}\n\n'
        "data: [DONE]\n\n"
    ),
    "openai": (
        'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1775563200,'
        '"model":"openai/gpt-4o-mini","choices":[{"index":0,"delta":{"role":"assistant",'
        '"content":"Hello"},"finish_reason":null}]}\n\n'
        'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1775563200,'
        '"model":"openai/gpt-4o-mini","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}'
        "\n\ndata: [DONE]\n\n"
    ),
}
CHOICES: Final = [
    {
        "index": 0,
        "message": {"role": "assistant", "content": "Semicolons fall."},
        "finish_reason": "stop",
    }
]
ANSWERS: dict[str, Any] = {
    "OpenAIChat": {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1775563200,
        "model": "openai/gpt-4o-mini",
        "choices": CHOICES,
        "usage": {
            "prompt_tokens": 8,
            "completion_tokens": 5,
            "total_tokens": 13,
            "cost": 1e-05,
        },
    },
    "Chat": {
        "request_id": "550e8400-e29b-41d4-a716-446655440000",
        "created_at": "2026-04-07T12:00:00Z",
        "duration_ms": 450.2,
        "provider": "openai",
        "model": "gpt-4o-mini",
        "success": True,
        "message": "",
        "data": "Semicolons fall.",
        "finish_reason": "stop",
        "usage": {
            "tokens_prompt": 8,
            "tokens_completion": 5,
            "tokens_total": 13,
            "cost": 1e-05,
            "latency": 449.8,
        },
        "choices": CHOICES,
    },
}
OPEN: Final = {"additionalProperties": True}
BY_HOST: Final = "All other fields are sent to the host unchanged."


def every() -> dict[str, Schema]:
    return bodies() | answers()


def bodies() -> dict[str, Schema]:
    known = schemas.native_body()["properties"]
    message = {"type": "object", "properties": {"role": TEXT}, "required": ["role"]} | OPEN
    messages = items(message) | {
        "minItems": 1,
        "description": f"Expects {request_fields.TAKES['messages']}.",
    }
    native = {name: known[name] for name in chat.NATIVE_FIELDS if name in known}
    openai = schemas.openai_body()["properties"]
    names = ("model", "provider", "fallbacks", "byok_api_key", "stream_id", "stream", "n")
    read = {name: openai[name] for name in (*names, "stream_options", "additional_params")}
    limit: Schema = {"type": "integer", "maximum": 2**31 - 1}
    read["max_tokens"] = schemas.nullable(limit) | {"description": "Below 0: no limit."}
    by_host = OPEN | {"description": BY_HOST}
    return {
        "ChatRequest": schemas.closed({"messages": messages}, native),
        "OpenAIChatRequest": schemas.closed({"messages": messages}, read) | by_host,
    }


def answers() -> dict[str, Schema]:
    known = schemas.completions()
    usage = known["OpenAICompletion"]["properties"]["usage"]
    choice = {
        "type": "object",
        "properties": {"index": COUNT, "message": {"type": "object"}, "finish_reason": {}},
    }
    choices = {"choices": items(choice | OPEN)}
    whole = known["Completion"]
    found = {name: schema for name, schema in whole["properties"].items() if name != "extra"}
    openai = {
        "id": TEXT,
        "object": {"const": "chat.completion"},
        "created": COUNT,
        "model": TEXT,
        **choices,
        "usage": usage | OPEN,
    }
    return {
        "Chat": whole
        | {"properties": found | {"finish_reason": TEXT} | choices}
        | {"required": [*whole["required"], "choices"]},
        "OpenAIChat": schemas.closed(openai, {"byok_api_key": {"type": "boolean"}}) | OPEN,
    }
