"""Tests of config.py: settings of the environment and sluice.toml, and errors for mistakes."""

from __future__ import annotations

import dataclasses
import errno
import math
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import config
from config import (
    DEFAULT_PORT,
    TIMEOUT_FIELDS,
    VARIABLES,
    ConfigError,
    Settings,
    Timeouts,
)
from config_file import read_toml
from providers.hosts import BUILT_IN
from tests.support.paths import ROOT


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Change to an empty directory, and return it."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def read(**environ: str) -> Settings:
    return Settings.from_env(environ)


def refusal(**environ: str) -> str:
    """Return the message of the error for an invalid configuration."""
    with pytest.raises(ConfigError) as caught:
        read(**environ)
    line = str(caught.value)
    assert "\n" not in line
    return line


# The environment


def test_empty_environment_gives_the_default_settings() -> None:
    assert read() == dataclasses.replace(Settings(), environ={})
    assert Settings().timeouts == Timeouts(connect=10, first_event=600, idle=120, total=1800)
    assert DEFAULT_PORT == 8000


@pytest.mark.parametrize(
    ("name", "text", "field", "value"),
    [
        ("SLUICE_KEYS_FILE", "/etc/keys", "keys_file", Path("/etc/keys")),
        ("SLUICE_KEYS_FILE", "~/keys", "keys_file", Path.home() / "keys"),
        ("SLUICE_KEYS", " {}\n{} ", "keys", " {}\n{} "),
        ("SLUICE_DATABASE", "/data/ledger.db", "database", Path("/data/ledger.db")),
        ("SLUICE_DATABASE", "~/ledger.db", "database", Path.home() / "ledger.db"),
        ("DATABASE_URL", "postgres://u:p@h/d", "database_url", "postgres://u:p@h/d"),
        ("SLUICE_LEDGER_REQUIRED", "0", "ledger_required", False),
        ("SLUICE_RESERVE_TOKENS", "1", "reserve_tokens", 1),
        ("SLUICE_DEFAULT_MODEL", " openai/gpt-4o ", "default_model", "openai/gpt-4o"),
        ("SLUICE_MAX_BODY", "2048", "max_body", 2048),
        ("SLUICE_MAX_STREAMS", " 7 ", "max_streams", 7),
        ("SLUICE_QUEUE", "0", "queue", 0),
        ("SLUICE_QUEUE_S", "2.5", "queue_time", 2.5),
        ("SLUICE_MAX_STREAMS_PER_KEY", "1", "per_key", 1),
        ("SLUICE_RETRIES", "0", "retries", 0),
        ("SLUICE_CONTINUE", "1", "continue_streams", True),
        ("SLUICE_KEEPALIVE_S", "1.5", "keepalive", 1.5),
        ("SLUICE_FIRST_EVENT_WAIT_S", "0", "first_event_wait", 0.0),
        ("SLUICE_CLIENT_TIMEOUT_S", "5", "client_timeout", 5.0),
        ("SLUICE_DRAIN_S", "0", "drain", 0.0),
        ("SLUICE_STRICT", "1", "strict", True),
        ("SLUICE_STRICT", "Yes", "strict", True),
        ("SLUICE_STRICT", "false", "strict", False),
        ("SLUICE_CORS_ORIGINS", "https://a.example, https://b.example,", "cors_origins",
         ("https://a.example", "https://b.example")),
        ("SLUICE_CORS_ORIGINS", "HTTPS://A.example:443/,https://a.example,http://b:080",
         "cors_origins", ("https://a.example", "http://b")),
        ("SLUICE_CORS_ORIGINS", "https://*.A.example/, *, http://[0::1]:8000", "cors_origins",
         ("https://*.a.example", "*", "http://[::1]:8000")),
        ("SLUICE_DISCONNECT", "Drain", "disconnect", "drain"),
        ("SLUICE_DISCONNECT_S", "2.5", "disconnect_time", 2.5),
        ("SLUICE_DISCONNECT_USD", " 0.07", "disconnect_cost", 70_000_000),
        ("SLUICE_DISCONNECT_USD", "1e-9", "disconnect_cost", 1),
        ("SLUICE_LOG_FORMAT", "JSON", "log_format", "json"),
        ("SLUICE_LOG_LEVEL", " debug", "log_level", "debug"),
        ("SLUICE_METRICS_TOKEN", " t0ken ", "metrics_token", "t0ken"),
        ("PORT", "8080", "port", 8080),
        ("SLUICE_HOST", " 10.0.0.7 ", "host", "10.0.0.7"),
        ("SLUICE_HOST", "[::1]", "host", "::1"),
        ("SLUICE_HOST", "localhost", "host", "localhost"),
        ("WEB_CONCURRENCY", "1", "workers", 1),
        ("REDIS_URL", " redis://:p@h/1", "redis_url", "redis://:p@h/1"),
        ("SLUICE_REDIS_VERIFY", "0", "redis_verify", False),
        ("SLUICE_LIMITS_REQUIRED", "1", "limits_required", True),
    ],
)  # fmt: skip
def test_a_variable_sets_its_field_and_no_other(
    name: str, text: str, field: str, value: Any
) -> None:
    expected = dataclasses.replace(Settings(), **{field: value}, environ={name: text})
    assert read(**{name: text}) == expected


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("SLUICE_CONNECT_TIMEOUT_S", "connect"),
        ("SLUICE_FIRST_EVENT_TIMEOUT_S", "first_event"),
        ("SLUICE_IDLE_TIMEOUT_S", "idle"),
        ("SLUICE_TOTAL_TIMEOUT_S", "total"),
    ],
)
def test_timeout_variables_set_the_fields_of_timeouts(name: str, field: str) -> None:
    assert read(**{name: "2.5"}).timeouts == dataclasses.replace(Timeouts(), **{field: 2.5})


