"""The endpoints that editors call, in the OpenAPI document: their bodies, schemas and examples."""

from __future__ import annotations

from typing import Any, NamedTuple

from endpoints import llamacpp, request_fields
from endpoints.openapi import schemas
from endpoints.openapi.schemas import COUNT, FREE, TEXT, YES, Schema, closed, items, nullable, ref

TOOK = "Expects {}. null counts as absent."
MODEL = "Without one, or with an empty one, SLUICE_FIM_MODEL counts."


class Editors(NamedTuple):
    """An endpoint that completes text for an editor."""

    paths: tuple[str, ...]
    id: str
    summary: str
    request: str
    """The name of the request's schema."""
    answer: str
    """The name of the answer's schema."""
    body: dict[str, Any]
    stream: str


CHAT_STREAM = (
    'data: {"id":"cmpl-1","object":"chat.completion.chunk","created":1775563200,'
    '"model":"mistral/codestral-latest","choices":[{"index":0,"delta":{"role":"assistant",'
    '"content":"return a + b"},"finish_reason":null}]}\n\n'
    'data: {"id":"cmpl-1","object":"chat.completion.chunk","created":1775563200,'
    '"model":"mistral/codestral-latest","choices":[{"index":0,"delta":{"role":"assistant",'
    '"content":""},"finish_reason":"stop"}],"usage":{"prompt_tokens":8,"completion_tokens":5,'
    '"total_tokens":13,"cost":1e-05}}\n\n'
    "data: [DONE]\n\n"
)
TEXT_STREAM = (
    'data: {"id":"cmpl-1","object":"text_completion","created":1775563200,'
    '"model":"deepseek/deepseek-flash","choices":[{"text":"return a + b","index":0,'
    '"logprobs":null,"finish_reason":null}]}\n\n'
    'data: {"id":"cmpl-1","object":"text_completion","created":1775563200,'
    '"model":"deepseek/deepseek-flash","choices":[{"text":"","index":0,"logprobs":null,'
    '"finish_reason":"stop"}]}\n\n'
    "data: [DONE]\n\n"
)
PIECES = (
    'data: {"index":0,"content":"return a + b","stop":false}\n\n'
    'data: {"index":0,"content":"","stop":true,"model":"vllm/qwen2.5-coder-7b",'
    '"tokens_predicted":5,"tokens_evaluated":8,"stop_type":"eos","stopping_word":"",'
    '"truncated":false}\n\n'
)
GAP = {"prompt": "def add(a, b):\n    ", "suffix": "\n", "max_tokens": 40}
INFILL = {"input_prefix": "def add(a, b):\n    ", "input_suffix": "\n", "n_predict": 40}
ENDPOINTS = (
    Editors(
        paths=("/v1/fim/completions", "/fim/completions"),
        id="openaiFim",
        summary="Fill in the middle, in Mistral's format",
        request="FimRequest",
        answer="FimCompletion",
        body=GAP | {"model": "mistral/codestral-latest"},
        stream=CHAT_STREAM,
    ),
    Editors(
        paths=("/beta/completions",),
        id="openaiBeta",
        summary="Fill in the middle, in DeepSeek's format",
        request="BetaRequest",
        answer="OpenAICompletion",
        body=GAP | {"model": "deepseek/deepseek-flash"},
        stream=TEXT_STREAM,
    ),
    Editors(
        paths=("/infill", "/v1/infill"),
        id="openaiInfill",
        summary="Fill in the middle, in llama.cpp's format",
        request="InfillRequest",
        answer="LlamaCppAnswer",
        body=INFILL | {"model": "llamacpp/qwen2.5-coder-7b"},
        stream=PIECES,
    ),
    Editors(
        paths=("/completion", "/completions"),
        id="openaiLlamaCpp",
        summary="Complete a text, in llama.cpp's format",
        request="LlamaCppRequest",
        answer="LlamaCppAnswer",
        body={"prompt": "def add(a, b):", "n_predict": 40, "model": "local/pydoc"},
        stream=PIECES,
    ),
)
ANSWERS: dict[str, Any] = {
    "FimCompletion": {
        "id": "cmpl-550e8400-e29b-41d4-a716-446655440000",
        "object": "chat.completion",
        "created": 1775563200,
        "model": "mistral/codestral-latest",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "return a + b"},
                "finish_reason": "stop",
            }
        ],
        "usage": {
            "prompt_tokens": 8,
            "completion_tokens": 5,
            "total_tokens": 13,
            "cost": 1e-05,
        },
    },
    "LlamaCppAnswer": {
        "index": 0,
        "content": "return a + b",
        "stop": True,
        "model": "vllm/qwen2.5-coder-7b",
        "tokens_predicted": 5,
        "tokens_evaluated": 8,
        "stop_type": "eos",
        "stopping_word": "",
        "truncated": False,
    },
}


