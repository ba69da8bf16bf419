"""Settings: read once, at start, from the environment and sluice.toml; frozen afterwards.

Rules that hold here: the only module that sees the environment; the standard library only, because
gunicorn.conf.py loads it in the master, before gevent patches anything. A value that is unknown or
malformed stops the start with one line (ConfigError). VARIABLES is the whole list;
docs/configuration.md documents each, and a test holds the two together.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

VERSION = "0.1.0"
DEFAULT_PORT = 8000

T = TypeVar("T")


class ConfigError(Exception):
    """The configuration can't be used; the message is one line that says what to change."""


TIMEOUT_FIELDS = ("connect", "first_event", "idle", "total")


@dataclass(frozen=True)
class Timeouts:
    """Seconds that a call to a provider may take: to connect, until its first event, between two
    events, and in all."""

    connect: float = 10
    first_event: float = 600
    idle: float = 120
    total: float = 1800
    grace: float = 5
    """How much later the transport gives up by itself, should nobody else have."""

    @property
    def longest_silence(self) -> float:
        """When the transport gives up by itself."""
        return max(self.first_event, self.idle) + self.grace

    def overridden(self, own: Mapping[str, float], within: Mapping[str, float]) -> Timeouts:
        """With a provider's own limits, and none above what the caller wants at most."""
        if not (own or within):
            return self
        limits = {name: own.get(name, getattr(self, name)) for name in TIMEOUT_FIELDS}
        return replace(self, **{n: min(v, within.get(n, v)) for n, v in limits.items()})


@dataclass(frozen=True)
class Settings:
    """Everything that can be set. Durations are seconds, sizes bytes, money nano-dollars."""

    config_file: Path | None = None
    keys_file: Path = Path("keys.jsonl")
    keys: str = field(default="", repr=False)
    database: Path = Path("sluice.db")
    database_url: str = field(default="", repr=False)
    """Postgres, in the place of the file."""
    ledger_required: bool = True
    redis_url: str = field(default="", repr=False)
    """What several processes share; empty: this is the only one."""
    redis_verify: bool = True
    limits_required: bool = False
    reserve_tokens: int = 1024
    default_model: str = "local/pydoc"
    max_body: int = 1024 * 1024
    max_streams: int = 1000
    keepalive: float = 15
    first_event_wait: float = 10
    client_timeout: float = 30
    drain: float = 25
    disconnect: str = "cancel"
    disconnect_time: float = 30
    disconnect_cost: int = 50_000_000
    timeouts: Timeouts = field(default_factory=Timeouts)
    retries: int = 2
    cooldown: bool = True
    queue: int = 100
    queue_time: float = 10
    per_key: int | None = None
    continue_streams: bool = False
    strict: bool = False
    cors_origins: tuple[str, ...] = ("*",)
    log_format: str = "auto"
    log_level: str = "info"
    metrics_token: str = field(default="", repr=False)
    otel_endpoint: str = field(default="", repr=False)
    port: int | None = None
    workers: int = 1
    """Processes that serve; more than one only with redis_url."""
    providers: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Tables of sluice.toml, as they are: [providers.NAME], [aliases], [prices."MODEL"]."""
    aliases: Mapping[str, Any] = field(default_factory=dict)
    prices: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    """What the operator should know at start; a line each."""
    environ: Mapping[str, str] = field(default_factory=dict, repr=False)
    """For the providers' keys alone, whose variables the rows name."""

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> Settings:
        """Read the environment (os.environ unless given) and sluice.toml. Raises ConfigError."""
        environ = dict(os.environ if environ is None else environ)
        refuse_unknown(environ)
        values = {
            variable.field: variable.parse(variable.name, environ[variable.name])
            for variable in VARIABLES
            if environ.get(variable.name, "").strip()
        }
        if not values.get("redis_url"):
            values.pop("workers", None)
        timeouts = {name: values.pop(name) for name in TIMEOUT_FIELDS if name in values}
        return cls(
            **values,
            **read_toml(values.get("config_file")),
            timeouts=Timeouts(**timeouts),
            warnings=tuple(start_warnings(environ)),
            environ=environ,
        )


