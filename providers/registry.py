"""The registry of providers: the rows after sluice.toml and the environment, and their dialects.

- An OpenAI-compatible host needs only a row. Another wire format needs a package whose `dialect`
  module has the functions of `base.Dialect`.
- Dialects and signers are imported on first use.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, cast

import msgspec

from completion import CompletionRequest
from config import DAY, TIMEOUT_FIELDS, ConfigError, did_you_mean
from providers import fim_rules
from providers.base import Dialect, Provider, Signer
from providers.hosts import BUILT_IN
from providers.request_parts import has_dot_segment
from providers.transport import proxy

DIALECTS: Final = {
    "openai": "providers.openai.dialect",
    "anthropic": "providers.anthropic.dialect",
    "google": "providers.google.dialect",
    "cohere": "providers.cohere.dialect",
    "bedrock": "providers.bedrock.dialect",
    "infill": "providers.infill.dialect",
    "local": "providers.local.dialect",
}
SIGNERS: Final = {"sigv4": "providers.bedrock.sigv4"}
SIGNERS_NEED: Final = {"sigv4": ("botocore", "requirements-bedrock.txt")}

POLICIES: Final = ("", "cancel", "drain")
PLACEHOLDER: Final = re.compile(r"\{([A-Z][A-Z0-9_]*)\}")


@cache
def dialect(name: str) -> Dialect:
    return cast(Dialect, import_module(DIALECTS[name]))


def signer(row: Provider) -> Signer | None:
    return cast(Signer, import_module(SIGNERS[row.sign])) if row.sign else None


def rows(
    tables: Mapping[str, Mapping[str, Any]], environ: Mapping[str, str] = MappingProxyType({})
) -> dict[str, Provider]:
    """Return all rows by name, checked.

    Args:
        tables: The [providers.NAME] tables of sluice.toml. They add rows, and override fields of
            built-in rows.
        environ: The environment variables that replace placeholders in URLs.

    Raises:
        ConfigError: A row is invalid.
    """
    known = {row.name: row for row in BUILT_IN}
    for name, table in tables.items():
        base = msgspec.to_builtins(known[name]) if name in known else {}
        if "fim" in table:
            own = fim_rules.read(table["fim"], base.get("fim", ()), f"[providers.{name}]")
            table = {**table, "fim": own}
        try:
            known[name] = msgspec.convert({**base, **table, "name": name}, Provider)
        except msgspec.ValidationError as error:
            raise ConfigError(f"sluice.toml, [providers.{name}]: {error}") from None
    return {name: check(fill_in(row, environ)) for name, row in known.items()}


def fill_in(row: Provider, environ: Mapping[str, str]) -> Provider:
    """Return the row with the variables in its URL replaced.

    A variable that isn't set stays in the URL, which keeps the provider disabled. The row of a
    signed host loses its `api_key_env`, because it needs no key.
    """

    def filled(text: str) -> str:
        return PLACEHOLDER.sub(
            lambda match: environ.get(match[1], "").strip().rstrip("/") or match[0], text
        )

    key = None if row.sign else row.api_key_env
    through = None if row.proxy is None else filled(row.proxy)
    url = filled(row.base_url).rstrip("/")
    return msgspec.structs.replace(row, base_url=url, proxy=through, api_key_env=key)


def missing(row: Provider, environ: Mapping[str, str], *, byok: bool = False) -> list[str]:
    """Return the environment variables that the row needs and that aren't set.

    Args:
        byok: True if the caller supplies the key, so that the operator's key isn't needed.
    """
    names = PLACEHOLDER.findall(f"{row.base_url} {row.proxy or ''}")
    if row.api_key_env and not byok and not environ.get(row.api_key_env, "").strip(", \t\r\n"):
        names.append(row.api_key_env)
    return names


PARAMETERS: Final = frozenset(CompletionRequest.__struct_fields__) - {
    *("prompts", "stream", "unused", "files", "infill")
}
PSEUDO: Final = frozenset(
    ("token_ids", "prompt_list", "choice_list", "echo_logprobs", "blank_stop")
)
"""The names in `Dialect.unsupported` that aren't fields of CompletionRequest."""
COUNTED: Final = frozenset(
    ("max_tokens", "temperature", "top_p", "frequency_penalty", "presence_penalty")
) | {"n", "best_of", "logprobs", "stop"}
"""Parameters that can have a limit."""


def check(row: Provider) -> Provider:
    """Return the row unchanged. Raises ConfigError if a value is invalid.

    Otherwise the provider's first call would fail or silently do something else.
    """
    where = f"sluice.toml, [providers.{row.name}]"
    if not re.fullmatch(r"[A-Za-z0-9_-]+", row.name):
        raise ConfigError(f"{where}: a provider's name may have only letters, digits, - and _")
    for name in (row.dialect, *(rule.dialect for rule in row.fim if rule.dialect)):
        if name not in DIALECTS:
            near = did_you_mean(name, list(DIALECTS))
            raise ConfigError(f"{where}: unknown dialect {name!r}{near}")
    if row.disconnect not in POLICIES:
        raise ConfigError(f"{where}: disconnect must be cancel or drain, not {row.disconnect!r}")
    for name, limit in row.timeouts.items():
        if name not in TIMEOUT_FIELDS or not 0 < limit <= DAY:
            raise ConfigError(
                f"{where}: timeouts accepts {', '.join(TIMEOUT_FIELDS)}, each above 0 and at most "
                f"{DAY} seconds, not {name} = {limit}"
            )
    check_signer(row, where)
    check_names(row, where)
    fim_rules.check(row, where)
    if row.dialect != "local" and not row.base_url.startswith(("http://", "https://", "{")):
        raise ConfigError(
            f"{where}: base_url must begin with http:// or https://, not {row.base_url}"
        )
    if row.ca_bundle and not Path(row.ca_bundle).is_file():
        raise ConfigError(f"{where}: ca_bundle: no such file: {row.ca_bundle!r}")
    if row.proxy is not None and not PLACEHOLDER.search(row.proxy):
        proxy.parse(f"{where}: proxy", row.proxy)
    return row


def check_names(row: Provider, where: str) -> None:
    """Raise ConfigError for a misspelt parameter, which would otherwise have no effect.

    Raise it for a model's name that would change the path of the host's URL, too.
    """
    for model in row.models:
        if has_dot_segment(model):
            raise ConfigError(f"{where}: no part of a model's name can be . or .., as in {model!r}")
    lacks = [*row.cannot, *(name for rule in row.fim for name in rule.cannot)]
    limited = [*row.limits]
    renamed = [*row.chat_names, *(name for rule in row.fim for name in rule.names)]
    for family in row.families:
        lacks += [*family.cannot, *family.exclusive]
        limited += family.limits
        renamed += family.chat_names
    for names, known in ((lacks, PARAMETERS | PSEUDO), (limited, COUNTED), (renamed, PARAMETERS)):
        for name in names:
            if name not in known:
                near = did_you_mean(name, sorted(known))
                raise ConfigError(f"{where}: {name!r} is not a valid parameter here{near}")


def check_signer(row: Provider, where: str) -> None:
    if not row.sign:
        return
    if row.sign not in SIGNERS:
        near = did_you_mean(row.sign, list(SIGNERS))
        raise ConfigError(f"{where}: unknown signer {row.sign!r} in sign{near}")
    package, file = SIGNERS_NEED[row.sign]
    if find_spec(package) is None:
        raise ConfigError(
            f"{where}: sign = {row.sign!r} needs the package {package}: pip install -r {file}"
        )