def test_several_workers_run_only_with_a_redis_url() -> None:
    assert read(WEB_CONCURRENCY="3").workers == 1
    assert read(WEB_CONCURRENCY="3", REDIS_URL="redis://h").workers == 3


@pytest.mark.parametrize("variable", VARIABLES, ids=lambda variable: variable.name)
def test_blank_variable_counts_as_unset(variable: config.Variable) -> None:
    assert read(**{variable.name: " \t"}) == dataclasses.replace(
        Settings(), environ={variable.name: " \t"}
    )


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("SLUICE_MAX_BODY", "1k", "SLUICE_MAX_BODY is '1k', but must be a whole number"),
        ("SLUICE_MAX_BODY", "1023",
         "SLUICE_MAX_BODY is '1023', but must be from 1024 to 1073741824"),
        ("SLUICE_MAX_STREAMS", "0", "SLUICE_MAX_STREAMS is '0', but must be from 1 to 100000"),
        ("SLUICE_QUEUE", "-1", "SLUICE_QUEUE is '-1', but must be from 0 to 100000"),
        ("SLUICE_MAX_STREAMS_PER_KEY", "0",
         "SLUICE_MAX_STREAMS_PER_KEY is '0', but must be from 1 to 100000"),
        ("SLUICE_RETRIES", "11", "SLUICE_RETRIES is '11', but must be from 0 to 10"),
        ("SLUICE_CONTINUE", "maybe", "SLUICE_CONTINUE is 'maybe', but must be 1 or 0"),
        ("SLUICE_MAX_STREAMS", "1.5", "SLUICE_MAX_STREAMS is '1.5', but must be a whole number"),
        ("SLUICE_LEDGER_REQUIRED", "no way",
         "SLUICE_LEDGER_REQUIRED is 'no way', but must be 1 or 0"),
        ("SLUICE_RESERVE_TOKENS", "0",
         "SLUICE_RESERVE_TOKENS is '0', but must be from 1 to 1000000"),
        ("SLUICE_DATABASE", "~no-such-user/x", "but there is no such home directory"),
        ("SLUICE_KEEPALIVE_S", "0", "SLUICE_KEEPALIVE_S is '0', but must be from 1 to 86400"),
        ("SLUICE_KEEPALIVE_S", "soon",
         "SLUICE_KEEPALIVE_S is 'soon', but must be a number of seconds"),
        ("SLUICE_IDLE_TIMEOUT_S", "nan",
         "SLUICE_IDLE_TIMEOUT_S is 'nan', but must be from 1 to 86400"),
        ("SLUICE_IDLE_TIMEOUT_S", "inf",
         "SLUICE_IDLE_TIMEOUT_S is 'inf', but must be from 1 to 86400"),
        ("SLUICE_DISCONNECT", "wait",
         "SLUICE_DISCONNECT is 'wait', but must be one of: cancel, drain"),
        ("SLUICE_DISCONNECT_USD", "5c",
         "SLUICE_DISCONNECT_USD is '5c', but must be a number of US dollars"),
        ("SLUICE_DISCONNECT_USD", "nan",
         "SLUICE_DISCONNECT_USD is 'nan', but must be from 0 to 1000"),
        ("SLUICE_DISCONNECT_USD", "-1",
         "SLUICE_DISCONNECT_USD is '-1', but must be from 0 to 1000"),
        ("SLUICE_STRICT", "maybe", "SLUICE_STRICT is 'maybe', but must be 1 or 0"),
        ("SLUICE_LOG_FORMAT", "xml",
         "SLUICE_LOG_FORMAT is 'xml', but must be one of: auto, json, text"),
        ("PORT", "0", "PORT is '0', but must be from 1 to 65535"),
        ("PORT", "9" * 5000, "must be a whole number"),
        ("SLUICE_CONFIG", "none.toml", "SLUICE_CONFIG is 'none.toml', but there is no such file"),
        ("SLUICE_CONFIG", "x" * 5000, "which can't be read: File name too long"),
        ("SLUICE_CONFIG", "~no-such-user/x", "but there is no such home directory"),
        ("SLUICE_KEYS_FILE", "~no-such-user/x", "but there is no such home directory"),
        ("SLUICE_MAX_STREAM", "1",
         "SLUICE_MAX_STREAM is not a setting; did you mean SLUICE_MAX_STREAMS?"),
        ("SLUICE_QQQQ", "", "SLUICE_QQQQ is not a setting"),
    ],
)  # fmt: skip
def test_invalid_variable_raises_an_error_that_says_what_to_change(
    name: str, text: str, says: str
) -> None:
    assert says in refusal(**{name: text})