def whole(least: int, most: int) -> Callable[[str, str], int]:
    """A parser of whole numbers in a range."""

    def parse(name: str, text: str) -> int:
        return check_range(name, text, convert(name, text, int, "a whole number"), least, most)

    return parse


def seconds(least: float, most: float) -> Callable[[str, str], float]:
    """A parser of seconds in a range."""

    def parse(name: str, text: str) -> float:
        return check_range(name, text, convert(name, text, float, "seconds"), least, most)

    return parse


def dollars(least: int, most: int) -> Callable[[str, str], int]:
    """A parser of dollars in a range, to nano-dollars."""

    def parse(name: str, text: str) -> int:
        try:
            amount = Decimal(text.strip())
        except InvalidOperation:
            raise ConfigError(f"{name} is {text!r}; it takes dollars") from None
        if not amount.is_finite() or not least <= amount <= most:
            raise ConfigError(f"{name} is {text!r}; it takes {least} to {most}")
        return int(amount * 10**9)

    return parse


def one_of(*words: str) -> Callable[[str, str], str]:
    def parse(name: str, text: str) -> str:
        if text.strip().lower() not in words:
            raise ConfigError(f"{name} is {text!r}; it takes one of: {', '.join(words)}")
        return text.strip().lower()

    return parse


def flag(name: str, text: str) -> bool:
    words = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
    if text.strip().lower() not in words:
        raise ConfigError(f"{name} is {text!r}; it takes 1 or 0")
    return words[text.strip().lower()]


def existing_file(name: str, text: str) -> Path:
    path = file_path(name, text)
    try:
        found = path.is_file()
    except OSError as error:
        raise ConfigError(f"{name} is {text!r}, and that can't be read: {error.strerror}") from None
    if not found:
        raise ConfigError(f"{name} is {text!r}, and there is no such file")
    return path


def file_path(name: str, text: str) -> Path:
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise ConfigError(f"{name} is {text!r}, and there is no such home directory") from None


