"""Tests of the commands of `flask usage` and `flask ledger`."""

from __future__ import annotations

import json
import sqlite3
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import Result
from flask import Flask
from sqlalchemy import update

import cli.usage
from keys.store import KeyStore
from ledger import refusals
from ledger.database import database_url
from ledger.ledger import Ledger
from ledger.schema import requests
from tests.support.commands import Commands
from tests.support.rows import connected, open_row, settled_row

NAME = "laptop"


class Runner(Commands):
    """A runner that creates a new app and a new ledger for each command."""

    def __init__(self, directory: Path, url: str | None = None) -> None:
        self.path = directory / "sluice.db"
        self.url = url or database_url(None, self.path)
        self.keys = KeyStore(directory / "keys.jsonl")
        self.key, _ = self.keys.create(NAME)

    def __call__(self, *arguments: str, text: str | None = None) -> Result:
        app = Flask(__name__)
        app.extensions["sluice"] = SimpleNamespace(keys=self.keys, ledger=Ledger(self.url))
        app.cli.add_command(cli.usage.usage_group)
        app.cli.add_command(cli.usage.ledger_group)
        return app.test_cli_runner().invoke(args=list(arguments), input=text)

    def json(self, *arguments: str) -> Any:
        return json.loads(self.ok("usage", "report", *arguments, "--json"))

    def fill(self, *rows: tuple[Any, ...], **fields: Any) -> None:
        with connected(self.url) as connection:
            for row in rows:
                settled_row(connection, *row, **{"key_id": self.key.id, **fields})


@pytest.fixture
def empty(tmp_path: Path) -> Runner:
    return Runner(tmp_path)


@pytest.fixture
def run(empty: Runner) -> Runner:
    empty.fill(("2026-01-30T12:00:00", (1, 2), 1_000), ("2026-01-31T12:00:00", (10, 20), 2_000))
    empty.fill(("2026-01-31T12:00:00", (100, 200), None), model="n\x1b[2J", key_id="key_gone")
    return empty


# report


def test_usage_report_prints_sums_by_model(run: Runner) -> None:
    assert run.ok("usage", "report").splitlines() == [
        "model      requests  input  output  total  cost (USD)  unpriced",
        "sim/m             2     11      22     33    0.000003         0",
        "sim/n\ufffd[2J         1    100     200    300    0.000000         1",
        "total             3    111     222    333    0.000003         1",
    ]


def test_usage_alone_prints_the_report(run: Runner) -> None:
    assert run.ok("usage") == run.ok("usage", "report")


def test_usage_report_by_key_names_the_existing_keys(run: Runner) -> None:
    lines = [line.split() for line in run.ok("usage", "report", "--by", "key").splitlines()]
    assert lines[0][:3] == ["key", "name", "requests"]
    assert lines[1][:3] == [run.key.id, NAME, "2"]
    assert lines[2][:2] == ["key_gone", "1"]
    rows = run.json("--by", "key")["data"]
    assert [(row["name"], row["key_name"]) for row in rows] == [
        (run.key.id, NAME),
        ("key_gone", None),
    ]
    header, *cells = run.ok("usage", "report", "--by", "key", "--csv").splitlines()
    assert header.startswith("key,name,requests,")
    assert cells[0].startswith(f'"{run.key.id}","{NAME}",2,')
    assert cells[1].startswith('"key_gone","",1,')


@pytest.mark.parametrize("key", ["NAME", "ID", "key_gone"])
def test_usage_report_can_be_limited_to_a_key(run: Runner, key: str) -> None:
    key = {"NAME": NAME, "ID": run.key.id}.get(key, key)
    found = run.json("--key", key)
    assert found["total"]["requests"] == (1 if key == "key_gone" else 2)


def test_usage_report_can_be_limited_to_a_range_of_days(run: Runner) -> None:
    found = run.json("--since", "2026-01-31", "--until", "2026-01-31T23:00:00Z", "--by", "day")
    assert found == {
        "group_by": "day",
        "since": "2026-01-31",
        "until": "2026-01-31",
        "data": [
            {
                "name": "2026-01-31",
                "requests": 2,
                "cost": 2e-06,
                "tokens": {"input": 110, "output": 220, "total": 330},
                "unpriced_requests": 1,
            }
        ],
        "total": {
            "requests": 2,
            "cost": 2e-06,
            "tokens": {"input": 110, "output": 220, "total": 330},
            "unpriced_requests": 1,
        },
        "refused": [],
    }


