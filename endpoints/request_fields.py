"""A completion's body: reading it, checking it, and saying well what is wrong with it.

msgspec checks the whole in one quick pass; only when that fails does a slow path look for the
field, and write a message that names it, what it got and what it takes. Rules that hold here:
null means absent; nothing is clamped or guessed; a value that may be a key is never shown.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import Annotated, Any, NoReturn

import msgspec
from msgspec import Meta

from completion import (
    CompletionRequest,
    Prompt,
)
from endpoints.flask_app import current
from endpoints.read_body import read_body
from errors import (
    InvalidRequest,
    UnsupportedMediaType,
)
from keys.redaction import Secret
from routing.router import Route

ID = re.compile(r"[A-Za-z0-9_.:-]{1,128}")
JSON = "application/json"

Text = Annotated[str, Meta(min_length=1)]
Name = Annotated[str, Meta(min_length=1, max_length=512)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
StreamId = Annotated[str, Meta(pattern=rf"\A{ID.pattern}\Z")]


class Parameters(msgspec.Struct, kw_only=True):
    """Every named field of a completion's body but its prompt."""

    model: Name | None = None
    provider: Name | None = None
    fallbacks: Annotated[list[Name], Meta(max_length=8)] | None = None
    byok_api_key: (
        Annotated[str, Meta(min_length=1, max_length=8192, pattern=r"\A[\x21-\x7e]+\Z")] | None
    ) = None
    stream_id: StreamId | None = None
    stream: bool | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    max_tokens: Annotated[int, Meta(ge=1, le=2**31 - 1)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    stop: Text | Annotated[list[Text], Meta(max_length=4)] | None = None
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    n: Annotated[int, Meta(ge=1, le=128)] | None = None
    best_of: Annotated[int, Meta(ge=1, le=128)] | None = None
    logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    echo: bool | None = None
    suffix: str | None = None
    logit_bias: dict[str, Annotated[float, Meta(ge=-100, le=100)]] | None = None
    user: str | None = None


TAKES = {
    "prompt": "a string that is not empty",
    "model": "a string of 1 to 512 characters, like local/pydoc",
    "provider": "a string of 1 to 512 characters, like openai",
    "fallbacks": "a list of at most 8 models",
    "byok_api_key": "a key of printable ASCII characters",
    "stream_id": "1 to 128 of A-Z a-z 0-9 . _ : -",
    "stream": "true or false",
    "temperature": "a number from 0 to 2",
    "max_tokens": "an integer from 1 to 2147483647",
    "top_p": "a number above 0, to 1",
    "frequency_penalty": "a number from -2 to 2",
    "presence_penalty": "a number from -2 to 2",
    "additional_params": "an object",
    "stop": "a string, or a list of at most 4 strings, none of them empty",
    "seed": "an integer of 64 bits",
    "n": "an integer from 1 to 128",
    "best_of": "an integer from 1 to 128, at least n",
    "logprobs": "an integer from 0 to 20",
    "echo": "true or false",
    "suffix": "a string",
    "logit_bias": "an object of token ids to numbers from -100 to 100",
    "user": "a string",
    "stream_options": "an object",
    "include_usage": "true or false",
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
"""What additional_params can't set. By `models` a router would use others than the key may."""


def read_object(max_body: int) -> dict[str, Any]:
    """The current request's body, a JSON object. Raises InvalidRequest (400), RequestTimeout
    (408), RequestTooLarge (413), UnsupportedMediaType (415)."""
    request = current()
    kind = "" if request.environ.get("CONTENT_TYPE") == JSON else request.mimetype
    if kind and kind != JSON and not kind.endswith("+json"):
        raise UnsupportedMediaType(
            f"The body is {kind}; this takes JSON: send 'Content-Type: application/json'."
        )
    body = read_body(request, max_body)
    try:
        data = msgspec.json.decode(body)
    except RecursionError:
        raise InvalidRequest("The body is nested too deeply.") from None
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"The body is not UTF-8 at byte {error.start}.") from None
    except msgspec.DecodeError as error:
        what = "empty" if not body.strip() else f"not JSON: {error}"
        raise InvalidRequest(f"The body is {what}. It takes a JSON object.") from None
    if not isinstance(data, dict):
        raise InvalidRequest(f"The body is {kind_of(data)}. It takes a JSON object.")
    request.byok_api_key = data.get("byok_api_key")
    return data


def parameters(data: dict[str, Any]) -> Parameters:
    """Check named fields. Raises InvalidRequest for the first that is wrong."""
    try:
        found = msgspec.convert(data, Parameters)
    except msgspec.ValidationError:
        for name, value in data.items():
            check(name, value, FIELDS[name])
        raise
    if found.best_of is not None and found.best_of < (found.n or 1):
        refuse("best_of", found.best_of)
    return found


def check(name: str, value: Any, kind: Any) -> None:
    """Raises InvalidRequest when the value is not of the kind."""
    try:
        msgspec.convert(value, kind)
    except msgspec.ValidationError:
        refuse(name, value)


def refuse(name: str, value: Any) -> NoReturn:
    raise InvalidRequest(f"{name}: got {shown(name, value)}; it takes {TAKES[name]}.", param=name)


def refuse_unknown(names: Iterable[str], known: Iterable[str], hint: str = "") -> None:
    """Raises InvalidRequest naming the first unknown field and the nearest known one."""
    known = list(known)
    for name in names:
        if name not in known:
            if name in NAMES:
                raise InvalidRequest(f"{name} goes into additional_params here.", param=name)
            near = difflib.get_close_matches(name, known, n=1)
            more = f" Did you mean {near[0]}?" if near else hint
            label = name if len(name) <= 100 else name[:100] + "..."
            raise InvalidRequest(f"Unknown field: {label}.{more}", param=label)


def merge_params(fields: dict[str, Any]) -> dict[str, Any]:
    """Move the names that Sluice knows from the field additional_params to the others. Returns the
    rest, which goes to the provider as it is. Raises InvalidRequest for what is no object, and on
    a conflict."""
    params = fields.pop("additional_params", None)
    if params is None:
        return {}
    check("additional_params", params, dict[str, Any])
    extra = {}
    for name, value in params.items():
        if name in BEYOND_PARAMS:
            raise InvalidRequest(f"additional_params can't set {name}.", param=name)
        if name not in NAMES:
            extra[name] = value
        elif value is not None and fields.setdefault(name, value) != value:
            raise InvalidRequest(
                f"{name} stands in the body and in additional_params, with different values.",
                param=name,
            )
    return extra


def to_request(
    found: Parameters,
    prompts: tuple[Prompt, ...],
    extra: dict[str, Any],
    openai_extra: dict[str, Any] | None = None,
) -> CompletionRequest:
    """The face-neutral request. What equals its no-op counts as not asked for."""
    stop = (found.stop,) if isinstance(found.stop, str) else tuple(found.stop or ())
    return CompletionRequest(
        prompts=prompts,
        max_tokens=found.max_tokens,
        temperature=found.temperature,
        top_p=None if found.top_p == 1 else found.top_p,
        frequency_penalty=found.frequency_penalty or None,
        presence_penalty=found.presence_penalty or None,
        stop=stop,
        seed=found.seed,
        n=None if found.n == 1 else found.n,
        best_of=None if found.best_of == 1 else found.best_of,
        logprobs=found.logprobs,
        echo=bool(found.echo),
        suffix=found.suffix or None,
        logit_bias=found.logit_bias or {},
        user=found.user or None,
        stream=bool(found.stream),
        extra=extra,
        openai_extra=openai_extra or {},
    )


def to_route(found: Parameters) -> Route:
    return Route(
        model=found.model,
        provider=found.provider,
        fallbacks=tuple(found.fallbacks or ()),
        byok_api_key=Secret(found.byok_api_key) if found.byok_api_key else None,
    )


def shown(name: str, value: Any) -> str:
    """A value for a message: short, and never one that may be a key."""
    if name in NEVER_SHOWN:
        return kind_of(value)
    if isinstance(value, dict | list) and len(value) > 0:
        return kind_of(value)
    text = msgspec.json.encode(value).decode()
    return text if len(text) <= 60 else f"{text[:60]}... ({kind_of(value)})"


def kind_of(value: Any) -> str:
    """A JSON value's kind, in words."""
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if isinstance(value, str):
        return f"a string of {len(value)} characters"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return "a number"