def words(_name: str, text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def plain(_name: str, text: str) -> str:
    return text.strip()


def untouched(_name: str, text: str) -> str:
    return text


def convert(name: str, text: str, kind: Callable[[str], T], what: str) -> T:
    try:
        return kind(text.strip())
    except ValueError:
        raise ConfigError(f"{name} is {text!r}; it takes {what}") from None


Number = TypeVar("Number", int, float)


def check_range(name: str, text: str, value: Number, least: Number, most: Number) -> Number:
    if not least <= value <= most:  # also false for nan
        raise ConfigError(f"{name} is {text!r}; it takes {least} to {most}")
    return value


class Variable(NamedTuple):
    name: str
    field: str
    parse: Callable[[str, str], Any]


DAY = 24 * 3600
VARIABLES = (
    Variable("SLUICE_CONFIG", "config_file", existing_file),
    Variable("SLUICE_KEYS_FILE", "keys_file", file_path),
    Variable("SLUICE_KEYS", "keys", untouched),
    Variable("SLUICE_DATABASE", "database", file_path),
    Variable("DATABASE_URL", "database_url", untouched),
    Variable("SLUICE_LEDGER_REQUIRED", "ledger_required", flag),
    Variable("REDIS_URL", "redis_url", plain),
    Variable("SLUICE_REDIS_VERIFY", "redis_verify", flag),
    Variable("SLUICE_LIMITS_REQUIRED", "limits_required", flag),
    Variable("SLUICE_RESERVE_TOKENS", "reserve_tokens", whole(1, 1_000_000)),
    Variable("SLUICE_DEFAULT_MODEL", "default_model", plain),
    Variable("SLUICE_MAX_BODY", "max_body", whole(1024, 1 << 30)),
    Variable("SLUICE_MAX_STREAMS", "max_streams", whole(1, 100_000)),
    Variable("SLUICE_QUEUE", "queue", whole(0, 100_000)),
    Variable("SLUICE_QUEUE_S", "queue_time", seconds(0, DAY)),
    Variable("SLUICE_MAX_STREAMS_PER_KEY", "per_key", whole(1, 100_000)),
    Variable("SLUICE_RETRIES", "retries", whole(0, 10)),
    Variable("SLUICE_COOLDOWN", "cooldown", flag),
    Variable("SLUICE_CONTINUE", "continue_streams", flag),
    Variable("SLUICE_KEEPALIVE_S", "keepalive", seconds(1, DAY)),
    Variable("SLUICE_FIRST_EVENT_WAIT_S", "first_event_wait", seconds(0, DAY)),
    Variable("SLUICE_CLIENT_TIMEOUT_S", "client_timeout", seconds(1, DAY)),
    Variable("SLUICE_DRAIN_S", "drain", seconds(0, DAY)),
    Variable("SLUICE_DISCONNECT", "disconnect", one_of("cancel", "drain")),
    Variable("SLUICE_DISCONNECT_S", "disconnect_time", seconds(0, DAY)),
    Variable("SLUICE_DISCONNECT_USD", "disconnect_cost", dollars(0, 1000)),
    Variable("SLUICE_CONNECT_TIMEOUT_S", "connect", seconds(0.1, DAY)),
    Variable("SLUICE_FIRST_EVENT_TIMEOUT_S", "first_event", seconds(1, DAY)),
    Variable("SLUICE_IDLE_TIMEOUT_S", "idle", seconds(1, DAY)),
    Variable("SLUICE_TOTAL_TIMEOUT_S", "total", seconds(1, DAY)),
    Variable("SLUICE_STRICT", "strict", flag),
    Variable("SLUICE_CORS_ORIGINS", "cors_origins", words),
    Variable("SLUICE_LOG_FORMAT", "log_format", one_of("auto", "json", "text")),
    Variable("SLUICE_LOG_LEVEL", "log_level", one_of("debug", "info", "warning", "error")),
    Variable("SLUICE_METRICS_TOKEN", "metrics_token", plain),
    Variable("OTEL_EXPORTER_OTLP_ENDPOINT", "otel_endpoint", plain),
    Variable("PORT", "port", whole(1, 65535)),
    Variable("WEB_CONCURRENCY", "workers", whole(1, 1024)),
)
TABLES = ("providers", "aliases", "prices")


def refuse_unknown(environ: Mapping[str, str]) -> None:
    known = [variable.name for variable in VARIABLES]
    for name in sorted(environ):
        if name.startswith("SLUICE_") and name not in known:
            raise ConfigError(f"{name} is not a setting{did_you_mean(name, known)}")


def read_toml(path: Path | None) -> dict[str, Any]:
    """The tables of sluice.toml: the file that SLUICE_CONFIG names, or ./sluice.toml if it is
    there."""
    path = path or Path("sluice.toml")
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} can't be read: {error}") from None
    for name, table in data.items():
        if name not in TABLES:
            raise ConfigError(f"{path}: [{name}] is not a table{did_you_mean(name, TABLES)}")
        if not isinstance(table, dict):
            raise ConfigError(f"{path}: {name} must be a table, [{name}]")
    for name in ("providers", "prices"):
        for key, row in data.get(name, {}).items():
            if not isinstance(row, dict):
                raise ConfigError(f'{path}: {name}.{key} must be a table, [{name}."{key}"]')
    return data


def start_warnings(environ: Mapping[str, str]) -> list[str]:
    found = []
    if environ.get("DYNO") and not environ.get("DATABASE_URL"):
        found.append(
            "DYNO is set and DATABASE_URL is not: this disk is not kept between restarts, "
            "so put the key lines into SLUICE_KEYS, and add a Postgres for the ledger"
        )
    wanted = environ.get("WEB_CONCURRENCY", "1").strip()
    if wanted not in ("", "1") and not environ.get("REDIS_URL", "").strip():
        found.append(
            f"WEB_CONCURRENCY={wanted} is ignored: without REDIS_URL streams are known to one "
            "process, so one worker serves"
        )
    return found


def did_you_mean(name: str, known: list[str] | tuple[str, ...]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]}?" if near else ""
