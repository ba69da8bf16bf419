"""The registry of providers: the rows after sluice.toml and the environment, and their dialects.

- An OpenAI-compatible host needs only a row. Another wire format needs a package whose `dialect`
  module has the functions of `base.Dialect`.
- Dialects and signers are imported on first use.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, cast
from urllib.parse import urlsplit

import msgspec

from completion import CompletionRequest
from config import DAY, TIMEOUT_FIELDS, ConfigError
from config_file import TomlError, did_you_mean
from providers import fim_rules, replica_rows
from providers.base import Dialect, Family, Fim, ModelList, Provider, Signer
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
CHAT: Final = {"chat": "providers.openai.chat"}
"""The dialect of chats. No row has it: a row's chat_url leads to it."""
MODEL_LISTS: Final = {
    "openai": "providers.openai.models",
    "anthropic": "providers.anthropic.models",
    "google": "providers.google.models",
    "cohere": "providers.cohere.models",
}
"""The dialects whose hosts have a list of models. Bedrock has it at another host than its calls."""
SIGNERS: Final = {"sigv4": "providers.bedrock.sigv4"}
SIGNERS_NEED: Final = {"sigv4": ("botocore", "requirements-bedrock.txt")}

POLICIES: Final = ("", "cancel", "drain")
PATH: Final = re.compile(r"`\$\.(\w+)")
"""The field in msgspec's messages."""
UNKNOWN: Final = re.compile(r"unknown field `(\w+)`")
NO_URL: Final = re.compile(r"\s|,https?://")
"""A part that no URL has. Somebody wrote a space, or several URLs."""
PLACEHOLDER: Final = re.compile(r"\{([A-Z][A-Z0-9_]*)\}")


@cache
def dialect(name: str) -> Dialect:
    return cast(Dialect, import_module((DIALECTS | CHAT)[name]))


def model_list(row: Provider) -> ModelList | None:
    """Return the functions for a host's list of models; None if it has none, or isn't to be asked.

    The URL of a deployment has no list.
    """
    module = MODEL_LISTS.get(row.dialect) if row.discover else None
    if module is None or "{model}" in row.base_url:
        return None
    return cast(ModelList, import_module(module))


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
        with at_field(name, "base_url" if "replicas" not in table else "replicas"):
            table = replica_rows.read(table)
        if "fim" in table:
            with at_field(name, "fim"):
                own = fim_rules.read(table["fim"], base.get("fim", ()))
            table = {**table, "fim": own}
        try:
            known[name] = msgspec.convert({**base, **table, "name": name}, Provider)
        except msgspec.ValidationError as error:
            raise mistake(name, table, str(error)) from None
    found = {}
    for name, row in known.items():
        with at_field(name, "base_url"):
            row = fill_in(row, environ)
        found[name] = check(row)
    return found


def mistake(name: str, table: Mapping[str, Any], problem: str) -> TomlError:
    """Return the error for a table that isn't a provider's row.

    Args:
        name: the provider.
        table: its table.
        problem: msgspec's message.
    """
    for field in table:
        if field not in Provider.__struct_fields__:
            near = did_you_mean(field, Provider.__struct_fields__)
            return TomlError(
                f"{field} is not a field of a provider{near}", "providers", name, field
            )
    field = match[1] if (match := PATH.search(problem)) else ""
    if unknown := UNKNOWN.search(problem):
        problem += did_you_mean(unknown[1], [*Fim.__struct_fields__, *Family.__struct_fields__])
    return TomlError(problem, "providers", name, *filter(None, [field]))


@contextmanager
def at_field(name: str, field: str) -> Iterator[None]:
    """Raise a ConfigError of the block as one about a field of a provider's table."""
    try:
        yield
    except ConfigError as error:
        raise TomlError(str(error), "providers", name, field) from None


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
    row = replica_rows.filled(row, filled)
    chat_url = row.chat_url and filled(row.chat_url)
    return msgspec.structs.replace(row, proxy=through, api_key_env=key, chat_url=chat_url)


def is_untouched_engine(row: Provider) -> bool:
    """Return True for a built-in row of a local engine that the operator hasn't changed."""
    return row in BUILT_IN and row.base_url.startswith("http://127.0.0.1")


