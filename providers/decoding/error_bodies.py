"""Decoding of the errors that providers report, in any shape.

- The module is pure.
- An error is classified by its status and code, never by the wording of its message, with one
  exception: `unsupported_parameter`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from errors import UpstreamError
from providers.decoding.lenient_json import NOT_JSON, sample
from providers.decoding.retry_after import retry_after

MESSAGES: Final = (
    *("message", "msg", "error_msg", "error_message", "errorMessage"),
    *("status_msg", "description"),
)
CODES: Final = (
    *("code", "type", "status", "error_code", "errorCode", "error_type", "err_type"),
    "status_code",
)
NUMBERS: Final = ("status_code", "statusCode", "http_status", "http_code", "status", "error_code")
"""The fields that hold an error's message, its code, and its HTTP status besides the code."""

STATUSES: Final = {
    **dict.fromkeys(("invalid_request_error", "badrequesterror", "context_length_exceeded"), 400),
    "exceed_context_size_error": 400,
    "authentication_error": 401,
    "permission_error": 403,
    **dict.fromkeys(("not_found_error", "notfounderror", "model_not_found"), 404),
    "not_supported_error": 501,
    "unavailable_error": 503,
}
"""The HTTP status of error codes that say more than "server_error", for errors without a status."""


class ErrorBody(msgspec.Struct):
    """The message and code of an error body. A field is None if the body lacks it."""

    message: str | None = None
    code: str | None = None
    param: str | None = None
    """The request's parameter that the error is about."""
    status: int | None = None
    """The HTTP status in the body."""


def decode_error_body(body: bytes) -> ErrorBody:
    """Return the message and code of an error body. Both are None if the body isn't JSON."""
    try:
        data = msgspec.json.decode(body)
    except NOT_JSON:
        return ErrorBody()
    return decode_error(data)


def decode_error(data: Any) -> ErrorBody:
    """Return the message and code of a decoded error body.

    The known shapes are OpenAI's {"error": {...}}, {"error": "text"}, {"detail": ...},
    {"message": ...}, {"error_msg": ...} and a plain string.
    """
    around: dict[str, Any] = {}
    # Some hosts wrap the error in a list, FastAPI in a list inside an object: {"detail": [...]}.
    for _ in range(3):
        if isinstance(data, list) and data:
            data = data[0]
        elif isinstance(data, dict):
            inner = next((data[k] for k in ("error", "detail", "errors") if data.get(k)), None)
            if inner is None:
                break
            data, around = inner, data
    if isinstance(data, str):
        code = _first(around, CODES)
        return ErrorBody(message=data, code=code, status=_status(around, code))
    if not isinstance(data, dict):
        return ErrorBody()
    message = next((m for name in MESSAGES if (m := data.get(name))), None)
    code, param = _first(data, CODES), data.get("param")
    return ErrorBody(
        message=message if isinstance(message, str) else None,
        code=code,
        param=param if isinstance(param, str) else None,
        status=_status(data, code) or _status(around, None),
    )


def _first(data: dict[str, Any], names: tuple[str, ...]) -> str | None:
    """Return the first of the named fields that is set, as text."""
    value = next((v for name in names if (v := data.get(name))), None)
    return str(value) if isinstance(value, str | int) else None


def _status(data: dict[str, Any], code: str | None) -> int | None:
    """Return the HTTP status in an error: its code, or one of NUMBERS."""
    for value in (code, *(data.get(name) for name in NUMBERS)):
        if isinstance(value, str) and re.fullmatch("[45][0-9]{2}", value):
            return int(value)
        if isinstance(value, int) and 400 <= value < 600:
            return value
    return None


# Parameters that the host lacks

