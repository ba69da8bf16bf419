"""Providers: the rows of hosts that Sluice knows, and the dialects they speak.

An OpenAI-compatible host is a row here (or in sluice.toml) and no code; another wire format is one
module with the functions of `base.Dialect`. Rules that hold here: data, and imports on demand.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib import import_module
from typing import Any, cast

import msgspec

from config import ConfigError, did_you_mean
from providers.base import Dialect, Provider

DIALECTS = {"openai": "providers.openai", "local": "providers.local"}

BUILT_IN = (
    Provider(name="local", dialect="local", models=("pydoc",), free=True),
    Provider(
        name="openai",
        base_url="https://api.openai.com/v1",
        api_key_env="OPENAI_API_KEY",
        completions=("gpt-3.5-turbo-instruct*", "davinci-002", "babbage-002", "ft:*-002:*"),
    ),
    Provider(name="ollama", base_url="http://127.0.0.1:11434/v1", completions=True),
    Provider(name="vllm", base_url="http://127.0.0.1:8000/v1", completions=True),
    Provider(name="llamacpp", base_url="http://127.0.0.1:8080/v1", completions=True),
)


@cache
def dialect(name: str) -> Dialect:
    """The dialect of that name; its module is loaded on first use."""
    return cast(Dialect, import_module(DIALECTS[name]))


def rows(tables: Mapping[str, Mapping[str, Any]]) -> dict[str, Provider]:
    """The built-in rows, with those of sluice.toml over them. Raises ConfigError."""
    known = {row.name: row for row in BUILT_IN}
    for name, table in tables.items():
        base = msgspec.to_builtins(known[name]) if name in known else {}
        try:
            row = msgspec.convert({**base, **table, "name": name}, Provider)
        except msgspec.ValidationError as error:
            raise ConfigError(f"sluice.toml, [providers.{name}]: {error}") from None
        known[name] = check(row)
    return known


def check(row: Provider) -> Provider:
    where = f"sluice.toml, [providers.{row.name}]"
    if not row.name.replace("-", "").replace("_", "").isalnum():
        raise ConfigError(f"{where}: a name has letters, digits, - and _")
    if row.dialect not in DIALECTS:
        near = did_you_mean(row.dialect, list(DIALECTS))
        raise ConfigError(f"{where}: dialect {row.dialect!r} is not known{near}")
    if row.dialect != "local" and not row.base_url.startswith(("http://", "https://")):
        raise ConfigError(f"{where}: base_url must begin with http:// or https://")
    return msgspec.structs.replace(row, base_url=row.base_url.rstrip("/"))