@pytest.mark.parametrize(
    "text",
    [
        "a.com", "localhost", "null", "//a.com", "https://", "https://*", "*.a.com", "*://a.com",
        "https://a.com/app", "https://a.com//", "https://a.com?x", "https://a.com#x",
        "https://u@a.com", "https://a.*.com", "https://a*.com", "https://**.a.com",
        "https://*.*.com", "https://.*\\.a.com", "https://a.com$", "^https://a.com",
        "https://(a|b).com", "https://a.com:", "https://a.com:0", "https://a.com:65536",
        "https://a.com:*", "https://a..com", "https://a.com.", "https://[::1", "https://[:::1]",
        "https://[1.2.3.4]", "https://b\xfccher.example", "https://a.com https://b.com",
        "https://a.com;https://b.com", "https://a.com\nhttps://b.com", "'https://a.com'",
    ],
)  # fmt: skip
def test_an_origin_that_is_not_scheme_host_and_port_is_refused(text: str) -> None:
    for setting in (text, f"https://ok.example,{text}"):
        assert refusal(SLUICE_CORS_ORIGINS=setting).startswith("SLUICE_CORS_ORIGINS is ")


# Variables that Kubernetes and docker --link invent


def links(name: str) -> dict[str, str]:
    """Return what Kubernetes and docker --link set for a Service or a container."""
    address = {"": "10.0.0.7", "V6": "fd00::7"}
    found = {
        f"{name}_SERVICE_HOST": address[""], f"{name}_SERVICE_PORT": "80",
        f"{name}_SERVICE_PORT_HTTP": "80", f"{name}_SERVICE_PORT_HTTPS_ADMIN": "81",
        f"{name}_PORT": "tcp://[fd00::7]:80", f"{name}_NAME": "/web/sluice",
        f"{name}_ENV_PATH": "/bin:/usr/bin", f"{name}_ENV_x": "", f"{name}_ENV_TEXT": "a\nb",
    }  # fmt: skip
    for kind in ("TCP", "UDP", "SCTP"):
        one = f"{name}_PORT_80_{kind}"
        found |= {
            one: f"{kind.lower()}://10.0.0.7:80", f"{one}_PROTO": kind.lower(),
            f"{one}_PORT": "80", f"{one}_ADDR": address["V6"], f"{one}_START": "tcp://10.0.0.7:80",
            f"{one}_END": "tcp://10.0.0.7:90", f"{one}_PORT_START": "80", f"{one}_PORT_END": "90",
        }  # fmt: skip
    return found


