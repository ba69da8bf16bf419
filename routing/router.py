"""The router: it resolves model names and aliases to targets.

- A key that may use an alias may use the models behind it by that alias, whatever their own names.
- A BYOK key is sent only to the first target's host (see docs/decisions/0006-own-key-one-host.md).
- The module does no I/O.
"""

from __future__ import annotations

import difflib
import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import msgspec

from config import ConfigError, Settings
from config_file import TomlError, did_you_mean
from errors import (
    InvalidRequest,
    ModelForbidden,
    ModelNotFound,
    ProviderNotFound,
    SluiceError,
)
from keys.redaction import Secret
from providers import registry
from providers.base import Provider, Target
from providers.request_parts import has_dot_segment

MOST_KNOWN = 10_000
"""The maximum number of models whose targets are cached. Callers choose the names of the models, so
the number must be bounded."""


class Route(msgspec.Struct, frozen=True, kw_only=True):
    model: str | None = None
    provider: str | None = None
    fallbacks: tuple[str, ...] = ()
    byok_api_key: Secret | None = None


class Name(NamedTuple):
    """A model that a request names, directly or by an alias."""

    provider: str
    model: str
    requested: str
    """The alias, or the model's full name."""


class Router:
    def __init__(self, settings: Settings) -> None:
        """Make a router. Raises ConfigError if an alias or a default model is invalid."""
        self.providers = registry.rows(settings.providers, settings.environ)
        self._default = settings.default_model
        self._environ = settings.environ
        self._turns: defaultdict[str, Iterator[int]] = defaultdict(itertools.count)
        self._known: dict[tuple[str, str], list[Target]] = {}
        self.aliases = {name: alias(name, value) for name, value in settings.aliases.items()}
        for name, models in self.aliases.items():
            checked = [(name, True), *((model, False) for model in models)]
            for model, is_alias in checked:
                if problem := self._problem_of(model, is_alias=is_alias):
                    raise TomlError(f"{name}: {problem}", "aliases", name)
        for variable, model in (
            ("SLUICE_DEFAULT_MODEL", self._default),
            ("SLUICE_FIM_MODEL", settings.fim_model or self._default),
            ("SLUICE_TOKENIZE_MODEL", settings.tokenize_model or self._default),
        ):
            if problem := self._problem_of(model, is_alias=model in self.aliases):
                raise ConfigError(f"{variable}: {problem}")

    def _problem_of(self, model: str, *, is_alias: bool) -> str:
        """Return why the configuration can't name a model, or "" if it can."""
        if has_dot_segment(model):
            return f"no part of a name can be . or .., as in {model!r}"
        name, _, rest = model.partition("/")
        if is_alias or (name in self.providers and rest):
            return ""
        near = did_you_mean(name, self.providers) if rest else did_you_mean(model, self.aliases)
        return f"{model!r} is not a model of this server (provider/model){near}"

    def warnings(self) -> list[str]:
        """Return a warning if the default model can't be called without a BYOK key."""
        models = self.aliases.get(self._default, (self._default,))
        rows = [self.providers[model.partition("/")[0]] for model in models]
        if any(self.enabled(row) for row in rows):
            return []
        needed = " and ".join(registry.missing(rows[0], self._environ))
        warning = (
            f"the default model {self._default} can't be used: its provider {rows[0].name} isn't "
            f"enabled; set {needed}, or another SLUICE_DEFAULT_MODEL"
        )
        return [warning]

    def hidden_models(self) -> list[str]:
        """Return a warning for each alias that hides a model of an enabled provider."""
        found = []
        for name, models in self.aliases.items():
            row = self.providers.get(name.partition("/")[0])
            if "/" in name and row is not None and self.enabled(row) and name != models[0]:
                found.append(
                    f'sluice.toml, [aliases]: "{name}" hides that model of {row.name}, which is '
                    f"enabled. Calls to it go to {models[0]}."
                )
        return found

    def enabled(self, provider: Provider) -> bool:
        """Return True if the provider can be called without a BYOK key."""
        return not registry.missing(provider, self._environ)

    def missing(self, provider: Provider) -> list[str]:
        """Return the environment variables that the provider needs and that aren't set."""
        return registry.missing(provider, self._environ)

    def may_be_off(self, provider: Provider) -> bool:
        """Return True for a local engine that is enabled only because it needs no key."""
        return registry.is_untouched_engine(provider)

    def provider(self, name: str) -> Provider:
        """Return the row of a provider. Raises ProviderNotFound."""
        row = self.providers.get(name)
        if row is None:
            near = difflib.get_close_matches(name, self.providers, n=1)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise ProviderNotFound(f"Provider {shown(name)} was not found.{hint}")
        return row

    def targets(self, route: Route, may_use: Callable[[str], bool] | None = None) -> list[Target]:
        """Return the targets to try, in order. There is at least one.

        Args:
            may_use: a predicate for the aliases and full names that the caller may use. None
                allows all.

        Raises:
            InvalidRequest: a part of a name is "." or "..".
            ProviderNotFound: a provider is unknown, or none of the providers is enabled.
            ModelNotFound: a model is missing, or its name lacks the provider.
            ModelForbidden: the caller may use none of the models.
        """
        check_parts("model", route.model or "")
        for fallback in route.fallbacks:
            check_parts("fallbacks", fallback)
        names = self._expand(route.model, route.provider)
        for fallback in route.fallbacks:
            names += self._expand(fallback, None)
        first = names[0]
        if route.byok_api_key is not None:  # fallbacks at other hosts must not receive this key
            names = [name for name in names if name.provider == first.provider]
        allowed = names if may_use is None else [name for name in names if permits(may_use, name)]
        targets = self._enabled(allowed or names, route.byok_api_key)
        if not allowed:
            raise ModelForbidden(f"This key may not use {first.requested}.", param="model")
        return targets

    def _enabled(self, names: list[Name], byok: Secret | None) -> list[Target]:
        """Return the targets of the enabled providers. Raises ProviderNotFound if there is none."""
        targets = []
        missing: SluiceError | None = None
        for provider, model in dict.fromkeys(name[:2] for name in names):
            try:
                targets += self._keyed(self.provider(provider), model, byok)
            except ProviderNotFound as error:
                missing = missing or error
        if missing is not None and not targets:
            raise missing
        return targets

    def _expand(self, model: str | None, provider: str | None) -> list[Name]:
        """Return the models that a name stands for. Raises ProviderNotFound or ModelNotFound."""
        wanted = model or self._default
        if provider is None:
            return [self._split(name, wanted) for name in self.aliases.get(wanted, (wanted,))]
        row = self.provider(provider)
        name = wanted.removeprefix(f"{provider}/")
        if not name or (model is None and name == wanted):
            raise ModelNotFound(
                f"Model is missing: choose one of the models of {row.name}.", param="model"
            )
        return [Name(row.name, name, f"{row.name}/{name}")]

    def _split(self, model: str, requested: str) -> Name:
        name, _, rest = model.partition("/")
        if not rest:
            raise ModelNotFound(
                f"Model {shown(model)} was not found. Use its full name, like local/pydoc or "
                "openai/gpt-4o-mini.",
                param="model",
            )
        return Name(self.provider(name).name, rest, requested)

    def _keyed(self, row: Provider, model: str, byok: Secret | None) -> list[Target]:
        """Return a target for each of the operator's keys, or one for the BYOK key.

        The operator's keys take turns in being first. Raises ProviderNotFound if a key is missing.
        """
        if byok is None and (targets := self._known.get((row.name, model))) is not None:
            return self._turned(row, targets)
        needed = registry.missing(row, self._environ, byok=byok is not None)
        if needed:
            own = (
                ", or you can send your own key as byok_api_key"
                if needed == [row.api_key_env]
                else ""
            )
            raise ProviderNotFound(
                f"Provider {row.name!r} is not enabled on this server: its operator must set "
                f"{' and '.join(needed)}{own}."
            )
        if byok is not None:
            return [Target(row, model, byok, byok=True)]
        targets = self.operator_targets(row, model)
        if len(self._known) < MOST_KNOWN:
            self._known[row.name, model] = targets
        return self._turned(row, targets)

    def operator_targets(self, row: Provider, model: str) -> list[Target]:
        """Return a target for each of the operator's keys for an enabled provider, in order."""
        keys = credentials(self._environ[row.api_key_env]) if row.api_key_env else [None]
        return [Target(row, model, key, key_number=n) for n, key in enumerate(keys, 1)]

    def _turned(self, row: Provider, targets: list[Target]) -> list[Target]:
        """Rotate the targets, so that the provider's keys share the load."""
        if len(targets) == 1:
            return targets
        first = next(self._turns[row.name]) % len(targets)
        return targets[first:] + targets[:first]


def permits(may_use: Callable[[str], bool], name: Name) -> bool:
    return may_use(name.requested) or may_use(f"{name.provider}/{name.model}")


def credentials(text: str) -> list[Secret | None]:
    """Return the distinct keys in a comma-separated environment variable."""
    keys = dict.fromkeys(key.strip() for key in text.split(","))
    return [Secret(key) for key in keys if key]


def alias(name: str, value: Any) -> tuple[str, ...]:
    models = [value] if isinstance(value, str) else value
    if not isinstance(models, list) or not models or not all(isinstance(m, str) for m in models):
        raise TomlError(f"{name} must be a model or a list of models", "aliases", name)
    return tuple(models)


def check_parts(field: str, name: str) -> None:
    """Raise InvalidRequest if a part of a model's name would change the path of the host's URL."""
    if ("." in name or "%" in name) and has_dot_segment(name):
        raise InvalidRequest(
            f"{field}: got {shown(name)}; no part of a name can be '.' or '..'.", param=field
        )


def shown(name: str) -> str:
    """Quote and shorten a caller's name for a message."""
    return repr(name if len(name) <= 100 else name[:100] + "...")
