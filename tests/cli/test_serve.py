"""Tests of what `./sluice serve` finds out before it starts gunicorn."""

from __future__ import annotations

import errno
import os
import socket
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from cli import serve, start_checks
from config import ConfigError
from endpoints.services import Services
from keys.store import KeyStore
from ledger.database import database_url
from ledger.ledger import Ledger
from tests.support.paths import ROOT
from tests.support.servers import free_port

EIGHT = ("127.0.0.1", 8000)


@pytest.fixture(autouse=True)
def root(monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in the checkout's folder, with no settings that concern gunicorn."""
    monkeypatch.chdir(ROOT)
    for name in ("PORT", "SLUICE_HOST", "GUNICORN_CMD_ARGS", "WEB_CONCURRENCY", "SLUICE_CONFIG"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("options", "variable", "addresses", "scheme", "claims"),
    [
        ([], "", [EIGHT], "http", True),
        (["--access-logfile", "-"], "", [EIGHT], "http", True),
        ([], "-b 127.0.0.1:9000", [("127.0.0.1", 9000)], "http", True),
        (["-b", "[::1]:9000"], "-b 127.0.0.1:1", [("::1", 9000)], "http", False),
        (["-b", "127.0.0.1:1", "-b", "127.0.0.1:2"], "", [("127.0.0.1", 1), ("127.0.0.1", 2)],
         "http", False),
        (["--certfile", "x.pem"], "", [EIGHT], "https", True),
        ([], "--keyfile x.pem", [EIGHT], "https", True),
        (["--reuse-port"], "", [EIGHT], "http", False),
        ([], "-b unix:/tmp/x", [], "http", False),
        (["-b", "fd://3"], "", [], "http", False),
        (["-c", "mine.py"], "", [], "http", False),
        (["-c", "mine.py", "-b", "127.0.0.1:1"], "", [("127.0.0.1", 1)], "http", False),
    ],
)  # fmt: skip
def test_the_plan_follows_the_options_of_gunicorn(
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    variable: str,
    addresses: list[tuple[str, int]],
    scheme: str,
    claims: bool,
) -> None:
    monkeypatch.setenv("GUNICORN_CMD_ARGS", variable)
    plan = serve.plan_of(options)
    assert plan == serve.Plan(addresses, scheme, 2048, claims=claims)


def test_the_plan_has_the_backlog_of_gunicorn() -> None:
    assert serve.plan_of(["--backlog", "7"]).backlog == 7


@pytest.mark.parametrize(
    ("address", "text"),
    [
        (EIGHT, "127.0.0.1:8000"),
        (("::1", 8000), "[::1]:8000"),
        (("0.0.0.0", 8000), "0.0.0.0:8000, which is all interfaces"),
        (("::", 8000), "[::]:8000, which is all interfaces"),
    ],
)
def test_shown_says_whether_other_machines_reach_the_address(
    address: tuple[str, int], text: str
) -> None:
    assert serve.shown(address) == text


def test_a_taken_port_is_refused_and_the_next_free_one_suggested() -> None:
    with closing(start_checks.listener("127.0.0.1", free_port())) as taken:
        host, port = taken.getsockname()
        with pytest.raises(ConfigError) as caught:
            start_checks.listen([(host, port)], 1, "make run")
    said = str(caught.value)
    suggested = int(said.removeprefix(f"Port {port} is taken; try PORT=").removesuffix(" make run"))
    assert port < suggested <= port + start_checks.MOST_TRIED


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (OSError(errno.EACCES, "x"), "Port 80 needs more rights than you have; try PORT=8000 CMD"),
        (OSError(errno.EADDRNOTAVAIL, "x"), "this machine doesn't have that address"),
        (socket.gaierror(-2, "x"), "there is no such host or address"),
        (OSError(errno.EMFILE, "too many"), "can't listen on h, port 80: too many"),
    ],
)
def test_an_address_that_cannot_be_used_is_refused_with_the_reason(
    error: OSError, says: str
) -> None:
    assert says in start_checks.refusal("h", 80, error, "CMD")


def services(folder: Path) -> Services:
    url = database_url(None, folder / "sluice.db")
    found = SimpleNamespace(keys=KeyStore(folder / "keys.jsonl"), ledger=Ledger(url), cluster=None)
    return cast(Services, found)


def warnings(folder: Path) -> list[str]:
    return list(start_checks.check_files(services(folder)))


def test_a_ledger_that_another_server_uses_is_a_warning(tmp_path: Path) -> None:
    assert warnings(tmp_path) == []
    other = services(tmp_path).ledger
    other.start()
    [warning] = warnings(tmp_path)
    assert warning.startswith(f"another server uses {tmp_path}/sluice.db too.")
    shared: Any = services(tmp_path)
    shared.cluster = object()  # with a Redis, several servers are what an operator wants
    assert list(start_checks.check_files(shared)) == []
    other.close()
    assert warnings(tmp_path) == []


def test_a_folder_that_may_not_be_written_names_its_owner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    monkeypatch.setattr(Path, "owner", lambda _: "ada")
    with pytest.raises(ConfigError, match="belongs to ada, and you may not write there"):
        warnings(tmp_path)


def test_root_is_warned_in_a_checkout_of_another_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root to give a folder away")
    os.chown(tmp_path, 12345, -1)
    [warning] = warnings(tmp_path)
    assert warning.startswith(f"{tmp_path} belongs to user 12345, but you are root")