@pytest.mark.parametrize(
    "service",
    ["SLUICE", "SLUICE_REDIS", "SLUICE_WEB_2", "SLUICE_KEYS", "SLUICE_CONFIG", "SLUICE_HOST"],
)
def test_variables_of_service_links_are_ignored(service: str) -> None:
    found = links(service)
    assert read(**found) == dataclasses.replace(Settings(), environ=found)


@pytest.mark.parametrize("service", ["REDIS", "DATABASE", "PORT", "WEB", "OPENAI", "OTEL"])
def test_service_links_never_have_the_name_of_a_setting(service: str) -> None:
    names = {variable.name for variable in VARIABLES}
    for name in (*names, *(row.api_key_env for row in BUILT_IN if row.api_key_env)):
        assert not any(config.is_service_link(name, value) for value in links("SLUICE").values())
    assert names.isdisjoint(links(service))
    assert read(**links(service)).port is None


@pytest.mark.parametrize(
    ("name", "value", "hint"),
    [
        ("SLUICE_PORT", "8080", "; did you mean PORT?"),
        ("SLUICE_PORT", "", "; did you mean PORT?"),
        ("SLUICE_REDIS_URL", "redis://h", "; did you mean REDIS_URL?"),
        ("SLUICE_NAME", "mine", ""),
        ("SLUICE_SERVICE_HOST", "my service", ""),
        ("SLUICE_SERVICE_PORT", "http", ""),
        ("SLUICE_PORTS", "tcp://10.0.0.7:80", ""),
        ("SLUICE_PORT_80_TCP", "1", ""),
        ("SLUICE_MAX_STREAMS_PORT", "5", "; did you mean SLUICE_MAX_STREAMS?"),
        ("SLUICE_ENVIRONMENT", "prod", ""),
        ("SLUICE_ENV", "prod", ""),
    ],
)
def test_a_mistake_that_resembles_a_service_link_stops_the_start(
    name: str, value: str, hint: str
) -> None:
    assert f"{name} is not a setting{hint}" in refusal(**{name: value}, **links("SLUICE_WEB"))


def test_unrelated_environment_variables_are_accepted() -> None:
    assert read(sluice_odd="1", PATH="/bin", OPENAI_API_KEY="k").environ["OPENAI_API_KEY"] == "k"


@given(st.sampled_from(VARIABLES), st.text(st.characters(exclude_characters="\0"), max_size=20))
def test_any_variable_text_parses_or_raises_an_error_naming_the_variable(
    variable: config.Variable, text: str
) -> None:
    line = ""
    try:
        variable.parse(variable.name, text)
    except ConfigError as error:
        line = str(error)
    assert line == "" or line.startswith(f"{variable.name} is {text!r}")


@given(st.integers(1, 100_000))
def test_every_whole_number_in_range_is_accepted(number: int) -> None:
    assert config.parse_int(1, 100_000)("N", str(number)) == number


@given(st.floats())
def test_seconds_are_finite_and_in_their_range(number: float) -> None:
    parse = config.seconds(0.5, 10)
    if 0.5 <= number <= 10:
        assert parse("S", str(number)) == number
        assert math.isfinite(number)
    else:
        with pytest.raises(ConfigError):
            parse("S", str(number))


def test_settings_default_to_the_environment_of_the_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("os.environ", {"PORT": "8123"})
    assert Settings.from_env().port == 8123


