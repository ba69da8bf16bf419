"""The translation of a provider's error into the client's error.

- Only the provider's status and error code decide, never its message.
- The provider's message is shown, but whatever looks like a key in it is redacted. If the provider
  rejected a key, the message isn't shown at all.
"""

from __future__ import annotations

import json
from typing import Any

from errors import (
    ITSELF,
    NO_RETRY,
    ByokRejected,
    InvalidRequest,
    ModelNotFound,
    RateLimited,
    RequestTooLarge,
    SluiceError,
    UnsupportedParameter,
    UpstreamError,
    UpstreamTimeout,
    limit_details,
    whole_seconds,
)
from keys.redaction import shown
from providers.base import Target

EXHAUSTED = frozenset(("insufficient_quota", "billing_hard_limit_reached"))
DEFAULT_RETRY_S = 5.0


def public_error(error: UpstreamError, target: Target) -> SluiceError:
    """Return the error that the client receives for a provider's error."""
    status = error.upstream_status
    details = {"provider": target.provider.name, "model": target.model, "upstream_status": status}
    if error.host is not None:
        details |= {"host": error.host, "reason": error.reason}
    if error.reason == ITSELF and not (status == 401 and target.credential):
        message = (
            f"{target.provider.name}'s base_url is Sluice itself: set base_url in sluice.toml to "
            f"where {target.provider.name} listens."
        )
        return gateway_error(message, details, NO_RETRY)
    if status in (401, 403):  # the provider's message may quote part of the key
        return refused_key(target, details)
    text = shown(error.upstream_message, target.credential)
    code = shown(error.upstream_code, target.credential)
    details |= {"upstream_code": code, "upstream_message": text}
    if isinstance(error, UpstreamTimeout):
        error.details = {**(error.details or {}), **details}
        return error
    if error.unsupported is not None or status == 501:
        return unsupported(error, target, details)
    if status == 404:
        return ModelNotFound(
            f"Model {target.name!r} was not found.", param="model", details=details
        )
    if status in (400, 413, 422):
        kind = RequestTooLarge if status == 413 else InvalidRequest
        return kind(f"{target.name} rejected the request{suffix_of(text)}", details=details)
    if status == 402 or error.upstream_code in EXHAUSTED:
        message = f"The account at {target.provider.name} has no credit left."
        return gateway_error(message, details, NO_RETRY)
    if status == 429:
        wait = DEFAULT_RETRY_S if error.retry_after is None else error.retry_after
        return rate_limited(wait, target, details)
    return gateway_error(error.message, details, {})


FIELDS = {"prompt_list": "prompt", "token_ids": "prompt"}
"""The request fields behind the names of parameters that aren't fields themselves."""
WORDS = {"prompt_list": "lists of prompts", "token_ids": "a prompt of token ids"}


def unsupported(
    error: UpstreamError, target: Target, details: dict[str, Any]
) -> UnsupportedParameter:
    """Return the error for a parameter that the host lacks.

    A host that ignores a parameter reports no error, and will ignore it again. For such a host, the
    message says how to declare that in its row.
    """
    name = error.unsupported or ""
    param = FIELDS.get(name, shown(name, target.credential) or None)
    what = WORDS.get(name, param or "what the request asks for")
    if error.upstream_status is None:
        reason = (
            f": {error.message} If it never does, set cannot = [{json.dumps(name)}] in "
            f"[providers.{target.provider.name}] of sluice.toml."
        )
    else:
        reason = suffix_of(details["upstream_message"])
    return UnsupportedParameter(
        f"{target.name} doesn't support {what}{reason}",
        param=param,
        details=details | {"parameter": param, "target": target.name},
    )


def refused_key(target: Target, details: dict[str, Any]) -> SluiceError:
    where = target.provider.name
    if target.byok:
        return ByokRejected(f"{where} rejected your own key (byok_api_key).", details=details)
    if target.provider.sign:
        message = f"{where} rejected the AWS credentials that this server sent."
    elif target.credential is None:
        message = (
            f"{where} wants an API key, and none is set (status {details['upstream_status']})."
        )
    else:
        message = f"{where} rejected the API key that this server sent."
    return gateway_error(message, details, NO_RETRY)


def rate_limited(seconds: float, target: Target, details: dict[str, Any]) -> RateLimited:
    return RateLimited(
        f"{target.provider.name} has limited the request rate. "
        f"Try again in {whole_seconds(seconds)} s.",
        retry_after=seconds,
        details=details | limit_details("provider", None, seconds),
    )


def gateway_error(message: str, details: dict[str, Any], headers: dict[str, str]) -> UpstreamError:
    error = UpstreamError(message)
    error.details, error.headers = details, dict(headers)
    return error


def suffix_of(text: str | None) -> str:
    return f": {text}" if text else "."
