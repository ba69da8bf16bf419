"""The tokenizer endpoints of hosts: the requests to send, and what the answers mean.

- The functions are pure.
- The endpoints are beside /v1, not under it.
- A host gives its own tokens. Nothing is estimated, and what a host can't do is refused.

Sources: vLLM, vllm/entrypoints/serve/tokenize/protocol.py; llama.cpp, tools/server/README.md, "POST
/tokenize" and "POST /detokenize" (read 2026-11).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, Literal, NamedTuple, TypeAlias, TypeVar

import msgspec

from completion import CompletionRequest, LlamaCppPiece, TokenList, TokenSource
from errors import UpstreamError
from providers import request_parts
from providers.base import Target, UpstreamRequest
from providers.decoding.lenient_json import NOT_JSON, garbage
from providers.decoding.logprobs import bytes_name

Endpoint: TypeAlias = Literal["/tokenize", "/detokenize", "/tokenizer_info"]
ABSENT: Final = frozenset((404, 405, 501))
"""The statuses of a host that lacks an endpoint."""
NOT_STREAMED: Final = CompletionRequest(prompts=())
T = TypeVar("T")


class VllmTokens(msgspec.Struct):
    tokens: list[int]
    token_strs: list[str] | None = None
    max_model_len: int | None = None


class VllmText(msgspec.Struct):
    prompt: str


class LlamaCppTokens(msgspec.Struct):
    tokens: list[int | LlamaCppPiece]


class LlamaCppText(msgspec.Struct):
    content: str


class TokenizerFormat(NamedTuple):
    """The format of a host's tokenizer endpoints."""

    lacks: Callable[[TokenSource], str]
    """Returns the name of the field that the host lacks; empty if it can do all."""
    body: Callable[[TokenSource], dict[str, Any]]
    tokens: Callable[[bytes], TokenList]
    text: Callable[[bytes], str]
    has_info: bool
    """True if there can be a /tokenizer_info."""


def vllm_lacks(source: TokenSource) -> str:
    if source.pieces:
        return "with_pieces"
    return "" if source.parse_special else "parse_special"


def vllm_body(source: TokenSource) -> dict[str, Any]:
    what = {"prompt": source.text} if source.messages is None else {"messages": source.messages}
    strings = {"return_token_strs": True} if source.strings else {}
    return what | {"add_special_tokens": source.add_special} | strings | source.chat


def vllm_tokens(body: bytes) -> TokenList:
    found = decoded(body, VllmTokens)
    return TokenList(found.tokens, found.token_strs, max_model_len=found.max_model_len)


def vllm_text(body: bytes) -> str:
    return decoded(body, VllmText).prompt


def llamacpp_lacks(source: TokenSource) -> str:
    return "" if source.messages is None else "messages"


def llamacpp_body(source: TokenSource) -> dict[str, Any]:
    pieces = {"with_pieces": True} if source.strings or source.pieces else {}
    special = {"add_special": source.add_special, "parse_special": source.parse_special}
    return {"content": source.text} | special | pieces


def llamacpp_tokens(body: bytes) -> TokenList:
    found = decoded(body, LlamaCppTokens).tokens
    pieces = [token for token in found if isinstance(token, LlamaCppPiece)]
    ids = [token.id if isinstance(token, LlamaCppPiece) else token for token in found]
    if len(pieces) < len(found):
        return TokenList(ids)
    try:
        return TokenList(ids, [string_of(piece) for piece in pieces], pieces)
    except ValueError:
        raise no_answer(body) from None


def string_of(piece: LlamaCppPiece) -> str:
    """Return a piece's text. Raises ValueError if its bytes are invalid."""
    return piece.piece if isinstance(piece.piece, str) else bytes_name(bytes(piece.piece))


def llamacpp_text(body: bytes) -> str:
    return decoded(body, LlamaCppText).content


FORMATS: Final = {
    "vllm": TokenizerFormat(vllm_lacks, vllm_body, vllm_tokens, vllm_text, has_info=True),
    "llamacpp": TokenizerFormat(
        llamacpp_lacks, llamacpp_body, llamacpp_tokens, llamacpp_text, has_info=False
    ),
}


def request(
    target: Target, endpoint: Endpoint, body: Mapping[str, Any] | None = None
) -> UpstreamRequest:
    """Return the request to send: a POST of the body and the model, or a GET without a body."""
    provider = target.provider
    url = provider.base_url.rstrip("/").removesuffix("/v1") + endpoint
    if provider.query:
        url += f"?{provider.query}"
    headers = request_parts.headers(NOT_STREAMED, target)
    if body is None:
        return UpstreamRequest("GET", url, headers, b"")
    data = msgspec.json.encode({"model": target.model, **body})
    return UpstreamRequest("POST", url, headers, data)


def info(body: bytes) -> dict[str, Any]:
    return decoded(body, dict[str, Any])


def decoded(body: bytes, kind: type[T]) -> T:
    """Return a body as a type. Raises UpstreamError."""
    try:
        return msgspec.json.decode(body, type=kind)
    except NOT_JSON:
        raise no_answer(body) from None


def no_answer(body: bytes) -> UpstreamError:
    return garbage("The upstream's answer is not one of a tokenizer.", body)


def is_absent(endpoint: Endpoint, status: int, body: bytes) -> bool:
    """Return True if a refusal means that the host lacks the endpoint, not the model.

    A web framework's own 404 has no `error`, which that for a model has. /tokenizer_info takes no
    model.
    """
    if status != 404 or endpoint == "/tokenizer_info":
        return status in ABSENT
    try:
        found = msgspec.json.decode(body)
    except NOT_JSON:
        return True
    return not isinstance(found, dict) or not (found.get("error") or found.get("object") == "error")