def test_settings_are_copied_and_frozen() -> None:
    environ = {"PORT": "8123"}
    settings = Settings.from_env(environ)
    environ["PORT"] = "1"
    assert settings.environ == {"PORT": "8123"}
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.port = 1  # type: ignore[misc]


def test_repr_of_settings_shows_no_secret() -> None:
    keys = '{"hash": "sha256:abc"}'
    variables = {"OPENAI_API_KEY": "sk-secret", "DATABASE_URL": "postgres://u:hunter2@h/d"}
    shown = repr(read(SLUICE_KEYS=keys, SLUICE_METRICS_TOKEN="t0ken", **variables))
    assert "hunter2" not in shown
    assert "sha256:abc" not in shown
    assert "t0ken" not in shown
    assert "sk-secret" not in shown


def test_every_variable_has_a_field() -> None:
    fields = {field.name for field in dataclasses.fields(Settings)}
    timeouts = {field.name for field in dataclasses.fields(Timeouts)}
    assert set(TIMEOUT_FIELDS) == timeouts - {"grace"}
    assert {v.field for v in VARIABLES} <= fields | set(TIMEOUT_FIELDS)
    assert len({v.name for v in VARIABLES}) == len({v.field for v in VARIABLES}) == len(VARIABLES)


@pytest.mark.parametrize(
    ("timeouts", "silence"),
    [(Timeouts(first_event=5, idle=9), 14), (Timeouts(first_event=9, idle=5), 14)],
)
def test_longest_silence_is_the_longer_event_timeout_plus_grace(
    timeouts: Timeouts, silence: float
) -> None:
    assert timeouts.longest_silence == silence


# Warnings


@pytest.mark.parametrize(
    ("environ", "says"),
    [
        ({}, []),
        ({"WEB_CONCURRENCY": "1"}, []),
        ({"WEB_CONCURRENCY": "4"}, ["WEB_CONCURRENCY=4 is ignored"]),
        ({"WEB_CONCURRENCY": "4", "REDIS_URL": "redis://127.0.0.1"}, []),
        ({"DYNO": "web.1"}, ["SLUICE_KEYS"]),
        ({"DYNO": "web.1", "DATABASE_URL": "postgres://"}, []),
        ({"DYNO": "web.1", "WEB_CONCURRENCY": "2"}, ["SLUICE_KEYS", "WEB_CONCURRENCY=2"]),
    ],
)
def test_each_configuration_warning_is_a_single_line(
    environ: dict[str, str], says: list[str]
) -> None:
    warnings = read(**environ).warnings
    assert len(warnings) == len(says)
    for warning, words in zip(warnings, says, strict=True):
        assert words in warning
        assert "\n" not in warning


# sluice.toml

TABLES = """
[providers.sim]
base_url = "http://127.0.0.1:9100/v1"

[aliases]
fast = ["openai/gpt-4o-mini"]

[prices."sim/sim-1"]
input_per_mtok = 1.0
output_per_mtok = 2
"""


@pytest.mark.parametrize("named", [True, False])
def test_tables_come_from_the_named_file_or_from_sluice_toml(elsewhere: Path, named: bool) -> None:
    path = elsewhere / ("mine.toml" if named else "sluice.toml")
    path.write_text(TABLES)
    settings = read(SLUICE_CONFIG=str(path)) if named else read()
    assert settings.config_file == (path if named else None)
    assert settings.providers == {"sim": {"base_url": "http://127.0.0.1:9100/v1"}}
    assert settings.aliases == {"fast": ["openai/gpt-4o-mini"]}
    assert settings.prices == {"sim/sim-1": {"input_per_mtok": 1.0, "output_per_mtok": 2}}


