"""The tokenizer endpoints: /tokenize, /detokenize and /tokenizer_info, in vLLM's format.

- /tokenize also takes llama.cpp's format, and answers in it.

Sources: vLLM, vllm/entrypoints/serve/tokenize/protocol.py; llama.cpp, tools/server/README.md, "POST
/tokenize" and "POST /detokenize" (read 2026-11).
"""

from __future__ import annotations

from typing import Annotated, Any, Final

from flask import Blueprint, Response
from msgspec import Meta

from auth import auth, current_key
from completion import TokenList, TokenSource
from endpoints import calls, llamacpp, request_fields, request_secrets
from endpoints.flask_app import current
from endpoints.responses import encoded_in_pieces, json_response
from endpoints.services import services
from errors import InvalidRequest
from gateway.tokenizers import TokenizerCaller, Tokenizers
from routing.router import Route

bp = Blueprint("tokenizers", __name__)

ROUTING: Final = ("model", "provider", "byok_api_key")
TEXT: Final = (str, "a string")
YES: Final = (bool, "true or false")
OBJECT: Final = (dict[str, Any], "an object")
LISTED: Final = (list[dict[str, Any]], "a list of objects")
COMMON: Final = {"return_token_strs": YES}
CHAT: Final = {
    "add_generation_prompt": YES,
    "continue_final_message": YES,
    "chat_template": TEXT,
    "chat_template_kwargs": OBJECT,
    "mm_processor_kwargs": OBJECT,
    "tools": LISTED,
}
"""The fields of vLLM that say how messages become a text."""
SOURCES: Final[dict[str, dict[str, tuple[Any, str]]]] = {
    "prompt": {"prompt": TEXT, "add_special_tokens": YES},
    "messages": {"messages": LISTED, "add_special_tokens": YES, **CHAT},
    "content": {"content": TEXT, "add_special": YES, "parse_special": YES, "with_pieces": YES},
}
"""The three kinds of bodies: for each, the field that tells it, and the fields that it may have."""
TokenIds = list[Annotated[int, Meta(ge=0, lt=2**31)]]
IDS_TAKES: Final = "a list of token ids"


@bp.post("/tokenize")
@auth.login_required
def tokenize() -> Response:
    data = read_body()
    source = parse(data)
    found = tokenizers().tokenize(source, caller(data))
    answer = llamacpp_answer if "content" in data else vllm_answer
    return json_response(answer(found, source))


@bp.post("/detokenize")
@auth.login_required
def detokenize() -> Response:
    data = read_body()
    request_fields.refuse_unknown(data, (*ROUTING, "tokens"))
    ids = llamacpp.convert("tokens", data.get("tokens"), TokenIds, IDS_TAKES)
    if ids is None:
        raise InvalidRequest(f"tokens is missing; expected {IDS_TAKES}.", param="tokens")
    text = tokenizers().detokenize(ids, caller(data))
    return json_response(encoded_in_pieces({"prompt": text}))


@bp.get("/tokenizer_info")
@auth.login_required
def tokenizer_info() -> Response:
    data = {name: value for name, value in current().args.items() if value}
    request_fields.refuse_unknown(data, ("model", "provider"))
    return json_response(tokenizers().info(caller(data)))


def read_body() -> dict[str, Any]:
    """Return the fields of the current request's body that aren't null. Raises SluiceError."""
    data = request_fields.read_object(services().settings.max_body)
    return {name: value for name, value in data.items() if value is not None}


def parse(data: dict[str, Any]) -> TokenSource:
    """Return what a body of /tokenize asks for. Raises InvalidRequest."""
    kinds = [name for name in SOURCES if name in data]
    if len(kinds) != 1:
        got = "several of them" if kinds else "none of them"
        raise InvalidRequest(
            f"Expected one of {', '.join(SOURCES)}; got {got}.",
            param=kinds[-1] if kinds else "prompt",
        )
    fields = SOURCES[kinds[0]] | COMMON
    request_fields.refuse_unknown(data, (*ROUTING, *fields))
    values = {name: llamacpp.convert(name, data.get(name), *fields[name]) for name in fields}
    return TokenSource(
        text=values.get("prompt", values.get("content")),
        messages=values.get("messages"),
        add_special=special(values),
        parse_special=values.get("parse_special") is not False,
        strings=bool(values["return_token_strs"]),
        pieces=bool(values.get("with_pieces")),
        chat={name: value for name in CHAT if (value := values.get(name)) is not None},
    )


def special(values: dict[str, Any]) -> bool:
    """Return whether special tokens are added. By default they are added to a prompt only."""
    wanted = values.get("add_special", values.get("add_special_tokens"))
    return "prompt" in values if wanted is None else bool(wanted)


def route(data: dict[str, Any]) -> Route:
    """Return the model that the current request names. Raises InvalidRequest."""
    named = {name: data[name] for name in ROUTING if data.get(name)}
    found = request_fields.parameters(named)
    if found.byok_api_key is None:
        found.byok_api_key = calls.header(
            current().environ, "HTTP_X_PROVIDER_API_KEY", "byok_api_key"
        )
    request_secrets.refuse_secrets({"model": found.model or "", "provider": found.provider or ""})
    return request_fields.to_route(found)


def caller(data: dict[str, Any]) -> TokenizerCaller:
    """Return who makes the current request, for which model. Raises InvalidRequest."""
    limits = calls.time_limits(current().environ.get("HTTP_X_SLUICE_TIMEOUT", ""))
    return TokenizerCaller(route(data), current_key(), limits)


def tokenizers() -> Tokenizers:
    return services().gateway.tokenizers


def vllm_answer(found: TokenList, source: TokenSource) -> dict[str, Any]:
    return {
        "count": len(found.ids),
        "max_model_len": found.max_model_len,
        "tokens": found.ids,
        "token_strs": found.strings if source.strings else None,
    }


def llamacpp_answer(found: TokenList, source: TokenSource) -> dict[str, Any]:
    tokens = found.pieces if source.pieces and found.pieces is not None else found.ids
    return {"tokens": tokens} | ({"token_strs": found.strings} if source.strings else {})
