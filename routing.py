"""Where a request goes: model name -> targets, what each can honour, and what its failure means.

Rules that hold here: no I/O. A parameter that a target can't honour is never dropped in silence:
what would change the result refuses the target, what can be done exactly is emulated, a hint is
dropped by name.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Any

import msgspec

import providers
from completion import CompletionRequest, Secret
from config import ConfigError, Settings
from errors import (
    NO_RETRY,
    ByokRejected,
    InvalidRequest,
    ModelNotFound,
    ProviderNotFound,
    RateLimited,
    RequestTooLarge,
    SluiceError,
    UnsupportedParameter,
    UpstreamError,
    UpstreamTimeout,
)
from providers.base import Provider, Target

HINTS = frozenset(
    ("seed", "logit_bias", "frequency_penalty", "presence_penalty", "user", "temperature", "top_p")
)
"""Parameters without which the answer is still an answer to the request."""

RETRYABLE = frozenset((408, 409, 425, 429, 500, 502, 503, 504, 529))
EXHAUSTED = frozenset(("insufficient_quota", "billing_hard_limit_reached"))
DEFAULT_RETRY_S = 5.0


class Route(msgspec.Struct, frozen=True, kw_only=True):
    """Where the caller wants a request to go."""

    model: str | None = None
    provider: str | None = None
    fallbacks: tuple[str, ...] = ()
    byok_api_key: Secret | None = None


class Candidate(msgspec.Struct, frozen=True):
    """A target, and the request as it can honour it."""

    target: Target
    request: CompletionRequest
    dropped: tuple[str, ...] = ()
    """Hints that it can't honour, by name."""
    echo: bool = False
    """The prompt is put before the text by us."""
    split: bool = False
    """Each prompt is a call of its own."""


class Router:
    """Model names and what they mean on this server."""

    def __init__(self, settings: Settings) -> None:
        """Raises ConfigError: an alias or the default model that leads nowhere."""
        self.providers = providers.rows(settings.providers, settings.environ)
        self._default = settings.default_model
        self._environ = settings.environ
        self.aliases = {name: alias(name, value) for name, value in settings.aliases.items()}
        for name, models in (*self.aliases.items(), ("SLUICE_DEFAULT_MODEL", (self._default,))):
            for model in models:
                self._check_name(name, model)

    def _check_name(self, where: str, model: str) -> None:
        name, _, rest = model.partition("/")
        if (name not in self.providers or not rest) and (
            where in self.aliases or model not in self.aliases
        ):
            raise ConfigError(f"{where}: {model!r} is no model of this server (provider/model)")

    def enabled(self, provider: Provider) -> bool:
        """Whether it can be called without the caller's own key."""
        return not providers.missing(provider, self._environ)

    def provider(self, name: str) -> Provider:
        """Raises ProviderNotFound."""
        row = self.providers.get(name)
        if row is None:
            near = difflib.get_close_matches(name, self.providers, n=1)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise ProviderNotFound(f"Provider {shown(name)} is not known here.{hint}")
        return row

    def targets(self, route: Route) -> list[Target]:
        """The targets to try, in order; at least one. Raises ProviderNotFound, ModelNotFound."""
        names = self._expand(route.model or self._default, route.provider)
        for fallback in route.fallbacks:
            names += self._expand(fallback, None)
        targets = []
        missing: SluiceError | None = None
        for provider, model in dict.fromkeys(names):
            try:
                targets.append(self._target(self.provider(provider), model, route.byok_api_key))
            except ProviderNotFound as error:
                missing = missing or error
        if not targets:
            raise missing or ModelNotFound("Model: none was named.")
        return targets

    def _expand(self, model: str, provider: str | None) -> list[tuple[str, str]]:
        """(provider, its model) pairs. Raises ProviderNotFound, ModelNotFound."""
        if provider is None and model in self.aliases:
            return [pair for name in self.aliases[model] for pair in self._expand(name, None)]
        if provider is not None:
            model = model.removeprefix(f"{provider}/")
            return [(self.provider(provider).name, model)]
        name, slash, rest = model.partition("/")
        if not slash or not rest:
            raise ModelNotFound(
                f"Model {shown(model)} was not found. Write where it runs before its name: "
                "local/pydoc, openai/gpt-4o-mini."
            )
        return [(self.provider(name).name, rest)]

    def _target(self, row: Provider, model: str, byok: Secret | None) -> Target:
        needed = providers.missing(row, self._environ, byok=byok is not None)
        if needed:
            own = (
                ", or you send your own key as byok_api_key" if needed == [row.api_key_env] else ""
            )
            raise ProviderNotFound(
                f"Provider {row.name!r} is not enabled on this server: its operator sets "
                f"{' and '.join(needed)}{own}."
            )
        if byok is not None:
            return Target(row, model, byok, byok=True)
        key = self._environ[row.api_key_env].strip() if row.api_key_env else None
        return Target(row, model, Secret(key) if key else None)


def alias(name: str, value: Any) -> tuple[str, ...]:
    models = [value] if isinstance(value, str) else value
    if not isinstance(models, list) or not models or not all(isinstance(m, str) for m in models):
        raise ConfigError(f"sluice.toml, [aliases]: {name} takes a model or a list of models")
    return tuple(models)


