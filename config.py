"""Settings, read once at startup from the environment and sluice.toml, and frozen afterwards.

- Only this module reads the environment.
- It imports only the standard library and config_file.py, because gunicorn.conf.py loads it in the
  master, before gevent patches anything.
- An unknown SLUICE_ variable or table, or an invalid value, makes startup fail with a one-line
  message (ConfigError).
- VARIABLES lists all environment variables except those of the providers;
  docs/reference/configuration.md documents each of them, which a test checks.
"""

from __future__ import annotations

import ipaddress
import json
import os
import re
import stat
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from config_file import DEFAULT_CONFIG, TomlError, decode, did_you_mean, read_file, read_toml
from config_file import ConfigError as ConfigError  # most modules import it from here

VERSION = "0.1.0"
DEFAULT_PORT = 8000

T = TypeVar("T")


TIMEOUT_FIELDS = ("connect", "first_event", "idle", "total")


@dataclass(frozen=True)
class Timeouts:
    """The timeouts of a call to a provider, in seconds."""

    connect: float = 10
    first_event: float = 600
    """The time until the first event of the response."""
    idle: float = 120
    """The time between two events."""
    total: float = 1800
    grace: float = 5
    """The extra time of the transport's read timeout, so that these timeouts fire first."""

    @property
    def longest_silence(self) -> float:
        """The transport's read timeout in seconds."""
        return max(self.first_event, self.idle) + self.grace

    def overridden(self, own: Mapping[str, float], within: Mapping[str, float]) -> Timeouts:
        """Return these timeouts with the provider's overrides, capped by the caller's.

        Args:
            own: the provider's timeouts.
            within: the caller's timeouts.
        """
        if not (own or within):
            return self
        limits = {name: own.get(name, getattr(self, name)) for name in TIMEOUT_FIELDS}
        return replace(self, **{n: min(v, within.get(n, v)) for n, v in limits.items()})


@dataclass(frozen=True)
class Settings:
    """All settings. Durations are in seconds, sizes in bytes, amounts of money in nano-dollars."""

    config_file: Path | None = None
    keys_file: Path = Path("keys.jsonl")
    keys: str = field(default="", repr=False)
    database: Path = Path("sluice.db")
    database_url: str = field(default="", repr=False)
    """The URL of a Postgres database, which is used instead of the file."""
    ledger_required: bool = True
    redis_url: str = field(default="", repr=False)
    """The Redis that several processes share; empty if there is only this process."""
    redis_verify: bool = True
    limits_required: bool = False
    reserve_tokens: int = 1024
    default_model: str = "local/pydoc"
    fim_model: str = ""
    """The model of fill-in-the-middle requests that name none; empty if they must name one."""
    tokenize_model: str = ""
    """The model of tokenizer requests that name none; empty for `default_model`."""
    max_body: int = 1024 * 1024
    max_chat_body: int = 20 * 1024 * 1024
    bodies_total: int = 256 * 1024 * 1024
    """The most bytes of chats' bodies that a process holds."""
    max_streams: int = 1000
    keepalive: float = 15
    first_event_wait: float = 10
    client_timeout: float = 30
    drain: float = 25
    disconnect: str = "cancel"
    disconnect_time: float = 30
    disconnect_cost: int = 50_000_000
    timeouts: Timeouts = field(default_factory=Timeouts)
    proxy: str = field(default="", repr=False)
    """The URL of a forward proxy for calls to providers; it may contain a password."""
    ca_bundle: Path | None = None
    """A file of certificates to trust in calls to providers, instead of the public ones."""
    retries: int = 2
    cooldown: bool = True
    queue: int = 100
    queue_time: float = 10
    per_key: int | None = None
    continue_streams: bool = False
    resumable: bool = False
    """True if a call is resumable by default: if neither its caller nor its key decides."""
    replay: float = 300
    """The time for which a resumable stream is kept after its end."""
    orphan: float = 300
    """The time after which a resumable stream without a connection is stopped."""
    replay_total: int = 256 * 1024 * 1024
    """The most memory for the resumable streams of a process, in bytes; 0: no call is resumable."""
    replay_redis: int = 256 * 1024 * 1024
    """The most bytes of the resumable streams of all processes in Redis; 0: none are there."""
    strict: bool = False
    discovery: float = 300
    """The time until a host's list of models is asked for again; 0 if no host is asked."""
    public_models: bool = False
    """True if GET /v1/models needs no key."""
    cors_origins: tuple[str, ...] = ("*",)
    log_format: str = "auto"
    log_level: str = "info"
    metrics_token: str = field(default="", repr=False)
    metrics_keys: bool = False
    """True to add metrics by key."""
    otel_endpoint: str = field(default="", repr=False)
    host: str = ""
    """The address to listen on: an IP address without brackets, or a host name. Empty means all
    interfaces if there is a port, else 127.0.0.1."""
    port: int | None = None
    workers: int = 1
    """The number of worker processes; always 1 without redis_url."""
    # Tables of sluice.toml, whose contents are not validated yet: [providers.NAME], [aliases],
    # [prices."MODEL"], [groups.NAME].
    providers: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    aliases: Mapping[str, Any] = field(default_factory=dict)
    prices: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    groups: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    toml: str = field(default="", repr=False)
    """The text of sluice.toml, in which `located` finds lines."""
    warnings: tuple[str, ...] = ()
    """Warnings to log at startup, one line each."""
    environ: Mapping[str, str] = field(default_factory=dict, repr=False)
    """The environment. Each provider's row names the variable that holds its key."""

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> Settings:
        """Read the environment (os.environ unless given) and sluice.toml. Raises ConfigError."""
        environ = without_bom(os.environ if environ is None else environ)
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

    def located(self, error: TomlError) -> ConfigError:
        """Return an error that names the file and the line of a mistake in sluice.toml."""
        return error.located(self.config_file or DEFAULT_CONFIG, self.toml)


