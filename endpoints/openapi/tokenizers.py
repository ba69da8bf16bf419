"""The tokenizer endpoints in the OpenAPI document: their bodies, schemas and examples."""

from __future__ import annotations

from typing import Any, Final

import errors as e
from endpoints import request_fields, tokenizers
from endpoints.openapi.errors import responses
from endpoints.openapi.headers import LIMITS
from endpoints.openapi.operations import COMPLETION_ERRORS, Part, ok, operation
from endpoints.openapi.schemas import COUNT, TEXT, Schema, closed, items, nullable, ref

KINDS: Final[dict[str, Schema]] = {
    "a string": TEXT,
    "true or false": {"type": "boolean"},
    "an object": {"type": "object"},
    "a list of objects": items({"type": "object"}),
}
MODEL: Final = (
    "Without one, SLUICE_TOKENIZE_MODEL counts, else SLUICE_DEFAULT_MODEL. Of an alias, the first "
    "model counts."
)
TOKEN: Final[Schema] = {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}
BODIES: Final[dict[str, dict[str, Any]]] = {
    "TokenizeRequest": {"model": "vllm/llama-3.1-8b", "prompt": "The quick brown"},
    "DetokenizeRequest": {"model": "vllm/llama-3.1-8b", "tokens": [791, 4062, 14198]},
}
ANSWERS: Final[dict[str, Any]] = {
    "Tokenized": {
        "count": 3,
        "max_model_len": 4096,
        "tokens": [791, 4062, 14198],
        "token_strs": None,
    },
    "Detokenized": {"prompt": "The quick brown"},
    "TokenizerInfo": {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|begin_of_text|>",
        "eos_token": "<|end_of_text|>",
    },
}


def routing() -> dict[str, Schema]:
    name = nullable({"type": "string", "maxLength": 512})
    key: Schema = {
        "type": "string",
        "format": "password",
        "description": f"Expects {request_fields.TAKES['byok_api_key']}.",
    }
    return {
        "model": name | {"description": MODEL},
        "provider": name,
        "byok_api_key": nullable(key),
    }


def kind_of_body(name: str) -> Schema:
    """Return the schema of a body of /tokenize that has a field of tokenizers.SOURCES."""
    fields = tokenizers.SOURCES[name] | tokenizers.COMMON
    found = {
        field: KINDS[takes] | {"description": f"Expects {takes}."}
        for field, (_, takes) in fields.items()
    }
    required = {name: found.pop(name)}
    return closed(required, {field: nullable(s) for field, s in found.items()} | routing())


def schemas() -> dict[str, Schema]:
    bytes_of = items({"type": "integer", "minimum": 0, "maximum": 255})
    piece = closed({"id": COUNT, "piece": {"anyOf": [TEXT, bytes_of]}})
    strings = nullable(items(TEXT))
    length = nullable(COUNT) | {"description": "null if the host doesn't report it."}
    vllm = {"count": COUNT, "max_model_len": length, "tokens": items(COUNT), "token_strs": strings}
    llamacpp = {"tokens": {"anyOf": [items(COUNT), items(piece)]}}
    ids = items(TOKEN) | {"description": f"Expects {tokenizers.IDS_TAKES}."}
    return {
        "TokenizeRequest": {"anyOf": [kind_of_body(name) for name in tokenizers.SOURCES]},
        "DetokenizeRequest": closed({"tokens": ids}, routing()),
        "Tokenized": {
            "anyOf": [closed(vllm), closed(llamacpp, {"token_strs": strings})],
            "description": "A body with content gets llama.cpp's answer, others get vLLM's.",
        },
        "Detokenized": closed({"prompt": TEXT}),
        "TokenizerInfo": {
            "type": "object",
            "additionalProperties": True,
            "description": "What the host says, as it is.",
        },
    }


TOKENIZER_ERRORS = tuple(
    kind for kind in COMPLETION_ERRORS if kind not in (e.InsufficientCredits, e.StreamExists)
)


def posts() -> dict[str, Part]:
    return {
        "/tokenize": tokenizing("tokenize", "The tokens of a text", "Tokenize", "Tokenized"),
        "/detokenize": tokenizing(
            *("detokenize", "The text of tokens", "Detokenize", "Detokenized")
        ),
    }


def tokenizing(id_: str, summary: str, request: str, answer: str) -> Part:
    name = f"{request}Request"
    content = {"schema": ref(name), "example": BODIES[name]}
    return operation(
        id_,
        "Tokenizers",
        summary,
        {"200": ok(ref(answer), ANSWERS[answer], *LIMITS)} | responses("openai", *TOKENIZER_ERRORS),
        requestBody={"required": True, "content": {"application/json": content}},
    )


def info() -> Part:
    text: Part = {"type": "string"}
    answers = {"200": ok(ref("TokenizerInfo"), ANSWERS["TokenizerInfo"], *LIMITS)} | responses(
        "openai", *TOKENIZER_ERRORS
    )
    return operation(
        *("tokenizerInfo", "Tokenizers", "The configuration of a tokenizer", answers),
        parameters=[
            {"name": name, "in": "query", "description": meaning, "schema": text}
            for name, meaning in (("model", MODEL), ("provider", "The model's provider."))
        ],
    )