def refuse(run: Runner) -> None:
    day, limited = "2026-01-31", "rate_limited:requests"
    counts = {(run.key.id, day, limited): 12, ("key_gone", "2026-01-30", "model_forbidden"): 3}
    with connected(run.url) as connection:
        refusals.write(connection, counts)


def test_usage_report_ends_with_the_refused_calls(run: Runner) -> None:
    refuse(run)
    output = run.ok("usage", "report")
    assert output.split("\n\n")[1].splitlines() == [
        f"refused                {'key'.ljust(len(run.key.id))}  name    calls",
        f"rate_limited:requests  {run.key.id}  laptop     12",
        f"model_forbidden        {'key_gone'.ljust(len(run.key.id))}              3",
    ]
    assert run.json("--key", NAME, "--since", "2026-01-31")["refused"] == [
        {
            "key": run.key.id,
            "key_name": NAME,
            "reason": "rate_limited:requests",
            "calls": 12,
        }
    ]
    assert run.json()["refused"][1]["key_name"] is None
    assert "refused" not in run.ok("usage", "report", "--csv")


def test_usage_report_shows_refused_calls_of_a_period_without_requests(empty: Runner) -> None:
    refuse(empty)
    result = empty("usage", "report")
    assert "There are no requests in this period." in result.stderr
    assert result.stdout.startswith("refused ")


def test_usage_report_since_accepts_an_age(run: Runner) -> None:
    ago = datetime.now(UTC) - timedelta(days=7)
    run.fill((ago.strftime("%Y-%m-%dT00:00:00"),))
    found = run.json("--since", "7d")
    assert found["since"] == ago.date().isoformat()
    assert found["total"]["requests"] == 1


def test_usage_report_prints_csv(run: Runner) -> None:
    found = run("usage", "report", "--csv", "--by", "provider").stdout_bytes
    assert found == (
        b"provider,requests,cost_usd,input_tokens,output_tokens,total_tokens,unpriced_requests\r\n"
        b'"sim",3,0.000003000,111,222,333,1\r\n'
    )


def test_usage_report_without_requests_prints_a_note_on_stderr(run: Runner) -> None:
    result = run("usage", "report", "--until", "2000-01-01")
    assert (result.exit_code, result.stdout) == (0, "")
    assert "no requests" in result.stderr
    assert run.json("--until", "2000-01-01")["data"] == []


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--since", "tomorrow"], "--since must be"),
        (["--until", "7y"], "--until must be"),
        (["--since", "999999w"], "--since must be"),
        (["--since", "2026-02-01", "--until", "2026-01-01"], "--since is after --until"),
        (["--key", "nobody"], "No key"),
        (["--json", "--csv"], "not both"),
    ],
)
def test_usage_report_rejects_invalid_options(run: Runner, arguments: list[str], says: str) -> None:
    assert says in run.error("usage", "report", *arguments)


@pytest.mark.parametrize(
    "command",
    [
        ["usage", "report"],
        ["usage", "verify"],
        ["usage", "prune", "--older-than", "1d", "--yes"],
        ["ledger", "backup", "copy.db"],
    ],
)
def test_no_command_creates_a_missing_ledger(
    empty: Runner, command: list[str], tmp_path: Path
) -> None:
    assert "Nothing has been recorded yet" in empty.error(*command)
    assert not empty.path.exists()


def test_an_unreadable_ledger_is_reported_in_one_line(empty: Runner) -> None:
    empty.path.mkdir()
    assert "ledger" in empty.error("usage", "report")


def test_usage_commands_work_on_postgres(tmp_path: Path, postgres_url: str) -> None:
    run = Runner(tmp_path, database_url(postgres_url, tmp_path))
    assert run("usage", "report").stdout == ""
    run.fill(("2026-01-30T12:00:00", (1, 2), 1_000))
    assert run.json()["total"]["cost"] == 1e-06
    assert run.ok("usage", "verify") == consistent(1)
    assert "1 requests" in run.ok("usage", "prune", "--older-than", "1d", "--yes")
    assert "pg_dump" in run.error("ledger", "backup", str(tmp_path / "copy.db"))


