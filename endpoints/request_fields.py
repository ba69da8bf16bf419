"""Validation of a completion's body, with errors that name the field and what was expected.

msgspec checks all fields in one fast pass. Only if that fails does a slower pass find the invalid
field and write the message.

- null counts as absent.
- Nothing is clamped or guessed.
- A value that may be a key is never shown.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable
from typing import Annotated, Any, NoReturn

import msgspec
from msgspec import Meta

from completion import CompletionRequest, Prompt
from endpoints.flask_app import current
from endpoints.read_body import read_body
from errors import (
    InvalidRequest,
    UnsupportedMediaType,
)
from gateway import field_names
from keys.redaction import Secret
from routing.router import Route

ID = re.compile(r"[A-Za-z0-9_.:-]{1,128}")
LONGEST_PROVIDER_KEY = 8192
JSON = "application/json"

Text = Annotated[str, Meta(min_length=1)]
Name = Annotated[str, Meta(min_length=1, max_length=512)]
Stop = Annotated[str, Meta(max_length=1024)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
StreamId = Annotated[str, Meta(pattern=rf"\A{ID.pattern}\Z")]


class Parameters(msgspec.Struct, kw_only=True):
    """All fields of a completion's body that Sluice knows, except the prompt."""

    model: Name | None = None
    provider: Name | None = None
    fallbacks: Annotated[list[Name], Meta(max_length=8)] | None = None
    byok_api_key: (
        Annotated[
            str, Meta(min_length=1, max_length=LONGEST_PROVIDER_KEY, pattern=r"\A[\x21-\x7e]+\Z")
        ]
        | None
    ) = None
    stream_id: StreamId | None = None
    stream: bool | None = None
    resumable: bool | None = None
    background: bool | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    max_tokens: Annotated[int, Meta(ge=0, le=2**31 - 1)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    stop: Stop | Annotated[list[Stop], Meta(max_length=64)] | None = None
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    n: Annotated[int, Meta(ge=1, le=128)] | None = None
    best_of: Annotated[int, Meta(ge=1, le=128)] | None = None
    logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    echo: bool | None = None
    suffix: str | None = None
    logit_bias: dict[str, Annotated[float, Meta(ge=-100, le=100)]] | None = None
    user: str | None = None


TAKES = {
    "prompt": "a non-empty string",
    "model": "a string of 1 to 512 characters, such as local/pydoc",
    "provider": "a string of 1 to 512 characters, such as openai",
    "fallbacks": "a list of at most 8 models",
    "byok_api_key": "a key of printable ASCII characters without spaces",
    "stream_id": "1 to 128 of the characters A-Z a-z 0-9 . _ : -",
    "stream": "true or false",
    "resumable": "true or false",
    "background": "true or false",
    "temperature": "a number from 0 to 2",
    "max_tokens": "an integer from 0 to 2147483647",
    "top_p": "a number from 0 to 1",
    "frequency_penalty": "a number from -2 to 2",
    "presence_penalty": "a number from -2 to 2",
    "additional_params": "an object",
    "messages": "a list of objects, each with a role",
    "stop": "a string of at most 1024 characters, or a list of at most 64 of them",
    "seed": "a 64-bit integer",
    "n": "an integer from 1 to 128",
    "best_of": "an integer from 1 to 128, and at least n",
    "logprobs": "an integer from 0 to 20",
    "echo": "true or false",
    "suffix": "a string",
    "logit_bias": "an object that maps token ids to numbers from -100 to 100",
    "user": "a string",
    "stream_options": "an object",
    "include_usage": "true or false",
    "continuous_usage_stats": "true or false",
}
NAMES = frozenset(Parameters.__struct_fields__)
FIELDS = {field.name: field.type for field in msgspec.structs.fields(Parameters)}
NEVER_SHOWN = frozenset(("byok_api_key",))
BEYOND_PARAMS = frozenset(
    (
        *("model", "models", "prompt", "messages"),
        *("stream", "stream_options", "additional_params"),
        *("byok_api_key", "api_key", "base_url", "url", "headers", "timeout"),
        *("extra_headers", "extra_body", "extra_query"),
    )
)
"""Fields that additional_params can't set. `models` is one of them, because a provider that routes
requests by it could use models that the key may not use."""


def read_object(
    max_body: int,
    decode: Callable[[bytes | bytearray], Any] = msgspec.json.decode,
    arrived: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Return the current request's body, which must be a JSON object.

    Args:
        max_body: the most bytes that the body may have.
        decode: decodes JSON, as msgspec does.
        arrived: as in `read_body`.

    Raises:
        InvalidRequest: the body is incomplete, or not a JSON object.
        RequestTimeout: the client was too slow.
        RequestTooLarge: the body exceeds max_body.
        UnsupportedMediaType: the Content-Type is not JSON.
    """
    request = current()
    kind = "" if request.environ.get("CONTENT_TYPE") == JSON else request.mimetype
    if kind and kind != JSON and not kind.endswith("+json"):
        raise UnsupportedMediaType(
            f"The body is {kind}; expected JSON: send 'Content-Type: application/json'."
        )
    body = read_body(request, max_body, arrived)
    try:
        data = decode(body)
    except RecursionError:
        raise InvalidRequest("The body is nested too deeply.") from None
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"The body is not UTF-8 at byte {error.start}.") from None
    except msgspec.DecodeError as error:
        what = "empty" if not body.strip() else f"not JSON: {error}"
        raise InvalidRequest(f"The body is {what}; expected a JSON object.") from None
    if not isinstance(data, dict):
        raise InvalidRequest(f"The body is {kind_of(data)}; expected a JSON object.")
    request.byok_api_key = data.get("byok_api_key")
    return data


def parameters(data: dict[str, Any]) -> Parameters:
    """Return the fields as Parameters. Raises InvalidRequest for the first invalid one."""
    try:
        found = msgspec.convert(data, Parameters)
    except msgspec.ValidationError:
        for name, value in data.items():
            check(name, value, FIELDS[name])
        raise
    if found.best_of is not None and found.best_of < (found.n or 1):
        refuse("best_of", found.best_of)
    return found


def check(name: str, value: Any, kind: Any, *, shown_as: str | None = None) -> None:
    """Raise InvalidRequest if msgspec can't convert the value to the type `kind`.

    shown_as: the caller's name of the field, if it differs.
    """
    try:
        msgspec.convert(value, kind)
    except msgspec.ValidationError:
        refuse(name, value, shown_as)


def refuse(name: str, value: Any, shown_as: str | None = None) -> NoReturn:
    label = shown_as or name
    raise InvalidRequest(f"{label}: got {shown(name, value)}; expected {TAKES[name]}.", param=label)


def refuse_unknown(names: Iterable[str], known: Iterable[str], hint: str = "") -> None:
    """Raise InvalidRequest for the first unknown field; the message suggests the nearest known one.

    Args:
        hint: ends the message if no known name is near.
    """
    known = list(known)
    for name in names:
        if name not in known:
            if name in NAMES:
                raise InvalidRequest(
                    f"{name} belongs in additional_params here. POST /v1/completions, which is "
                    "OpenAI's API, takes it as it is.",
                    param=name,
                )
            if name not in field_names.COUNTED:
                refuse_lookalike(name)
            near = field_names.COUNTED.get(name)
            if near is None and len(name) <= field_names.LONGEST_KNOWN:
                near = next(iter(difflib.get_close_matches(name, known, n=1)), None)
            raise unknown(name, near, hint)


def refuse_lookalike(name: str) -> None:
    """Raise InvalidRequest for a name that some host would read as a known field."""
    if (right := field_names.meant(name)) is not None:
        raise unknown(name, right)


def unknown(name: str, near: str | None = None, hint: str = "") -> InvalidRequest:
    """Return the error for an unknown field.

    Args:
        near: the field that was probably meant.
        hint: ends the message if there is none.
    """
    label = name if len(name) <= 100 else name[:100] + "..."
    more = f" Did you mean {near}?" if near else hint
    return InvalidRequest(f"Unknown field: {label}.{more}", param=label)


def to_request(
    found: Parameters,
    prompts: tuple[Prompt, ...],
    extra: dict[str, Any],
    openai_extra: dict[str, Any] | None = None,
    unused: Iterable[str] = (),
) -> CompletionRequest:
    """Return the face-neutral request. A value without effect, such as n=1, counts as absent.

    An empty suffix does have an effect: it is the end of a text to fill in.

    Args:
        extra: fields for the provider, unchanged.
        openai_extra: fields for OpenAI-compatible hosts only, unchanged.
        unused: the names of hints that no host gets.
    """
    stops = [found.stop] if isinstance(found.stop, str) else found.stop or []
    return CompletionRequest(
        prompts=prompts,
        max_tokens=found.max_tokens,
        temperature=found.temperature,
        top_p=None if found.top_p == 1 else found.top_p,
        frequency_penalty=found.frequency_penalty or None,
        presence_penalty=found.presence_penalty or None,
        stop=tuple(filter(None, stops)),
        seed=found.seed,
        n=None if found.n == 1 else found.n,
        best_of=None if found.best_of == 1 else found.best_of,
        logprobs=found.logprobs,
        echo=bool(found.echo),
        suffix=found.suffix,
        logit_bias=found.logit_bias or {},
        user=found.user or None,
        stream=bool(found.stream),
        extra=extra,
        openai_extra=openai_extra or {},
        unused=tuple(unused),
    )


def to_route(found: Parameters) -> Route:
    return Route(
        model=found.model,
        provider=found.provider,
        fallbacks=tuple(found.fallbacks or ()),
        byok_api_key=Secret(found.byok_api_key) if found.byok_api_key else None,
    )


def shown(name: str, value: Any) -> str:
    """Return a value for use in a message: shortened, and never one that may be a key."""
    if name in NEVER_SHOWN:
        return kind_of(value)
    if isinstance(value, dict | list) and len(value) > 0:
        return kind_of(value)
    # A text is cut before it is encoded, because it may have megabytes.
    start = value[:61] if isinstance(value, str) else value
    text = msgspec.json.encode(start).decode()
    return text if len(text) <= 60 else f"{text[:60]}... ({kind_of(value)})"


def kind_of(value: Any) -> str:
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return f"a list of length {len(value)}"
    if isinstance(value, str):
        return f"a string of {len(value)} characters"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return "a number"