def test_named_config_file_replaces_sluice_toml(elsewhere: Path) -> None:
    (elsewhere / "sluice.toml").write_text(TABLES)
    (elsewhere / "empty.toml").touch()
    assert read(SLUICE_CONFIG="empty.toml").providers == {}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"[providers", "sluice.toml can't be read: "),
        (b"\xff", "sluice.toml can't be read: "),
        (b"\n[provider.x]",
         "sluice.toml, line 2, [provider]: there is no such table; did you mean providers?"),
        (b"[zzz]", "sluice.toml, line 1, [zzz]: there is no such table"),
        (b"aliases = 1", "sluice.toml, line 1, [aliases]: aliases must be a table, [aliases]"),
        (b"[[providers]]", "sluice.toml, line 1, [providers]: providers must be a table"),
        (b"[providers]\nx = 1", "sluice.toml, line 2, [providers.x]: x must be a table"),
        (b'[prices]\n"a/b" = 1', 'sluice.toml, line 2, [prices."a/b"]: a/b must be a table'),
    ],
)  # fmt: skip
def test_mistake_in_sluice_toml_raises_a_one_line_error(
    elsewhere: Path, text: bytes, says: str
) -> None:
    (elsewhere / "sluice.toml").write_bytes(text)
    assert says in refusal()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_sluice_toml_may_be_utf8_or_have_a_byte_order_mark(
    elsewhere: Path, encoding: str, end: str
) -> None:
    mark = "\ufeff" if encoding.endswith(("le", "be")) else ""
    text = mark + "# Schl\xfcssel" + TABLES.replace("\n", end)
    (elsewhere / "sluice.toml").write_bytes(text.encode(encoding))
    assert read().providers == {"sim": {"base_url": "http://127.0.0.1:9100/v1"}}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[aliases]\n# Schl\xfcssel".encode("latin-1"), "save it as UTF-8 (see line 2)"),
        (TABLES.lstrip().encode("utf-16-le"), "line 1 has a NUL; save it as UTF-8"),
        (TABLES.lstrip().encode("utf-16-be"), "line 1 has a NUL; save it as UTF-8"),
        (TABLES.encode("utf-32"), "NUL; save it as UTF-8"),
        (TABLES.encode("utf-16")[:-1], "save it as UTF-8"),
        (b"[aliases]\n\n\0", "line 3 has a NUL"),
        (b"[aliases]\na = " + b"[" * 100_000, "nested too deeply"),
        (b"[aliases]\na = " + b"1" * 5_000, "Exceeds the limit"),
        (b"\x80PNG\r\n", "see line 1"),
    ],
)
def test_sluice_toml_in_another_encoding_is_refused_in_one_line(
    elsewhere: Path, text: bytes, says: str
) -> None:
    (elsewhere / "mine.toml").write_bytes(text)
    line = refusal(SLUICE_CONFIG="mine.toml")
    assert line.startswith("mine.toml can't be read: ")
    assert says in line


def test_a_byte_order_mark_of_dotenv_is_ignored() -> None:
    assert read(**{"\ufeffPORT": "8123"}).port == 8123
    assert read(**{"\ufeffPORT": "8123", "PORT": "8124"}).port == 8124
    assert "SLUICE_QQQQ is not a setting" in refusal(**{"\ufeffSLUICE_QQQQ": ""})


def parse(text: str) -> Mapping[str, str | None]:
    return dict(line.split("=", 1) for line in text.splitlines() if "=" in line)


