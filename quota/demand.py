"""The tokens that a call may use, estimated from its request."""

from __future__ import annotations

import msgspec

from completion import Chat, CompletionRequest, prompt_tokens, utf8_size
from errors import InvalidRequest

TEMPLATE_TOKENS = 64
"""The maximum number of tokens that a host's chat template adds to a prompt."""
FILE_BYTES = 24
"""The bytes that a fill-in-the-middle template puts around each other file."""


class Demand(msgspec.Struct, frozen=True):
    """The tokens that a call may use."""

    input: int
    """An estimate of the prompt's tokens."""
    most_input: int
    """An upper bound of the prompt's tokens, for any tokenizer."""
    output: int | None
    """The maximum tokens of output; None if the caller set no limit."""
    loose: bool = False
    """True if parameters that Sluice doesn't know may request more output. Then the call reserves
    at least what a call without max_tokens does."""


def demand_of(request: CompletionRequest) -> Demand:
    """Return the tokens that a request may use.

    Raises InvalidRequest if its parameters are nested too deeply to be sent.
    """
    if request.chat is not None:
        return chat_demand(request, request.chat)
    count = len(request.prompts)
    suffix = utf8_size(request.suffix or "")
    for file in request.files:
        suffix += utf8_size(file.path) + utf8_size(file.text) + FILE_BYTES
    unknown = [bag for bag in (request.extra, request.openai_extra) if bag]
    prompts = sum(utf8_size(p) if isinstance(p, str) else len(p) for p in request.prompts)
    try:
        beside = suffix + TEMPLATE_TOKENS + len(msgspec.json.encode(unknown))  # with each prompt
    except RecursionError:
        raise InvalidRequest("The body is nested too deeply.") from None
    tries = count * max(request.n or 1, request.best_of or 1)
    return Demand(
        input=sum(map(prompt_tokens, request.prompts)) + count * -(-suffix // 4),
        most_input=prompts + count * beside,
        output=None if request.max_tokens is None else request.max_tokens * tries,
        loose=bool(unknown),
    )


def chat_demand(request: CompletionRequest, chat: Chat) -> Demand:
    tries = max(request.n or 1, request.best_of or 1)
    output = None if request.max_tokens is None else request.max_tokens * tries
    most_input = chat.most_input + TEMPLATE_TOKENS
    return Demand(chat.input_tokens, most_input, output, loose=chat.loose)