def parse_int(least: int, most: int) -> Callable[[str, str], int]:
    def parse(name: str, text: str) -> int:
        return check_range(name, text, convert(name, text, int, "a whole number"), least, most)

    return parse


def seconds(least: float, most: float) -> Callable[[str, str], float]:
    def parse(name: str, text: str) -> float:
        return check_range(
            name, text, convert(name, text, float, "a number of seconds"), least, most
        )

    return parse


def zero_or_seconds(least: float, most: float) -> Callable[[str, str], float]:
    """Return a parser for seconds in a range, or 0, which turns something off."""
    parse_range, parse_any = seconds(least, most), seconds(0, most)

    def parse(name: str, text: str) -> float:
        return parse_any(name, text) and parse_range(name, text)

    return parse


def dollars(least: int, most: int) -> Callable[[str, str], int]:
    """Return a parser for US dollars in a range, which returns nano-dollars."""

    def parse(name: str, text: str) -> int:
        try:
            amount = Decimal(text.strip())
        except InvalidOperation:
            raise ConfigError(f"{name} is {text!r}, but must be a number of US dollars") from None
        if not amount.is_finite() or not least <= amount <= most:
            raise ConfigError(f"{name} is {text!r}, but must be from {least} to {most}")
        return int(amount * 10**9)

    return parse


def one_of(*words: str) -> Callable[[str, str], str]:
    def parse(name: str, text: str) -> str:
        if text.strip().lower() not in words:
            raise ConfigError(f"{name} is {text!r}, but must be one of: {', '.join(words)}")
        return text.strip().lower()

    return parse


def parse_bool(name: str, text: str) -> bool:
    words = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
    if text.strip().lower() not in words:
        raise ConfigError(f"{name} is {text!r}, but must be 1 or 0")
    return words[text.strip().lower()]


def existing_file(name: str, text: str) -> Path:
    path = file_path(name, text)
    try:
        found = path.stat()
    except FileNotFoundError:
        raise ConfigError(f"{name} is {text!r}, but there is no such file") from None
    except OSError as error:
        raise ConfigError(f"{name} is {text!r}, which can't be read: {error.strerror}") from None
    if not stat.S_ISREG(found.st_mode):
        raise ConfigError(f"{name} is {text!r}, which is not a regular file")
    return path


def file_path(name: str, text: str) -> Path:
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise ConfigError(f"{name} is {text!r}, but there is no such home directory") from None


def bare_host(name: str, text: str) -> str:
    host = text.strip().removeprefix("[").removesuffix("]")
    if not re.fullmatch(r"[\w.%:-]+", host, re.ASCII) or host.count(":") == 1:
        raise ConfigError(f"{name} is {text!r}, but must be a host without a port, which is PORT")
    return host


