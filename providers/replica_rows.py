"""The replicas of a row, as sluice.toml writes them: a list in base_url.

- The list holds URLs, tables of url and weight, or both.
- A base_url that is only a placeholder may stand for several URLs: commas separate them in the
  environment variable.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec

from config import ConfigError
from config_file import did_you_mean
from providers.base import Provider, Replica

MOST_REPLICAS: Final = 100
"""The most replicas of a row: each has series of metrics."""
MOST_WEIGHT: Final = 1000
FIELDS: Final = ("url", "weight")
USUAL_PORTS: Final = {"http": ":80", "https": ":443"}
PLACEHOLDER_MARK: Final = "{"


def read(table: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a row's table with a list in base_url moved to `replicas`. Raises ConfigError."""
    if "replicas" in table:
        raise ConfigError("a row has no field replicas: write the URLs as a list in base_url")
    urls = table.get("base_url")
    if not isinstance(urls, list):
        return {**table, "replicas": ()} if urls is not None else table
    if not urls:
        raise ConfigError("base_url is an empty list; write at least one URL")
    found = tuple(replica(entry, number) for number, entry in enumerate(urls, 1))
    return {**table, "base_url": found[0].url, "replicas": found}


def replica(entry: Any, number: int) -> Replica:
    """Return an entry of the list in base_url. Raises ConfigError, which says which entry it is."""
    if isinstance(entry, str):
        return Replica(url=entry)
    where = f"base_url, entry {number}:"
    if not isinstance(entry, dict):
        raise ConfigError(f"{where} expected a URL or a table {{url, weight}}, not {entry!r}")
    for field in entry:
        if field not in FIELDS:
            raise ConfigError(
                f"{where} {field} is not a field of a replica, which has url and weight"
                f"{did_you_mean(field, FIELDS)}"
            )
    url, weight = entry.get("url"), entry.get("weight", 1.0)
    if not isinstance(url, str):
        raise ConfigError(f"{where} url is missing, or is not text")
    is_number = isinstance(weight, int | float) and not isinstance(weight, bool)
    if not is_number or not 0 < weight <= MOST_WEIGHT:
        raise ConfigError(
            f"{where} weight must be a number above 0 and at most {MOST_WEIGHT}, not {weight!r}"
        )
    return Replica(url=url, weight=float(weight))


def filled(row: Provider, fill: Callable[[str], str]) -> Provider:
    """Return the row with its URLs filled in and its replicas named. Raises ConfigError.

    Args:
        fill: replaces the placeholders in a URL.
    """
    entries = list(row.replicas)
    if not entries:
        url = fill(row.base_url)
        several = row.base_url.startswith("{") and row.base_url.endswith("}") and "," in url
        urls = [part for text in url.split(",") if (part := text.strip())] if several else []
        urls = urls or [url]
        entries = [Replica(url=url) for url in urls]
    if len(entries) > MOST_REPLICAS:
        raise ConfigError(f"base_url has {len(entries)} URLs; at most {MOST_REPLICAS} are allowed")
    found = [msgspec.structs.replace(one, url=fill(one.url).rstrip("/")) for one in entries]
    replicas = named(found) if len(found) > 1 else ()
    return msgspec.structs.replace(row, base_url=found[0].url, replicas=replicas)


def named(replicas: Sequence[Replica]) -> tuple[Replica, ...]:
    """Return the replicas with their names. Raises ConfigError if two have the same one."""
    hosts = [host_of(one.url) for one in replicas]
    shared = Counter(hosts)
    found = [
        msgspec.structs.replace(
            one, name=host if shared[host] == 1 else host + urlsplit(one.url).path
        )
        for one, host in zip(replicas, hosts, strict=True)
    ]
    for name, times in Counter(one.name for one in found).items():
        if times > 1:
            raise ConfigError(
                f"base_url has {name} twice; each replica needs a host, port or path of its own"
            )
    return tuple(found)


def host_of(url: str) -> str:
    """Return the host and port of a URL, without a user, a password and a usual port.

    Raises ConfigError.
    """
    try:
        parts = urlsplit(url)
    except ValueError:
        raise ConfigError("base_url has a URL whose host is invalid") from None
    host = parts.netloc.rpartition("@")[2]
    if PLACEHOLDER_MARK in host:
        return host
    return host.lower().removesuffix(USUAL_PORTS.get(parts.scheme, "")) or url
