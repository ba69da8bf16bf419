"""The fields of OpenAI's completions that need more than a check of their types."""

from __future__ import annotations

from contextlib import suppress
from typing import Annotated, Any, Literal, TypeAlias

import msgspec
from msgspec import Meta

from completion import Prompt
from endpoints import passed_on, request_fields
from errors import InvalidRequest

TokenIds = Annotated[tuple[Annotated[int, Meta(ge=0)], ...], Meta(min_length=1)]
MOST_PROMPTS = 2048
USAGE_OPTIONS = ("include_usage", "continuous_usage_stats")
UsageIn: TypeAlias = Literal["nowhere", "at the end", "on each chunk"]
"""Where a stream has its usage."""
PROMPT_TAKES = "a string, a list of strings, a list of token ids, or a list of such lists"


def read_prompts(value: Any) -> tuple[Prompt, ...]:
    """Return a body's prompts, each as text or token ids. Raises InvalidRequest.

    A flat list of token ids is one prompt, so only the body's size limits its length.
    """
    if isinstance(value, str):
        return (value,)
    kind = kind_of_prompts(value)
    if kind is not None:
        with suppress(msgspec.ValidationError):
            found = msgspec.convert(value, kind)
            return (found,) if kind is TokenIds else found
    raise InvalidRequest(
        f"prompt: got {request_fields.shown('prompt', value)}; expected {PROMPT_TAKES}.",
        param="prompt",
    )


def kind_of_prompts(value: Any) -> Any:
    """Return the type that a list of prompts must have, by its first item; None if there is none.

    msgspec checks and copies a list about ten times as fast as a loop, which would hold up other
    requests.
    """
    if not isinstance(value, list) or not value:
        return None
    if isinstance(value[0], int):
        return TokenIds
    if len(value) > MOST_PROMPTS:
        return None
    return tuple[str, ...] if isinstance(value[0], str) else tuple[TokenIds, ...]


def read_options(options: Any) -> tuple[UsageIn, list[str]]:
    """Return what stream_options means, and the names in it that mean nothing here.

    As at vLLM, continuous_usage_stats counts only beside include_usage. Raises InvalidRequest.
    """
    request_fields.check("stream_options", options, dict[str, Any])
    passed_on.refuse_many(len(options))
    for name in options:
        request_fields.refuse_lookalike(name)
    for name in USAGE_OPTIONS:
        if options.get(name) is not None:
            request_fields.check(name, options[name], bool)
    at_the_end, on_each = (bool(options.get(name)) for name in USAGE_OPTIONS)
    honoured = USAGE_OPTIONS if at_the_end else USAGE_OPTIONS[:1]
    unused = [f"stream_options.{n}" for n, value in options.items() if value and n not in honoured]
    usage: UsageIn = "nowhere"
    if at_the_end:
        usage = "on each chunk" if on_each else "at the end"
    return usage, unused