ORIGIN = re.compile(
    r"(?P<scheme>[a-z][a-z0-9+.-]*)://"
    r"(?:(?P<host>(?:\*\.)?[a-z0-9_-]+(?:\.[a-z0-9_-]+)*)|\[(?P<ipv6>[0-9a-f:.]+)\])"
    r"(?::(?P<port>[0-9]{1,5}))?/?",
    re.ASCII | re.IGNORECASE,
)
ORIGIN_TAKES = (
    "SCHEME://HOST or SCHEME://HOST:PORT, such as https://app.example.com, with *. before the host "
    "for its subdomains; or * for all origins"
)
USUAL_PORTS = {"http": 80, "https": 443}


def origins(name: str, text: str) -> tuple[str, ...]:
    """Return the distinct origins of a list, as browsers write them."""
    found = []
    for word in filter(None, map(str.strip, text.split(","))):
        one = origin(word)
        if one is None:
            raise ConfigError(f"{name} is {text!r}, but each origin must be {ORIGIN_TAKES}")
        found.append(one)
    return tuple(dict.fromkeys(found))


def origin(text: str) -> str | None:
    """Return an origin as browsers write it, or None if it is invalid.

    Browsers write it in lower case, without a slash at its end and without its scheme's usual port.
    """
    if text == "*":
        return text
    found = ORIGIN.fullmatch(text)
    if found is None:
        return None
    scheme, host, port = found["scheme"].lower(), found["host"], found["port"]
    if host is None:
        try:
            host = f"[{ipaddress.IPv6Address(found['ipv6'])}]"
        except ValueError:
            return None
    if port is not None and not 1 <= int(port) <= 65535:
        return None
    end = f":{int(port)}" if port and int(port) != USUAL_PORTS.get(scheme) else ""
    return f"{scheme}://{host.lower()}{end}"


def parse_stripped(_name: str, text: str) -> str:
    return text.strip()


def parse_raw(_name: str, text: str) -> str:
    return text


def convert(name: str, text: str, kind: Callable[[str], T], what: str) -> T:
    try:
        return kind(text.strip())
    except ValueError:
        raise ConfigError(f"{name} is {text!r}, but must be {what}") from None


Number = TypeVar("Number", int, float)


def check_range(name: str, text: str, value: Number, least: Number, most: Number) -> Number:
    if not least <= value <= most:  # a NaN is out of range too
        raise ConfigError(f"{name} is {text!r}, but must be from {least} to {most}")
    return value


class Variable(NamedTuple):
    name: str
    field: str
    parse: Callable[[str, str], Any]