NOT_SUPPORTED: Final = re.compile(
    "unsupported|not_?supported|not_?implemented|does_?not_?support|unknown_parameter"
)
"""Codes for a feature that the host lacks, in lower case."""
NO_SUPPORT: Final = re.compile(
    r"(?:\bnot|n't|\bcannot) (?:\w+ )?(?:support|implement)|\bunsupported\b|\bonly no \w+ is",
    re.IGNORECASE,
)
PARAMETERS: Final = {
    name: re.compile(rf"(?<![\w.])(?:{words})(?!\w)", re.IGNORECASE)
    for name, words in {
        "suffix": "suffix|insert|infill|fill[- ]in[- ]the[- ]middle|fim",
        "logprobs": "(?:top_|prompt_)?logprobs|log ?prob(?:abilitie)?s",
        "echo": "echo",
        "best_of": "best_of",
        "n": "[`'\"]n[`'\"]|candidate_?count|multiple (?:choices|candidates|completions)",
        "stop": "stop(?:_?sequences)?",
        "logit_bias": "logit_bias",
        "seed": "seed",
        "temperature": "temperature",
        "top_p": "top_?p",
        "frequency_penalty": "frequency_?penalty",
        "presence_penalty": "presence_?penalty",
        "max_tokens": "max_?tokens",
    }.items()
}
"""The words for each parameter in a host's message."""


def unsupported_parameter(found: ErrorBody, status: int | None) -> str | None:
    """Return the parameter that the host lacks, according to its error.

    The status 501 or the error's code decides. Some engines (Ollama, vLLM, Bedrock) send neither.
    Then the message decides: it must say that something isn't supported, and name a parameter. A
    mistake here is harmless, because the call fails with status 400 anyway.

    Returns:
        "" if the host doesn't name the parameter; None if the error is a different one.
    """
    message = found.message or ""
    param = (found.param or "").partition(".")[0]
    if not param:
        named = (name for name, words in PARAMETERS.items() if words.search(message))
        param = next(named, "")
    if status == 501 or (status in (400, 422) and NOT_SUPPORTED.search((found.code or "").lower())):
        return param
    says = status in (400, 422) and NO_SUPPORT.search(message)
    return param or None if says else None


# Responses with an error status


def refused_call(status: int, headers: Mapping[str, str], body: bytes) -> UpstreamError:
    """Return the error for a response whose status isn't 2xx.

    Args:
        headers: the response's headers, with their names in lower case.
    """
    found = decode_error_body(body)
    return UpstreamError(
        refusal_message(status),
        upstream_status=status,
        upstream_code=found.code,
        upstream_message=found.message or sample(body) or None,
        retry_after=retry_after(headers),
        unsupported=unsupported_parameter(found, status),
    )


def refusal_message(status: int) -> str:
    verb = "failed" if status >= 500 else "rejected the request"
    return f"The upstream {verb} with status {status}."


# Errors inside responses with status 200


def reported(value: Any) -> UpstreamError:
    """Return the error in a decoded value of any shape.

    A code between 400 and 599 also becomes the error's HTTP status.
    """
    found = decode_error(value)
    status = found.status or STATUSES.get((found.code or "").lower())
    return UpstreamError(
        "The upstream reported an error in its response.",
        upstream_status=status,
        upstream_code=found.code,
        upstream_message=found.message,
        unsupported=unsupported_parameter(found, status),
    )


def failure(data: bytes, statuses: Mapping[str, int]) -> UpstreamError:
    """Return the error in undecoded data of any shape.

    Args:
        data: JSON, or else plain text, which becomes the error's message.
        statuses: the HTTP status of each error code, for data that has a code but no status.
    """
    try:
        found = reported(msgspec.json.decode(data))
    except NOT_JSON:
        found = reported(sample(data))
    found.upstream_status = found.upstream_status or statuses.get(found.upstream_code or "")
    return found


def refuse_error(data: bytes, statuses: Mapping[str, int]) -> None:
    """Raise the error in an object that has an "error" or a message, such as {"detail": "..."}.

    Any other data is ignored. For `statuses` see `failure`.
    """
    try:
        value = msgspec.json.decode(data)
    except NOT_JSON:
        return
    if isinstance(value, dict) and (value.get("error") or decode_error(value).message):
        raise failure(data, statuses)


def broken_off() -> UpstreamError:
    """Return the error for a response that ended before its last event."""
    return UpstreamError("The upstream ended its response before the completion was finished.")


def choices_missing(sent: int, prompts: int, choices: int) -> UpstreamError:
    """Return the error for a host that ignored `n`, or all prompts of a list but one.

    Args:
        sent: the number of choices that the host sent.
        prompts: the number of prompts.
        choices: the number of choices that all prompts together request.
    """
    return UpstreamError(
        f"The upstream sent {sent} of the {choices} requested choices.",
        unsupported="prompt_list" if prompts > 1 and sent * prompts == choices else "n",
    )
