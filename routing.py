"""Where a request goes: model name -> targets, what each can honour, and what its failure means.

Rules that hold here: no I/O. A parameter that a target can't honour is never dropped in silence:
what would change the result refuses the target, what can be done exactly is emulated, a hint is
dropped by name.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Any, NoReturn

import msgspec

import providers
from completion import CompletionRequest, Secret, asked_for
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
    whole_seconds,
)
from providers.base import Provider, Target, matches

HINTS = frozenset(
    (
        *("seed", "logit_bias", "frequency_penalty", "presence_penalty", "user"),
        *("temperature", "top_p", "extra", "openai_extra"),
    )
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
        names = self._expand(route.model, route.provider)
        for fallback in route.fallbacks:
            names += self._expand(fallback, None)
        if route.byok_api_key is not None:  # a caller's key is for one host, never for another
            names = [pair for pair in names if pair[0] == names[0][0]]
        targets = []
        missing: SluiceError | None = None
        for provider, model in dict.fromkeys(names):
            try:
                targets.append(self._target(self.provider(provider), model, route.byok_api_key))
            except ProviderNotFound as error:
                missing = missing or error
        if missing is not None and not targets:
            raise missing
        return targets

    def _expand(self, model: str | None, provider: str | None) -> list[tuple[str, str]]:
        """(provider, its model) pairs. Raises ProviderNotFound, ModelNotFound."""
        model = model or self._default
        if provider is None:
            return [self._split(name) for name in self.aliases.get(model, (model,))]
        row = self.provider(provider)
        name = model.removeprefix(f"{provider}/")
        if not name or (model == self._default and name == model):
            raise ModelNotFound(f"Model: say which one of {row.name}'s it is.", param="model")
        return [(row.name, name)]

    def _split(self, model: str) -> tuple[str, str]:
        name, _, rest = model.partition("/")
        if not rest:
            raise ModelNotFound(
                f"Model {shown(model)} was not found. Write where it runs before its name: "
                "local/pydoc, openai/gpt-4o-mini.",
                param="model",
            )
        return self.provider(name).name, rest

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
    fim = target.provider.fim
    if request.suffix and fim and matches(target.model, fim.models):
        target = msgspec.structs.replace(target, fim=fim)
    check_limits(request, target)
    asked = wanted(request)
    lacking = asked & providers.dialect(target.dialect).unsupported(target)
    echo = "echo" in lacking and "echo_logprobs" not in asked
    split = "prompt_list" in lacking
    hints = lacking & HINTS
    for name in sorted(lacking - HINTS - {"prompt_list"} - ({"echo"} if echo else set())):
        unsupported(name, PARAMETER_WORDS.get(name, name), target)
    dropped = names_of(request, hints)
    if strict and dropped:
        unsupported(dropped[0], dropped[0], target)
    changes: dict[str, Any] = {name: EMPTY.get(name) for name in hints}
    if echo:
        changes["echo"] = False
    if changes:
        request = msgspec.structs.replace(request, **changes)
    return Candidate(target, request, dropped, echo, split)


def check_limits(request: CompletionRequest, target: Target) -> None:
    """Raises UnsupportedParameter for a value above what the host takes."""
    for name, most in target.limits.items():
        value = getattr(request, name)
        amount = len(value) if isinstance(value, tuple) else value
        if amount is not None and amount > most:
            unsupported(name, f"{name} above {most:g}", target)


def unsupported(name: str, words: str, target: Target) -> NoReturn:
    raise UnsupportedParameter(
        f"{words} can't be had from {target.name}.",
        param=name,
        details={"parameter": name, "target": target.name},
    )


def names_of(request: CompletionRequest, hints: frozenset[str]) -> tuple[str, ...]:
    """The hints by the names that the caller gave them."""
    names: set[str] = set()
    for hint in hints:
        names |= getattr(request, hint).keys() if hint in BAGS else {hint}
    return tuple(sorted(names))


PARAMETER_WORDS = {
    "token_ids": "A prompt of token ids",
    "echo_logprobs": "echo together with logprobs",
}
BAGS = frozenset(("extra", "openai_extra"))
"""Parameters whose names are the caller's."""
EMPTY: Mapping[str, Any] = {"logit_bias": {}, "extra": {}, "openai_extra": {}}


def wanted(request: CompletionRequest) -> frozenset[str]:
    """The parameters that a request asks for, by the names that `Dialect.unsupported` uses."""
    names = {
        name
        for name in request.__struct_fields__
        if name not in ("prompts", "stream") and asked_for(getattr(request, name))
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
        wait = DEFAULT_RETRY_S if error.retry_after is None else error.retry_after
        return rate_limited(wait, target, details)
    return failure(error.message, details, {})


def refused_key(target: Target, details: dict[str, Any]) -> SluiceError:
    where = target.provider.name
    if target.byok:
        return ByokRejected(f"{where} refused your own key (byok_api_key).", details=details)
    return failure(f"{where} refused this server's key for it.", details, NO_RETRY)


def rate_limited(seconds: float, target: Target, details: dict[str, Any]) -> RateLimited:
    more = {"limit_type": "provider", "limit": None, "reset_time": None, "retry_after": seconds}
    return RateLimited(
        f"{target.provider.name} is limiting calls. Try again in {whole_seconds(seconds)} s.",
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