DAY = 24 * 3600
VARIABLES = (
    Variable("SLUICE_CONFIG", "config_file", existing_file),
    Variable("SLUICE_KEYS_FILE", "keys_file", file_path),
    Variable("SLUICE_KEYS", "keys", parse_raw),
    Variable("SLUICE_DATABASE", "database", file_path),
    Variable("DATABASE_URL", "database_url", parse_raw),
    Variable("SLUICE_LEDGER_REQUIRED", "ledger_required", parse_bool),
    Variable("REDIS_URL", "redis_url", parse_stripped),
    Variable("SLUICE_REDIS_VERIFY", "redis_verify", parse_bool),
    Variable("SLUICE_LIMITS_REQUIRED", "limits_required", parse_bool),
    Variable("SLUICE_RESERVE_TOKENS", "reserve_tokens", parse_int(1, 1_000_000)),
    Variable("SLUICE_DEFAULT_MODEL", "default_model", parse_stripped),
    Variable("SLUICE_FIM_MODEL", "fim_model", parse_stripped),
    Variable("SLUICE_TOKENIZE_MODEL", "tokenize_model", parse_stripped),
    Variable("SLUICE_MAX_BODY", "max_body", parse_int(1024, 1 << 30)),
    Variable("SLUICE_MAX_CHAT_BODY", "max_chat_body", parse_int(1024, 1 << 30)),
    Variable("SLUICE_BODIES_TOTAL", "bodies_total", parse_int(1024, 1 << 40)),
    Variable("SLUICE_MAX_STREAMS", "max_streams", parse_int(1, 100_000)),
    Variable("SLUICE_QUEUE", "queue", parse_int(0, 100_000)),
    Variable("SLUICE_QUEUE_S", "queue_time", seconds(0, DAY)),
    Variable("SLUICE_MAX_STREAMS_PER_KEY", "per_key", parse_int(1, 100_000)),
    Variable("SLUICE_PROXY", "proxy", parse_stripped),
    Variable("SLUICE_CA_BUNDLE", "ca_bundle", existing_file),
    Variable("SLUICE_RETRIES", "retries", parse_int(0, 10)),
    Variable("SLUICE_COOLDOWN", "cooldown", parse_bool),
    Variable("SLUICE_CONTINUE", "continue_streams", parse_bool),
    Variable("SLUICE_RESUMABLE", "resumable", parse_bool),
    Variable("SLUICE_REPLAY_S", "replay", seconds(1, DAY)),
    Variable("SLUICE_ORPHAN_S", "orphan", seconds(1, DAY)),
    Variable("SLUICE_REPLAY_TOTAL", "replay_total", parse_int(0, 1 << 40)),
    Variable("SLUICE_REPLAY_REDIS", "replay_redis", parse_int(0, 1 << 40)),
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
    Variable("SLUICE_STRICT", "strict", parse_bool),
    Variable("SLUICE_DISCOVERY_S", "discovery", zero_or_seconds(10, DAY)),
    Variable("SLUICE_PUBLIC_MODELS", "public_models", parse_bool),
    Variable("SLUICE_CORS_ORIGINS", "cors_origins", origins),
    Variable("SLUICE_LOG_FORMAT", "log_format", one_of("auto", "json", "text")),
    Variable("SLUICE_LOG_LEVEL", "log_level", one_of("debug", "info", "warning", "error")),
    Variable("SLUICE_METRICS_TOKEN", "metrics_token", parse_stripped),
    Variable("SLUICE_METRICS_KEYS", "metrics_keys", parse_bool),
    Variable("OTEL_EXPORTER_OTLP_ENDPOINT", "otel_endpoint", parse_stripped),
    Variable("SLUICE_HOST", "host", bare_host),
    Variable("PORT", "port", parse_int(1, 65535)),
    Variable("WEB_CONCURRENCY", "workers", parse_int(1, 1024)),
)


ADDRESS = r"[0-9a-fA-F:.]+"
URL = r"(tcp|udp|sctp)://\S+"
ONE_PORT = r"(?:PORT_[0-9]+_(?:TCP|UDP|SCTP))"
SERVICE_LINKS = tuple(
    (re.compile(rf"SLUICE_(?:[A-Z0-9_.]+_)?{name}"), re.compile(value, re.DOTALL))
    for name, value in (
        ("SERVICE_HOST", ADDRESS),
        ("SERVICE_PORT(?:_[A-Z0-9_]+)?", r"[0-9]+"),
        ("PORT", URL),
        (f"{ONE_PORT}(?:_START|_END)?", URL),
        (f"{ONE_PORT}_PROTO", "tcp|udp|sctp"),
        (f"{ONE_PORT}_PORT(?:_START|_END)?", r"[0-9]+"),
        (f"{ONE_PORT}_ADDR", ADDRESS),
        ("NAME", r"/[^/]+/.+"),
        (r"ENV_.+", r".*"),
    )
)
"""The names and values of the variables that others invent. Kubernetes puts them into each pod of a
namespace with a Service named sluice or sluice-...; docker's --link does so for such a container.
Names alone would let mistakes through, such as SLUICE_PORT=8080."""


def is_service_link(name: str, value: str) -> bool:
    return any(n.fullmatch(name) and v.fullmatch(value) for n, v in SERVICE_LINKS)


CLIENTS = ("SLUICE_KEY", "SLUICE_URL", "SLUICE_MODEL")
"""The variables of clients, such as the programs in examples/. They may be set for a server too."""


def is_for_clients(name: str, value: str) -> bool:
    """Return True for a client's variable, unless its value looks like that of SLUICE_KEYS."""
    return name in CLIENTS and not value.lstrip().startswith("{")


def refuse_unknown(environ: Mapping[str, str]) -> None:
    known = [variable.name for variable in VARIABLES]
    for name in sorted(environ):
        if not name.startswith("SLUICE_") or name in known:
            continue
        if is_service_link(name, environ[name]) or is_for_clients(name, environ[name]):
            continue
        bare = name.removeprefix("SLUICE_")
        hint = f"; did you mean {bare}?" if bare in known else did_you_mean(name, known)
        raise ConfigError(f"{name} is not a setting{hint}")