@pytest.fixture
def environ(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Return the environment that config.py sees in the test."""
    found: dict[str, str] = {}
    monkeypatch.setattr(config, "os", SimpleNamespace(environ=found))
    return found


@pytest.mark.parametrize(
    "text",
    [
        b"# Schl\xfcssel\nA=b\n",
        "A=b\n".encode("utf-16-le"),
        "A=b\n".encode("utf-16")[:-1],
        "A=b\n".encode("utf-32"),
        b"A=\0\n",
    ],
)
def test_a_dotenv_in_another_encoding_is_refused_in_one_line(
    tmp_path: Path, environ: dict[str, str], text: bytes
) -> None:
    (tmp_path / ".env").write_bytes(text)
    with pytest.raises(ConfigError) as caught:
        config.load_dotenv(tmp_path / ".env", parse)
    line = str(caught.value)
    assert line.startswith(f"{tmp_path}/.env can't be read: ")
    assert "save it as UTF-8" in line
    assert "\n" not in line
    assert environ == {}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_dotenv_in_utf8_or_with_a_byte_order_mark_sets_what_is_not_set(
    tmp_path: Path, environ: dict[str, str], encoding: str, end: str
) -> None:
    environ["SET"] = "before"
    text = end.join(["A=\xfc", "# comment", "SET=after", "EMPTY=", ""])
    (tmp_path / ".env").write_bytes(text.encode(encoding))
    config.load_dotenv(tmp_path / ".env", parse)
    assert environ == {"A": "\xfc", "SET": "before", "EMPTY": ""}


def test_a_missing_dotenv_or_a_folder_of_that_name_counts_as_empty(
    tmp_path: Path, environ: dict[str, str]
) -> None:
    config.load_dotenv(tmp_path / ".env", parse)
    (tmp_path / ".env").mkdir()  # some virtual environments have this name
    config.load_dotenv(tmp_path / ".env", parse)
    assert environ == {}


def test_a_dotenv_that_is_far_too_large_is_refused_before_it_is_parsed(
    tmp_path: Path, environ: dict[str, str]
) -> None:
    path = tmp_path / ".env"
    path.write_bytes(b"A=b\n" * (config.MOST_DOTENV // 4))
    config.load_dotenv(path, parse)
    assert environ == {"A": "b"}
    path.write_bytes(b"A=b\n" * (config.MOST_DOTENV // 4) + b"#")
    with pytest.raises(ConfigError, match="can't be read: it is larger than 256 KiB"):
        config.load_dotenv(path, parse)


def pipe_or_device(directory: Path, kind: str) -> Path:
    """Return the path of a file that isn't a regular one, or of a symbolic link to it."""
    path = directory / "odd"
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(kind)
    return path


@pytest.mark.parametrize("kind", ["pipe", "/dev/zero", "/dev/tty"])
def test_a_dotenv_or_configuration_that_is_no_regular_file_is_refused_without_reading_it(
    tmp_path: Path, environ: dict[str, str], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    path = pipe_or_device(tmp_path, kind)
    monkeypatch.setattr(Path, "open", lambda *_: pytest.fail("the file was opened"))
    with pytest.raises(ConfigError, match="odd can't be read: not a regular file"):
        config.load_dotenv(path, parse)
    with pytest.raises(ConfigError, match="odd can't be read: not a regular file"):
        read_toml(path)
    for name in ("SLUICE_CONFIG", "SLUICE_CA_BUNDLE"):
        with pytest.raises(ConfigError, match=f"{name} is '.*odd', which is not a regular file"):
            Settings.from_env({name: str(path)})
    assert environ == {}


def test_a_folder_is_no_configuration(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="can't be read: not a regular file"):
        read_toml(tmp_path)
    with pytest.raises(ConfigError, match="which is not a regular file"):
        Settings.from_env({"SLUICE_CONFIG": str(tmp_path)})


def test_a_link_to_a_regular_file_is_read_and_dev_null_counts_as_empty(
    tmp_path: Path, environ: dict[str, str]
) -> None:
    (tmp_path / "real").write_text("A='b'\n")
    (tmp_path / "link").symlink_to("real")
    config.load_dotenv(tmp_path / "link", parse)
    assert environ == {"A": "'b'"}
    (tmp_path / "none").symlink_to(os.devnull)
    config.load_dotenv(tmp_path / "none", parse)
    assert read_toml(tmp_path / "none") == {"toml": ""}
    assert environ == {"A": "'b'"}


def test_a_dotenv_that_may_not_be_read_is_refused_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    (tmp_path / ".env").touch()
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(ConfigError, match=r"\.env can't be read: Permission denied"):
        config.load_dotenv(tmp_path / ".env", parse)


@pytest.mark.parametrize(
    ("given", "host"),
    [
        ({}, "127.0.0.1"),
        ({"PORT": "8123"}, "127.0.0.1"),
        ({"HOST": "0.0.0.0"}, "0.0.0.0"),
        ({"HOST": "::"}, "::"),
        ({"HOST": "[::1]"}, "[::1]"),
        ({"HOST": "localhost"}, "localhost"),
        ({"HOST": "x86_64-conda-linux-gnu"}, "127.0.0.1"),
        ({"HOST": "my-machine"}, "127.0.0.1"),
        ({"HOST": ""}, "127.0.0.1"),
        ({"SLUICE_HOST": "my-machine", "HOST": "0.0.0.0"}, "my-machine"),
        ({"SLUICE_HOST": " ", "HOST": "0.0.0.0"}, "0.0.0.0"),
    ],
)
def test_a_server_started_by_hand_listens_on_loopback_unless_host_is_an_address(
    environ: dict[str, str], given: dict[str, str], host: str
) -> None:
    environ.update(given)
    config.prepare_to_serve()
    assert environ["SLUICE_HOST"] == host


@pytest.mark.parametrize(("given", "left"), [("", None), (" ", None), ("2", "2")])
def test_a_blank_number_of_workers_is_unset_before_gunicorn_reads_it(
    environ: dict[str, str], given: str, left: str | None
) -> None:
    environ["WEB_CONCURRENCY"] = given
    config.prepare_to_serve()
    assert environ.get("WEB_CONCURRENCY") == left


@pytest.mark.parametrize(
    ("given", "skips"), [("", False), ("0", False), ("false", False), ("1", True), ("yes", True)]
)
def test_flask_never_reads_dotenv_itself_once_sluice_has_decided(
    environ: dict[str, str], given: str, skips: bool
) -> None:
    environ["FLASK_SKIP_DOTENV"] = given
    assert config.skip_dotenv() is skips
    assert environ["FLASK_SKIP_DOTENV"] == "1"


@pytest.mark.parametrize("name", ["SLUICE_KEY", "SLUICE_URL", "SLUICE_MODEL"])
def test_the_variables_of_clients_do_not_stop_a_server(name: str) -> None:
    assert dataclasses.replace(read(**{name: "sk-sluice-x"}), environ={}) == read()


def test_a_line_of_the_key_file_in_the_client_variable_stops_the_start() -> None:
    assert "did you mean SLUICE_KEYS?" in refusal(SLUICE_KEY='{"id": "key_a"}')


def test_folder_named_sluice_toml_raises_an_error(elsewhere: Path) -> None:
    (elsewhere / "sluice.toml").mkdir()
    assert "can't be read" in refusal()


def test_example_config_file_can_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = read(SLUICE_CONFIG=str(ROOT / "sluice.example.toml"))
    assert settings.providers
    assert settings.aliases
    assert settings.prices


# For other modules


def test_config_imports_only_the_standard_library() -> None:
    """gunicorn's master imports config before gevent patches anything."""
    code = (
        "import sys; before = set(sys.modules); import config; "
        "loaded = {name.partition('.')[0] for name in set(sys.modules) - before}; "
        "print(*(loaded - set(sys.stdlib_module_names) - {'config', 'config_file'}))"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == ""


OWN, MOST = {"connect": 2.0, "total": 4000.0}, {"total": 30.0, "idle": 500.0}


@pytest.mark.parametrize(
    ("own", "within", "expected"),
    [
        ({}, {}, Timeouts()),
        (OWN, {}, Timeouts(connect=2, total=4000)),
        ({}, MOST, Timeouts(total=30)),
        (OWN, MOST, Timeouts(connect=2, total=30)),
        ({"first_event": 5.0}, {"first_event": 6.0}, Timeouts(first_event=5)),
    ],
)
def test_provider_overrides_timeouts_and_caller_can_only_lower_timeouts(
    own: dict[str, float], within: dict[str, float], expected: Timeouts
) -> None:
    assert Timeouts().overridden(own, within) == expected


@pytest.mark.parametrize("text", ["10.0.0.7:80", "http://10.0.0.7", "a b", "[::1]:80", "a/b"])
def test_a_host_with_more_than_a_host_is_refused(text: str) -> None:
    assert "SLUICE_HOST is" in refusal(SLUICE_HOST=text)


def test_a_text_without_quotes_in_toml_gets_a_hint(tmp_path: Path) -> None:
    path = tmp_path / "sluice.toml"
    path.write_text("[aliases]\nfast = openai/gpt-4o\n")
    with pytest.raises(ConfigError, match=r"Invalid value \(at line 2, .*\); a text needs quotes$"):
        Settings.from_env({"SLUICE_CONFIG": str(path)})