def candidates(
    request: CompletionRequest, targets: list[Target], *, strict: bool
) -> list[Candidate]:
    """Those targets that can honour the request. Raises UnsupportedParameter when none can."""
    fitting = []
    refusal: UnsupportedParameter | None = None
    for target in targets:
        try:
            fitting.append(fit(request, target, strict=strict))
        except UnsupportedParameter as error:
            refusal = refusal or error
    if not fitting and refusal is not None:
        raise refusal
    return fitting


def fit(request: CompletionRequest, target: Target, *, strict: bool) -> Candidate:
    """The request as one target can honour it. Raises UnsupportedParameter."""
    asked = wanted(request)
    lacking = asked & providers.dialect(target.provider.dialect).unsupported(target)
    echo = "echo" in lacking and "echo_logprobs" not in asked
    split = "prompt_list" in lacking
    refused = lacking - HINTS - {"prompt_list"} - ({"echo"} if echo else set())
    dropped = tuple(sorted(lacking & HINTS))
    for name in sorted(refused) + (list(dropped) if strict else []):
        raise UnsupportedParameter(
            f"{PARAMETER_WORDS.get(name, name)} can't be had from {target.name}.",
            param=name,
            details={"parameter": name, "target": target.name},
        )
    if echo or dropped:
        without: dict[str, Any] = {name: EMPTY.get(name) for name in dropped}
        request = msgspec.structs.replace(request, **without, **({"echo": False} if echo else {}))
    return Candidate(target, request, dropped, echo, split)


PARAMETER_WORDS = {
    "token_ids": "A prompt of token ids",
    "echo_logprobs": "echo together with logprobs",
}
EMPTY: Mapping[str, Any] = {"logit_bias": {}}


def wanted(request: CompletionRequest) -> frozenset[str]:
    """The parameters that a request asks for, by the names that `Dialect.unsupported` uses."""
    names = {
        name
        for name in request.__struct_fields__
        if name not in ("prompts", "stream", "extra")
        and getattr(request, name) not in (None, (), {}, False)
    }
    if any(not isinstance(prompt, str) for prompt in request.prompts):
        names.add("token_ids")
    if len(request.prompts) > 1:
        names.add("prompt_list")
    if request.logprobs is not None:
        names.add("logprobs")
        if request.echo:
            names.add("echo_logprobs")
    return frozenset(names)


def retryable(error: SluiceError) -> bool:
    """Whether another target may do better: the call broke, or its provider is in trouble."""
    if not isinstance(error, UpstreamError):
        return False
    return error.upstream_status is None or error.upstream_status in RETRYABLE


def public_error(error: UpstreamError, target: Target) -> SluiceError:
    """What the client is told of a provider's failure, by status and code."""
    status = error.upstream_status
    details = {"provider": target.provider.name, "model": target.model, "upstream_status": status}
    if status in (401, 403):  # its words may hold part of a key
        return refused_key(target, details)
    text = redacted(error.upstream_message, target)
    details |= {"upstream_code": error.upstream_code, "upstream_message": text}
    if isinstance(error, UpstreamTimeout):
        error.details = {**(error.details or {}), **details}
        return error
    if status == 404:
        return ModelNotFound(
            f"Model {target.name!r} was not found.", param="model", details=details
        )
    if status in (400, 413, 422):
        kind = RequestTooLarge if status == 413 else InvalidRequest
        return kind(f"{target.name} refused the request{said(text)}", details=details)
    if status == 402 or error.upstream_code in EXHAUSTED:
        message = f"The account at {target.provider.name} has no credit left."
        return failure(message, details, NO_RETRY)
    if status == 429:
        return rate_limited(error.retry_after or DEFAULT_RETRY_S, target, details)
    return failure(error.message, details, {})


def refused_key(target: Target, details: dict[str, Any]) -> SluiceError:
    where = target.provider.name
    if target.byok:
        return ByokRejected(f"{where} refused your own key (byok_api_key).", details=details)
    return failure(f"{where} refused this server's key for it.", details, NO_RETRY)


def rate_limited(seconds: float, target: Target, details: dict[str, Any]) -> RateLimited:
    more = {"limit_type": "provider", "limit": None, "reset_time": None, "retry_after": seconds}
    return RateLimited(
        f"{target.provider.name} is limiting calls. Try again in {max(1, round(seconds))} s.",
        retry_after=seconds,
        details={**details, **more},
    )


def failure(message: str, details: dict[str, Any], headers: dict[str, str]) -> UpstreamError:
    error = UpstreamError(message)
    error.details, error.headers = details, dict(headers)
    return error


MISLEADING = re.compile("validation|invalid format", re.IGNORECASE)
"""Words by which the official client takes a 400 for another error."""


KEY_LIKE = re.compile(r"\b(?:sk|pk|xai|gsk|hf|nvapi|fw|csk|pplx|AIza)[-_][\w*.-]{6,}|Bearer \S+")
"""What looks like a key, or like the part of one that providers show."""


def said(text: str | None) -> str:
    return f": {text}" if text and not MISLEADING.search(text) else "."


def redacted(text: str | None, target: Target) -> str | None:
    """A provider's words without the credential that it was sent, and not too many of them."""
    if text is None:
        return None
    if target.credential is not None:
        text = text.replace(target.credential.reveal(), "[key]")
    return KEY_LIKE.sub("[key]", text[:1000])


def shown(name: str) -> str:
    """A name that a caller sent, for a sentence."""
    return repr(name if len(name) <= 100 else name[:100] + "...")