# prune


def test_prune_deletes_old_requests_and_keeps_the_daily_sums(
    run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli.usage, "BATCH", 2)
    today = datetime.now(UTC).strftime("%Y-%m-%dT00:00:00")
    run.fill((today,))
    sums = run.json()
    day = today[:10]
    assert "--yes" in run.error("usage", "prune", "--older-than", "1m")
    assert run.ok("usage", "prune", "--older-than", "1m", "--yes") == (
        f"Deleted 3 requests from before {day}. The daily sums are kept.\n"
    )
    assert run.json() == sums
    assert run.ok("usage", "verify") == consistent(1)
    assert run.ok("usage", "prune", "--older-than", "1m").startswith("Deleted 0 requests")


@pytest.mark.parametrize(("answer", "left"), [("n\n", 3), ("", 3), ("y\n", 0)])
def test_prune_asks_in_a_terminal(
    run: Runner, monkeypatch: pytest.MonkeyPatch, answer: str, left: int
) -> None:
    terminal = SimpleNamespace(stdin=SimpleNamespace(isatty=lambda: True))
    monkeypatch.setattr(cli.usage, "sys", terminal)
    result = run("usage", "prune", "--older-than", "1d", text=answer)
    assert result.exit_code == (1 if left else 0)
    assert "Delete 3 requests from before " in result.stderr
    assert run.ok("usage", "verify") == consistent(left)


@pytest.mark.parametrize("age", ["", "90", "1y", "2026-01-01", "999999w"])
def test_prune_rejects_an_invalid_age(run: Runner, age: str) -> None:
    assert "90d" in run.error("usage", "prune", f"--older-than={age}", "--yes")
    assert run.ok("usage", "verify") == consistent(3)


# verify


def consistent(rows: int) -> str:
    return f"The ledger is consistent (rows checked: {rows}).\n"


def test_verify_lists_the_errors_of_the_ledger_and_fails(run: Runner) -> None:
    with connected(run.url) as connection:
        open_row(connection, "2026-01-01T00:00:00", key_id=run.key.id)
        bad = requests.c.key_id == "key_gone"
        connection.execute(update(requests).where(bad).values(reasoning_tokens=201))
    result = run("usage", "verify")
    assert result.exit_code == 1
    assert "\x1b" not in result.stdout
    lines = result.stdout.splitlines()
    assert "reasoning" in lines[-1]
    assert (
        result.stderr == f"Error: The ledger is inconsistent ({len(lines)} lines, listed above).\n"
    )


# backup


def test_backup_copies_the_ledger_and_overwrites_no_file(run: Runner, tmp_path: Path) -> None:
    target = tmp_path / "copy.db"
    assert run.ok("ledger", "backup", str(target)) == f"Copied {run.path} to {target}.\n"
    with sqlite3.connect(target) as copy:
        assert copy.execute("SELECT count(*) FROM requests").fetchone() == (3,)
    copy.close()
    before = target.read_bytes()
    assert "already exists" in run.error("ledger", "backup", str(target))
    assert target.read_bytes() == before
    assert "No such file" in run.error("ledger", "backup", str(tmp_path / "none" / "copy.db"))


def test_a_backup_of_an_invalid_database_fails_with_one_line(empty: Runner, tmp_path: Path) -> None:
    empty.path.write_text("not a database, but long enough to look at" * 100)
    assert "can't be copied" in empty.error("ledger", "backup", str(tmp_path / "copy.db"))
    assert not (tmp_path / "copy.db").exists()


def test_a_restored_backup_replaces_the_ledger(run: Runner, tmp_path: Path) -> None:
    """Follow the steps in docs/guides/operate.md."""
    target = tmp_path / "copy.db"
    run.ok("ledger", "backup", str(target))
    before = run.json()
    run.fill(("2026-02-01T12:00:00",))
    for end in ("-wal", "-shm"):
        run.path.with_name(run.path.name + end).unlink(missing_ok=True)
    run.path.write_bytes(target.read_bytes())
    assert run.json() == before
    assert run.ok("usage", "verify") == consistent(3)
    run.fill(("2026-02-01T12:00:00",))
    assert run.json()["total"]["requests"] == before["total"]["requests"] + 1