def missing(row: Provider, environ: Mapping[str, str], *, byok: bool = False) -> list[str]:
    """Return the environment variables that the row needs and that aren't set.

    Args:
        byok: True if the caller supplies the key, so that the operator's key isn't needed.
    """
    urls = " ".join(one.url for one in row.replicas) if row.replicas else row.base_url
    urls += f" {row.proxy or ''} {row.chat_url or ''}"
    names = list(dict.fromkeys(PLACEHOLDER.findall(urls)))
    if row.api_key_env and not byok and not environ.get(row.api_key_env, "").strip(", \t\r\n"):
        names.append(row.api_key_env)
    return names


PARAMETERS: Final = frozenset(CompletionRequest.__struct_fields__) - {
    *("prompts", "stream", "unused", "files", "infill", "chat")
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
    at = ("providers", row.name)
    if not re.fullmatch(r"[A-Za-z0-9_-]+", row.name):
        raise TomlError("a provider's name may have only letters, digits, - and _", *at)
    for name in (row.dialect, *(rule.dialect for rule in row.fim if rule.dialect)):
        if name not in DIALECTS:
            near = did_you_mean(name, list(DIALECTS))
            raise TomlError(f"unknown dialect {name!r}{near}", *at, "dialect")
    if row.disconnect not in POLICIES:
        problem = f"disconnect must be cancel or drain, not {row.disconnect!r}"
        raise TomlError(problem, *at, "disconnect")
    for name, limit in row.timeouts.items():
        if name not in TIMEOUT_FIELDS or not 0 < limit <= DAY:
            raise TomlError(
                f"timeouts accepts {', '.join(TIMEOUT_FIELDS)}, each above 0 and at most "
                f"{DAY} seconds, not {name} = {limit}",
                *(*at, "timeouts", name),
            )
    check_signer(row)
    check_names(row)
    check_network(row)
    with at_field(row.name, "fim"):
        fim_rules.check(row)
    return row


def check_network(row: Provider) -> None:
    at = ("providers", row.name)
    for url in [one.url for one in row.replicas] or [row.base_url]:
        if row.dialect != "local" and (problem := problem_of_url(url)):
            raise TomlError(problem, *at, "base_url")
    address = row.chat_url or ""
    if "://" in address and not address.startswith(("http://", "https://", "{")):
        problem = f"chat_url must begin with http:// or https://, or be relative, not {address}"
        raise TomlError(problem, *at, "chat_url")
    if row.ca_bundle and not Path(row.ca_bundle).is_file():
        raise TomlError(f"ca_bundle: no such file: {row.ca_bundle!r}", *at, "ca_bundle")
    if row.proxy is not None and not PLACEHOLDER.search(row.proxy):
        with at_field(row.name, "proxy"):
            proxy.parse("proxy", row.proxy)


def problem_of_url(url: str) -> str:
    """Return why a URL can't be a provider's, or "" if it can. A placeholder may stand for much."""
    shown = url.rpartition("@")[2]  # without a password
    if not url.startswith(("http://", "https://", "{")):
        return f"base_url must begin with http:// or https://, not {shown}"
    try:
        parts = urlsplit(url)
        filled_in = PLACEHOLDER.search(url) is None
        valid = not filled_in or (bool(parts.hostname) and parts.port != 0)
    except ValueError:
        valid = False
    if not valid or NO_URL.search(url) or "," in url.partition("://")[2].partition("/")[0]:
        return f"base_url is not a valid URL: {shown!r}; write several URLs as a list"
    return ""


def check_names(row: Provider) -> None:
    """Raise TomlError for a misspelt parameter, which would otherwise have no effect.

    Raise it for a model's name that would change the path of the host's URL, too.
    """
    for model in row.models:
        if has_dot_segment(model):
            problem = f"no part of a model's name can be . or .., as in {model!r}"
            raise TomlError(problem, "providers", row.name, "models")
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
                problem = f"{name!r} is not a valid parameter here{near}"
                raise TomlError(problem, "providers", row.name)


def check_signer(row: Provider) -> None:
    if not row.sign:
        return
    if row.sign not in SIGNERS:
        near = did_you_mean(row.sign, list(SIGNERS))
        problem = f"unknown signer {row.sign!r} in sign{near}"
        raise TomlError(problem, "providers", row.name, "sign")
    package, file = SIGNERS_NEED[row.sign]
    if find_spec(package) is None:
        problem = f"sign = {row.sign!r} needs the package {package}: pip install -r {file}"
        raise TomlError(problem, "providers", row.name, "sign")