def bodies() -> dict[str, Schema]:
    openai = schemas.openai_body()
    model = nullable({"type": "string", "maxLength": 512}) | {"description": MODEL}
    fields: Schema = openai["properties"] | {"model": model}
    seed = {"random_seed": fields["seed"]}
    text = TEXT | {"description": "Expects a string."}
    fim = openai | {"properties": fields | {"prompt": text} | seed}
    tokens: Schema = nullable({"type": "integer", "maximum": 2**31 - 1})
    count = {"n_predict": tokens | {"description": "Below 0: no limit."}, "max_tokens": tokens}
    paths = nullable(items(TEXT)) | {"description": TOOK.format(llamacpp.FIELDS_TAKES)}
    cut = {"response_fields": paths}
    extra: Schema = {
        "type": "object",
        "properties": {"text": TEXT, "filename": nullable(TEXT)},
        "required": ["text"],
    }
    files = nullable(items(extra)) | {"description": TOOK.format(llamacpp.EXTRA_TAKES)}
    infill = {name: fields[name] for name in llamacpp.COMMON} | count | cut
    infill |= {"n_cmpl": fields["n"], "input_extra": files, "prompt": nullable(TEXT)}
    known = infill.keys() | {"input_prefix", "input_suffix"}
    return {
        "FimRequest": fim,
        "BetaRequest": openai | {"properties": fields},
        "LlamaCppRequest": openai | {"properties": fields | count | cut},
        "InfillRequest": closed({"input_prefix": text, "input_suffix": text}, infill)
        | {
            "additionalProperties": True,
            "propertyNames": {"not": {"enum": sorted(request_fields.BEYOND_PARAMS - known)}},
            "description": "A llama.cpp server gets other fields unchanged. For other targets they "
            "are left out and named in X-Sluice-Dropped. " + schemas.OTHER_NAMES,
        },
    }


def answers() -> dict[str, Schema]:
    completion = schemas.completions()["OpenAICompletion"]
    properties = completion["properties"]
    choice = properties["choices"]["items"]
    parts = {n: s for n, s in choice["properties"].items() if n not in ("text", "logprobs")}
    message = closed({"role": {"const": "assistant"}, "content": TEXT})
    chat = {"index": parts["index"], "message": message, "finish_reason": parts["finish_reason"]}
    more = {"logprobs": FREE, "native_finish_reason": parts["native_finish_reason"]}
    one: Schema = {
        "type": "object",
        "properties": {
            "index": COUNT,
            "content": TEXT,
            "stop": YES,
            "tokens_predicted": COUNT,
            "tokens_evaluated": COUNT,
        },
        "description": "Cut to response_fields, if the request has them.",
    }
    return {
        "FimCompletion": completion
        | {
            "properties": properties
            | {
                "object": {"const": "chat.completion"},
                "choices": items(closed(chat, more) | schemas.ADDED),
            }
        },
        "LlamaCppChoice": one,
        "LlamaCppAnswer": {"anyOf": [ref("LlamaCppChoice"), items(ref("LlamaCppChoice"))]},
    }
