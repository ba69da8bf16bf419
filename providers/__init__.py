"""Providers: the rows of hosts, with what sluice.toml and the environment add to them, and the
dialects they speak.

An OpenAI-compatible host is a row and no code; another wire format is one module with the functions
of `base.Dialect`. Rules that hold here: imports on demand.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from types import MappingProxyType
from typing import Any, Final, cast

import msgspec

from config import ConfigError, did_you_mean
from providers.base import Dialect, Provider, Signer
from providers.rows import BUILT_IN

DIALECTS: Final = {
    "openai": "providers.openai",
    "anthropic": "providers.anthropic",
    "google": "providers.google",
    "cohere": "providers.cohere",
    "bedrock": "providers.bedrock",
    "infill": "providers.infill",
    "local": "providers.local",
}
SIGNERS: Final = {"sigv4": "providers.sigv4"}
SIGNERS_NEED: Final = {"sigv4": ("botocore", "requirements-bedrock.txt")}

PLACEHOLDER: Final = re.compile(r"\{([A-Z][A-Z0-9_]*)\}")


@cache
def dialect(name: str) -> Dialect:
    """The dialect of that name; its module is loaded on first use."""
    return cast(Dialect, import_module(DIALECTS[name]))


def signer(row: Provider) -> Signer | None:
    """What signs its calls; None: nothing. Its module is loaded on first use."""
    return cast(Signer, import_module(SIGNERS[row.sign])) if row.sign else None


def rows(
    tables: Mapping[str, Mapping[str, Any]], environ: Mapping[str, str] = MappingProxyType({})
) -> dict[str, Provider]:
    """The built-in rows, with those of sluice.toml over them, and the environment's values in
    their URLs. Raises ConfigError."""
    known = {row.name: row for row in BUILT_IN}
    for name, table in tables.items():
        base = msgspec.to_builtins(known[name]) if name in known else {}
        try:
            known[name] = msgspec.convert({**base, **table, "name": name}, Provider)
        except msgspec.ValidationError as error:
            raise ConfigError(f"sluice.toml, [providers.{name}]: {error}") from None
    return {name: check(fill_in(row, environ)) for name, row in known.items()}


def fill_in(row: Provider, environ: Mapping[str, str]) -> Provider:
    """Put variables into the URL; one that isn't set stays, and keeps the row disabled. A row whose
    calls are signed needs no key."""
    url = PLACEHOLDER.sub(
        lambda match: environ.get(match[1], "").strip().rstrip("/") or match[0], row.base_url
    )
    key = None if row.sign else row.api_key_env
    return msgspec.structs.replace(row, base_url=url.rstrip("/"), api_key_env=key)


def missing(row: Provider, environ: Mapping[str, str], *, byok: bool = False) -> list[str]:
    """The variables that the row can't be called without, and that aren't set."""
    names = PLACEHOLDER.findall(row.base_url)
    if row.api_key_env and not byok and not environ.get(row.api_key_env, "").strip():
        names.append(row.api_key_env)
    return names


def check(row: Provider) -> Provider:
    where = f"sluice.toml, [providers.{row.name}]"
    if not re.fullmatch(r"[A-Za-z0-9_-]+", row.name):
        raise ConfigError(f"{where}: a name has letters, digits, - and _")
    if row.dialect not in DIALECTS:
        near = did_you_mean(row.dialect, list(DIALECTS))
        raise ConfigError(f"{where}: dialect {row.dialect!r} is not known{near}")
    check_signer(row, where)
    url = row.base_url
    if row.dialect != "local" and not url.startswith(("http://", "https://", "{")):
        raise ConfigError(f"{where}: base_url must begin with http:// or https://")
    return row


def check_signer(row: Provider, where: str) -> None:
    if not row.sign:
        return
    if row.sign not in SIGNERS:
        near = did_you_mean(row.sign, list(SIGNERS))
        raise ConfigError(f"{where}: sign {row.sign!r} is not known{near}")
    package, file = SIGNERS_NEED[row.sign]
    if find_spec(package) is None:
        raise ConfigError(f"{where}: sign = {row.sign!r} needs {package}: pip install -r {file}")