def without_bom(environ: Mapping[str, str]) -> dict[str, str]:
    """Return a copy of an environment whose names have no byte order mark.

    python-dotenv leaves the mark of a `.env` at the name in the first line.
    """
    marked = {
        name.removeprefix("\ufeff"): environ[name] for name in environ if name[:1] == "\ufeff"
    }
    return marked | {name: value for name, value in environ.items() if name[:1] != "\ufeff"}


def start_warnings(environ: Mapping[str, str]) -> list[str]:
    found = []
    if environ.get("DYNO") and not environ.get("DATABASE_URL"):
        found.append(
            "DYNO is set but DATABASE_URL is not: a dyno loses its files when it restarts, "
            "so put the lines of the keys into SLUICE_KEYS, and add a Postgres for the ledger"
        )
    wanted = environ.get("WEB_CONCURRENCY", "1").strip()
    if wanted not in ("", "1") and not environ.get("REDIS_URL", "").strip():
        found.append(
            f"WEB_CONCURRENCY={wanted} is ignored: several workers need a Redis to share their "
            "streams, so without REDIS_URL only one worker is started"
        )
    return found


SHOWN = "_SLUICE_SHOWN"
"""The variable by which `./sluice serve` passes on the warnings that it has printed."""


def pass_on_shown(warnings: Iterable[str]) -> None:
    """Keep the server that this process becomes from logging warnings that were just printed."""
    os.environ[SHOWN] = json.dumps([*warnings])


def shown_before(environ: Mapping[str, str]) -> list[str]:
    """Return the warnings that `./sluice serve` printed before it became this server."""
    return list(json.loads(environ.get(SHOWN, "[]")))


def refuse_workers(number: int, settings: Settings) -> None:
    """Raise ConfigError if a server can't have this number of workers."""
    if number != 1 and not settings.redis_url:
        raise ConfigError(
            f"{number} workers need a Redis to share their streams, so that "
            "stop-stream reaches each of them: set REDIS_URL, or use one worker (leave out -w)"
        )


MOST_DOTENV = 1 << 18
"""The largest `.env` file in bytes. Parsing one of 10 MB would take half a minute."""


def load_dotenv(path: Path, parse: Callable[[str], Mapping[str, str | None]]) -> None:
    """Set the environment variables of a `.env` file, except those that are set already.

    A missing file counts as empty.

    Args:
        path: the file, which `decode` must be able to read.
        parse: returns the variables in the text of such a file.

    Raises:
        ConfigError: the file can't be read, or is larger than MOST_DOTENV bytes.
    """
    try:
        if path.is_dir():  # some virtual environments are named .env
            return
        data = read_file(path, MOST_DOTENV + 1)
    except FileNotFoundError:
        return
    except OSError as error:
        raise ConfigError(f"{path} can't be read: {error.strerror}") from None
    if len(data) > MOST_DOTENV:
        raise ConfigError(f"{path} can't be read: it is larger than {MOST_DOTENV >> 10} KiB")
    text = decode(path, data)
    for name, value in parse(text).items():
        if value is not None:
            os.environ.setdefault(name, value)


def skip_dotenv() -> bool:
    """Return True if FLASK_SKIP_DOTENV is set, and keep Flask itself from reading `.env`."""
    given = os.environ.get("FLASK_SKIP_DOTENV", "").lower()
    os.environ["FLASK_SKIP_DOTENV"] = "1"
    return given not in ("", "0", "false", "no")


def prepare_to_serve() -> None:
    """Adapt the environment for a server that a person starts by hand.

    It listens on loopback unless SLUICE_HOST or HOST says otherwise, also if PORT is set. HOST
    counts only if it is an address or localhost, because some shells and tools put the machine's
    name or kind there. A blank WEB_CONCURRENCY, which gunicorn can't read, is removed.
    """
    if not os.environ.get("WEB_CONCURRENCY", "1").strip():
        del os.environ["WEB_CONCURRENCY"]
    if not os.environ.get("SLUICE_HOST", "").strip():
        host = os.environ.get("HOST", "").strip()
        os.environ["SLUICE_HOST"] = host if is_address(host) else "127.0.0.1"


def is_address(host: str) -> bool:
    """Return True for an IP address, with or without brackets, and for localhost."""
    try:
        ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        return host == "localhost"
    return True
