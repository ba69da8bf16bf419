"""Tests of keys/: a key, the key file, and the store that reads and changes it."""

from __future__ import annotations

import errno
import json
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from keys import key as key_module
from keys import key_file
from keys import store as store_module
from keys.key import LATER_FIELDS, Key
from keys.key_errors import KeyFileError
from keys.limits import Limits
from keys.store import KeyStore
from tests.support.paths import ROOT

pytestmark = pytest.mark.usefixtures("no_secret_is_logged")

ALL_FIELDS = [
    "id", "name", "hash", "created", "expires", "disabled",
    "tier", "requests_per_minute", "tokens_per_hour", "budget_usd", "budget_period",
    "max_streams", "resumable", "models", "admin", "group",
]  # fmt: skip
OLD_FIELDS = [name for name in ALL_FIELDS if name not in LATER_FIELDS]
PREVIOUS = ROOT / "tests/fixtures/upgrade/v1/keys.jsonl"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys.jsonl"


@pytest.fixture
def store(path: Path, monkeypatch: pytest.MonkeyPatch) -> KeyStore:
    """Return a store that checks its file on every call."""
    monkeypatch.setattr(store_module, "LOOK_EVERY_S", 0)
    return KeyStore(path)


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def a_row(**changes: Any) -> dict[str, Any]:
    """Return the row of a new key with changes. A value of ... removes the field."""
    row = key_module.new_row("someone", {"tier": "free"})[0] | changes
    return {name: value for name, value in row.items() if value is not ...}


def write(path: Path, *lines: object) -> None:
    texts = (line if isinstance(line, str) else json.dumps(line) for line in lines)
    path.write_text("".join(text + "\n" for text in texts))
    path.chmod(0o600)


# Keys


def test_a_created_key_is_found_only_by_its_secret(store: KeyStore, path: Path) -> None:
    key, secret = store.create("laptop")
    assert secret.startswith("sk-sluice-")
    assert len(secret) == len("sk-sluice-") + 43
    assert store.find(secret) == store.get("laptop") == store.get(key.id) == key
    assert store.all() == [key]
    assert KeyStore(path).find(secret) == key
    for wrong in ("", "sk-sluice-", secret[:-1], secret + "x", key.id, key.hash, "é", "\ud800"):
        assert store.find(wrong) is None
    assert store.find(secret + "x" * 1_000_000) is None


def test_the_key_file_holds_the_documented_fields_and_no_secret(
    store: KeyStore, path: Path
) -> None:
    key, secret = store.create(
        "ci", expires=timedelta(days=30), models=("openai/*", "local/*"), tier="standard"
    )
    (row,) = rows_of(path)
    assert list(row) == ALL_FIELDS
    assert row["hash"] == key_module.fingerprint(secret) == key.hash
    assert datetime.fromisoformat(row["expires"]) == key.expires == key.created + timedelta(days=30)
    assert row["created"].endswith("Z")
    assert len(row["created"]) == len("2026-01-01T00:00:00Z")
    assert row["models"] == ["openai/*", "local/*"]
    assert row["id"].startswith("key_")
    assert len(row["id"]) == len("key_") + 12
    everything = path.read_text() + repr(key)
    assert secret.removeprefix("sk-sluice-") not in everything
    assert key.hash not in repr(key)


def test_the_key_file_and_its_lock_have_mode_0600(store: KeyStore, path: Path) -> None:
    old = os.umask(0)
    try:
        store.create("a")
    finally:
        os.umask(old)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE((path.parent / "keys.jsonl.lock").stat().st_mode) == 0o600
    assert sorted(file.name for file in path.parent.iterdir()) == ["keys.jsonl", "keys.jsonl.lock"]


def test_a_key_can_be_disabled_enabled_and_deleted(store: KeyStore) -> None:
    key, secret = store.create("a")
    other, other_secret = store.create("b")
    assert store.update("a", disabled=True).status == "disabled"
    assert store.find(secret) is None
    assert store.update(key.id, disabled=False) == key
    assert store.find(secret) == key
    assert store.delete("a") == key
    assert store.find(secret) is None
    assert store.find(other_secret) == other
    assert store.all() == [other]


def test_expiry_is_checked_on_each_find(store: KeyStore, monkeypatch: pytest.MonkeyPatch) -> None:
    key, secret = store.create("a", expires=timedelta(minutes=1))
    assert store.find(secret) == key
    later = datetime.now(UTC) + timedelta(minutes=2)
    monkeypatch.setattr(key_module, "datetime", SimpleNamespace(now=lambda _zone: later))
    assert store.find(secret) is None
    assert key.status == "expired"


def test_expiry_may_be_given_in_any_time_zone(store: KeyStore) -> None:
    instant = datetime(2100, 1, 1, 2, 0, 0, 999, tzinfo=timezone(timedelta(hours=2)))
    key, _ = store.create("a", expires=instant)
    assert key.expires == datetime(2100, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"name": ""}, "name"),
        ({"name": "x" * 101}, "name"),
        ({"name": "\x1b[31m"}, "name"),
        ({"name": "key_x"}, "key_"),
        ({"name": "sk-sluice-x"}, "sk-sluice-"),
        ({"name": "--yes"}, "start"),
        ({"name": " a"}, "space"),
        ({"tier": "gold"}, "enterprise"),
        ({"models": ()}, "openai/*"),
        ({"models": ("a", "")}, "openai/*"),
        ({"models": ("a\n",)}, "models"),
        ({"expires": timedelta(0)}, "future"),
        ({"expires": datetime(2020, 1, 1, tzinfo=UTC)}, "future"),
        ({"expires": timedelta(days=9_000_000)}, "too far"),
        ({"name": "taken"}, "exists"),
        ({"requests_per_minute": -1}, "from 0 to"),
        ({"tokens_per_hour": 10**12 + 1}, "from 0 to"),
        ({"tokens_per_hour": 1.5}, "tokens_per_hour"),
        ({"requests_per_minute": True}, "requests_per_minute"),
        *(
            ({"budget_usd": usd}, "US dollars")
            for usd in (-0.01, 1e10, float("nan"), float("inf"), -float("inf"))
        ),
        ({"budget_usd": 1, "budget_period": "week"}, "month"),
        ({"max_streams": 0}, "from 1"),
        ({"max_streams": 10**12 + 1}, "from 1"),
        ({"budget_period": "day"}, "needs a budget"),
    ],
)
def test_create_refuses_invalid_terms_and_leaves_the_file_unchanged(
    store: KeyStore, path: Path, arguments: dict[str, Any], word: str
) -> None:
    store.create("taken")
    before = path.read_bytes()
    with pytest.raises(KeyFileError) as caught:
        store.create(**({"name": "a"} | arguments))
    assert word in str(caught.value)
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == before


def test_unknown_and_ambiguous_key_names_are_refused(store: KeyStore, path: Path) -> None:
    one, two = a_row(), a_row()
    write(path, one, two)
    for change in (store.get, store.delete, lambda name: store.update(name, disabled=True)):
        with pytest.raises(KeyFileError) as caught:
            change("someone")
        assert one["id"] in str(caught.value)
        assert two["id"] in str(caught.value)
        with pytest.raises(KeyFileError) as caught:
            change("a-secret-by-mistake")
        assert "a-secret" not in str(caught.value)
    assert store.get(two["id"]).id == two["id"]


@pytest.mark.parametrize(
    ("globs", "model", "allowed"),
    [
        (["*"], "openai/gpt-4o", True),
        (["openai/*"], "openai/gpt-4o", True),
        (["openai/*"], "OpenAI/gpt-4o", False),
        (["openai/*"], "xopenai/gpt-4o", False),
        (["openai/*"], "openrouter/openai/gpt-4o", False),
        (["local/*", "openai/gpt-4o"], "openai/gpt-4o", True),
        (["local/*", "openai/gpt-4o"], "openai/gpt-4o-mini", False),
        (["openai/gpt-?"], "openai/gpt-4", True),
        ([], "openai/gpt-4", False),
        (["*a" * 40], "a" * 5_000 + "b", False),
    ],
)
def test_a_key_allows_only_models_that_match_its_globs(
    globs: list[str], model: str, allowed: bool
) -> None:
    assert key_module.allows(key_module.read_row(a_row(models=globs)), model) is allowed


# Limits


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"tier": "free"}, (10, 10_000)),
        ({"tier": "standard"}, (60, 100_000)),
        ({"tier": "enterprise"}, (500, 1_000_000)),
        ({"tier": "unlimited"}, (None, None)),
        ({"tier": "free", "requests_per_minute": 20}, (20, 10_000)),
        ({"tier": "free", "tokens_per_hour": 0}, (10, 0)),
        ({"tier": "unlimited", "requests_per_minute": 0}, (0, None)),
        ({"tier": "enterprise", "tokens_per_hour": 10**30}, (500, 10**12)),
    ],
)
def test_limits_come_from_the_tier_unless_the_key_sets_its_own(
    fields: dict[str, Any], expected: tuple[int | None, int | None]
) -> None:
    assert key_module.read_row(a_row(**fields)).limits == Limits(*expected)


@pytest.mark.parametrize(
    ("usd", "nano"),
    [
        (None, None),
        (0, 0),
        (5, 5_000_000_000),
        (0.1, 100_000_000),
        (0.29, 290_000_000),
        (1.1, 1_100_000_000),
        (1e-9, 1),
        (1.9e-9, 1),
        (1e-300, 0),
        (123456.789012345, 123_456_789_012_345),
        (1e9, 10**18),
        (1e300, 10**18),
        (10**30, 10**18),
    ],
)
def test_a_budget_in_nano_dollars_is_exact(usd: float | None, nano: int | None) -> None:
    found = key_module.read_row(a_row(budget_usd=usd)).budget_nano
    assert found == nano
    assert type(found) is type(nano)


def test_an_update_keeps_the_terms_not_named(store: KeyStore, path: Path) -> None:
    store.create("mine", models=("local/*",), tier="free", budget_usd=5.0, budget_period="day")
    (before,) = rows_of(path)
    store.update("mine", tier="standard", requests_per_minute=0)
    assert rows_of(path) == [before | {"tier": "standard", "requests_per_minute": 0}]
    store.update("mine", budget_usd=None)
    key = store.update("mine", expires=timedelta(days=1), requests_per_minute=None)
    assert key.limits == key_module.LIMITS["standard"]
    assert (key.budget_nano, key.budget_period) == (None, "day")
    assert key.expires is not None
    assert store.update("mine", expires=None).expires is None
    after = path.read_bytes()
    for terms in ({"tier": "gold"}, {"tokens_per_hour": -1}, {"budget_period": "month"}):
        with pytest.raises(KeyFileError):
            store.update("mine", **terms)
    assert path.read_bytes() == after


# The previous version's file


def test_a_key_file_of_the_previous_version_is_read_completely(path: Path) -> None:
    path.write_bytes(PREVIOUS.read_bytes())
    store = KeyStore(path)
    rows = [json.loads(line) for line in PREVIOUS.read_text().splitlines() if line]
    found = store.all()
    assert store.problems() == []
    for row, key in zip(rows, found, strict=True):
        assert key_module.fingerprint(f"made-up-text-of-{row['name']}") == key.hash
        assert {name: keys_own(key, name) for name in OLD_FIELDS} == {
            name: row[name] for name in OLD_FIELDS
        }
        assert key.budget_period == "total"
    assert [key.status for key in found] == [
        "active", "active", "active", "disabled", "expired", "active",
    ]  # fmt: skip
    assert store.find("made-up-text-of-batch") == found[2]
    assert found[2].limits == Limits(600, 0)
    assert [key.budget_nano for key in found[1:3]] == [500_000_000, 25_000_000_000]


def keys_own(key: Key, name: str) -> Any:
    """Return a field of a key in the format of the key file."""
    value = getattr(key, name)
    if isinstance(value, datetime):
        return key_module.as_text(value)
    return list(value) if isinstance(value, tuple) else value


@pytest.mark.parametrize(
    ("at", "change"),
    [
        (1, lambda store: store.update("trial", budget_period="month")),
        (1, lambda store: store.update("trial", tier="standard")),
        (3, lambda store: store.update("left-the-team", disabled=False)),
        (6, lambda store: store.update("büro", budget_usd=7.5)),
    ],
)
def test_an_update_keeps_the_other_lines_of_a_previous_version_file(
    store: KeyStore, path: Path, at: int, change: Callable[[KeyStore], Key]
) -> None:
    path.write_bytes(PREVIOUS.read_bytes())
    before = path.read_bytes().splitlines()
    key = change(store)
    after = path.read_bytes().splitlines()
    assert before[:at] + before[at + 1 :] == after[:at] + after[at + 1 :]
    old, new = json.loads(before[at]), json.loads(after[at])
    assert old.keys() <= new.keys()
    (term,) = (name for name, value in new.items() if name not in old or old[name] != value)
    assert new[term] == getattr(key, term)
    assert store.get(key.id) == key


def test_an_update_keeps_the_unknown_fields_of_a_key(store: KeyStore, path: Path) -> None:
    own = {"budget_owner": "x", "period": 1, "team": 2, "budget_perod": 3}
    write(path, a_row(**own))
    assert len(store.all()) == 1, "a similar name is no misspelling of a field that is present"
    store.update("someone", tier="standard")
    assert rows_of(path)[0] | own == rows_of(path)[0]


# The file


BROKEN: list[tuple[object, str]] = [
    ("{", "not JSON"),
    ("# a comment", "not JSON"),
    ('{"a":NaN}', "not JSON"),
    ("[" * 100_000, "not JSON"),
    ('["a"]', "not a JSON object"),
    ('"text"', "not a JSON object"),
    *((a_row() | {name: ["\x00"]}, name) for name in ALL_FIELDS if name != "budget_usd"),
    *((a_row(**{name: ...}), f"'{name}' is missing") for name in OLD_FIELDS),
    *(
        (a_row(budget_period=..., **{name: "day"}), "'budget_period' is misspelt")
        for name in ("budget_perod", "budgetPeriod", "Budget-Period", "bugdet_period")
    ),
    (a_row(max_streams=..., max_stream=5), "'max_streams' is misspelt"),
    *((a_row(max_streams=wrong), "max_streams") for wrong in (0, -1, 1.5, "5", True)),
    (a_row(budget_period="week"), "budget_period"),
    (a_row(budget_period=None), "budget_period"),
    ('{"budget_usd":1e400}', "not JSON"),
    (a_row(id="abc"), "id"),
    (a_row(id="key_abc\n"), "id"),
    (a_row(name=""), "name"),
    (a_row(name="\x1b[2J"), "name"),
    (a_row(hash="sha256:" + "A" * 64), "hash"),
    (a_row(hash="sha256:" + "a" * 63), "hash"),
    (a_row(created=None), "created"),
    (a_row(created="yesterday"), "created"),
    (a_row(created="2026-01-01T00:00:00"), "created"),
    (a_row(created="2026-13-01T00:00:00Z"), "created"),
    (a_row(expires="2026-01-01T00:00:00+02:00"), "expires"),
    (a_row(disabled="no"), "disabled"),
    (a_row(tier="gold"), "tier"),
    (a_row(requests_per_minute=1.5), "requests_per_minute"),
    (a_row(tokens_per_hour=-1), "tokens_per_hour"),
    (a_row(budget_usd=-0.1), "budget_usd"),
    (a_row(models="*"), "models"),
    (a_row(models=[1]), "models"),
]


@pytest.mark.parametrize(("line", "what"), BROKEN)
def test_a_broken_key_line_is_skipped_and_reported_by_number(
    path: Path, caplog: pytest.LogCaptureFixture, line: object, what: str
) -> None:
    good, later = a_row(name="good"), a_row(name="later")
    write(path, good, line, "", later)
    store = KeyStore(path)
    assert [key.name for key in store.all()] == ["good", "later"]
    (problem,) = store.problems()
    assert problem.startswith("keys.jsonl: skipped line 2: ")
    assert what in problem
    assert len(problem) < 100
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("WARNING", problem)
    ]
    assert caplog.records[0].name == "sluice.auth"


def test_a_key_line_that_is_not_utf8_is_skipped(path: Path) -> None:
    path.write_bytes(b'{"name":"\xff"}\n' + json.dumps(a_row()).encode())
    store = KeyStore(path)
    assert store.problems() == ["keys.jsonl: skipped line 1: not JSON"]
    assert len(store.all()) == 1


def test_the_first_of_two_key_lines_with_equal_id_or_hash_counts(path: Path) -> None:
    first = a_row(name="first")
    write(path, first, a_row(id=first["id"]), a_row(hash=first["hash"]))
    store = KeyStore(path)
    assert [key.name for key in store.all()] == ["first"]
    reason = "an earlier line has the same id or hash"
    assert store.problems() == [
        f"keys.jsonl: skipped line 2: {reason}",
        f"keys.jsonl: skipped line 3: {reason}",
    ]


def test_a_key_change_keeps_other_lines_and_unknown_fields(store: KeyStore, path: Path) -> None:
    mine = a_row(name="mine", later={"a": [1, 12345678901234567890123]}, budget_usd=2)
    other = '  {"odd" :  "spacing"}\t'
    write(path, other, mine, "", "{broken", "é")
    lines = path.read_text().splitlines()
    store.update("mine", disabled=True)
    lines[1] = key_file.write_line(mine | {"disabled": True}).decode()
    assert path.read_text().splitlines() == lines
    store.create("new")
    assert path.read_text().splitlines()[:-1] == lines
    store.delete("mine")
    del lines[1]
    assert path.read_text().splitlines()[:-1] == lines


def test_a_key_file_with_a_bom_and_crlf_is_read_and_updated(path: Path, store: KeyStore) -> None:
    text = "\ufeff" + json.dumps(a_row(name="a")) + "\r\n" + json.dumps(a_row(name="b"))
    path.write_text(text, newline="")
    assert [key.name for key in store.all()] == ["a", "b"]
    store.create("c")
    store.update("a", disabled=True)
    assert [key.name for key in store.all()] == ["a", "b", "c"]
    assert store.problems() == []


def test_the_key_file_is_read_again_after_each_change(
    store: KeyStore, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert store.all() == []
    other = KeyStore(path)
    key, secret = other.create("a")
    assert store.find(secret) == key
    other.update("a", disabled=True)
    assert store.find(secret) is None
    path.write_text(path.read_text() + "{half a li")
    assert store.get("a").disabled
    assert len(store.problems()) == 1
    assert caplog.messages == store.problems()
    path.unlink()
    other.create("b")
    assert [found.name for found in store.all()] == ["b"]


def test_the_key_file_is_checked_at_most_four_times_a_second(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [1000.0]
    monkeypatch.setattr(store_module, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    other = KeyStore(path)
    key, secret = other.create("a")
    store = KeyStore(path)
    other.update("a", disabled=True)
    clock[0] += 0.24
    assert store.find(secret) == key
    clock[0] += 0.02
    assert store.find(secret) is None


def test_an_unchanged_key_file_is_not_read_again(
    store: KeyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, secret = store.create("a")
    monkeypatch.setattr(store_module, "read_bytes", lambda _path: pytest.fail("read"))
    assert store.find(secret) == key


def test_find_uses_the_old_keys_while_the_key_file_is_being_checked(store: KeyStore) -> None:
    key, secret = store.create("a")
    with store._lock:
        assert store.find(secret) == key


def test_readers_never_miss_a_key_while_the_file_changes(store: KeyStore, path: Path) -> None:
    key, secret = store.create("stays")
    missed: list[str] = []
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            if store.find(secret) != key:
                missed.append("missed")

    readers = [threading.Thread(target=read) for _ in range(4)]
    for reader in readers:
        reader.start()
    writer = KeyStore(path)
    for number in range(10):
        writer.create(f"k{number}")
        writer.delete(f"k{number}")
    done.set()
    for reader in readers:
        reader.join()
    assert missed == []


def test_keys_stay_valid_while_the_key_file_cannot_be_read(
    store: KeyStore,
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    _, secret = store.create("a")
    KeyStore(path).create("b")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", failing(errno.EACCES))
        assert store.find(secret) is not None
        assert store.find(secret) is not None
        assert store.problems() == ["keys.jsonl can't be read: Permission denied"]
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert len(store.all()) == 2
    assert store.problems() == []


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo])
def test_a_key_path_that_is_not_a_regular_file_is_not_read_or_replaced(
    path: Path, make: Callable[[Path], None]
) -> None:
    make(path)
    store = KeyStore(path)
    assert store.all() == []
    assert store.problems() == ["keys.jsonl can't be read: not a regular file"]
    with pytest.raises(KeyFileError, match="not a regular file"):
        store.create("a")
    assert list(path.parent.iterdir()) == [path]


def test_a_key_file_others_can_read_is_warned_about_once_then_set_to_0600(
    path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "LOOK_EVERY_S", 0)
    write(path, a_row())
    path.chmod(0o644)
    store = KeyStore(path)
    write(path, a_row(), a_row(name="b"))
    path.chmod(0o640)
    assert len(store.all()) == 2
    assert caplog.messages == ["other users can read or write keys.jsonl: run chmod 600 on it"]
    store.delete("b")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


# Writing


def failing(code: int) -> Callable[..., Any]:
    def fail(*_: object, **__: object) -> Any:
        raise OSError(code, os.strerror(code))

    return fail


@pytest.mark.parametrize(
    ("call", "code"),
    [
        ("os.write", errno.ENOSPC),
        ("os.fsync", errno.ENOSPC),
        ("os.open", errno.EROFS),
        ("tempfile.mkstemp", errno.EACCES),
        ("pathlib.Path.replace", errno.EIO),
    ],
)
def test_a_failed_write_leaves_the_old_file_and_no_other(
    store: KeyStore, path: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int
) -> None:
    key, secret = store.create("a")
    store.create("stays")
    before = path.read_bytes()
    for change in (lambda: store.create("b"), lambda: store.delete("a")):
        with monkeypatch.context() as patch:
            patch.setattr(call, failing(code))
            with pytest.raises(KeyFileError) as caught:
                change()
        assert os.strerror(code) in str(caught.value)
        assert "\n" not in str(caught.value)
    assert path.read_bytes() == before
    assert {file.name for file in path.parent.iterdir()} == {"keys.jsonl", "keys.jsonl.lock"}
    assert store.find(secret) == key


def test_short_writes_are_continued(store: KeyStore, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = os.write
    monkeypatch.setattr(os, "write", lambda handle, data: whole(handle, data[:7]))
    key, secret = store.create("a")
    assert store.find(secret) == key


def test_a_folder_that_cannot_be_synced_does_not_undo_the_change(
    store: KeyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = os.fsync

    def fsync(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, "no")
        whole(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    _, secret = store.create("a")
    assert store.find(secret) is not None


def test_create_in_a_missing_folder_raises_a_key_file_error(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match="No such file or directory"):
        KeyStore(tmp_path / "none" / "keys.jsonl").create("a")


def test_a_symlinked_key_file_stays_a_symlink(store: KeyStore, path: Path, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    target = tmp_path / "real" / "k"
    path.symlink_to(target)
    key, secret = store.create("a")
    assert path.is_symlink()
    assert [row["id"] for row in rows_of(target)] == [key.id]
    assert store.find(secret) == key
    assert (tmp_path / "real" / "k.lock").exists()


def test_a_write_keeps_the_owner_of_the_key_file(
    store: KeyStore, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If root changes a service's key file, the service must still be able to read it."""
    store.create("a")
    owners: list[tuple[int, int]] = []
    mine = os.fstat

    def fstat(handle: int) -> Any:
        found = list(mine(handle))
        found[stat.ST_UID] += 1
        return os.stat_result(found)

    monkeypatch.setattr(os, "fstat", fstat)
    monkeypatch.setattr(os, "fchown", lambda _handle, uid, gid: owners.append((uid, gid)))
    store.create("b")
    assert owners == [(path.stat().st_uid, path.stat().st_gid)]
    monkeypatch.setattr(os, "fchown", failing(errno.EPERM))
    with pytest.raises(KeyFileError, match="Operation not permitted"):
        store.create("c")
    assert len(rows_of(path)) == 2


WRITERS = """
import multiprocessing
import sys
from pathlib import Path
from keys.store import KeyStore

def write(writer):
    store = KeyStore(Path(sys.argv[1]))
    return [store.create(f"{writer}-{number}")[1] for number in range(5)]

with multiprocessing.get_context("fork").Pool(8) as pool:
    print(*sum(pool.map(write, range(8), chunksize=1), []))
"""


def test_concurrent_writer_processes_lose_no_key(store: KeyStore, path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WRITERS, path],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    found = done.stdout.split()
    assert len({key.id for key in map(store.find, found) if key}) == 40
    assert len(rows_of(path)) == 40
    assert store.problems() == []


def test_another_process_sees_at_once_that_a_key_is_created_or_enabled(
    store: KeyStore, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "LOOK_EVERY_S", 3600)
    other = KeyStore(path)
    key, secret = store.create("a")
    assert other.find(secret) == key
    off, off_secret = store.create("off", disabled=True)
    assert other.find(off_secret) is None
    assert other.get(off.id).disabled
    store.update(off.id, disabled=False)
    assert other.find(off_secret) is not None
    new, new_secret = store.rotate("a", timedelta(hours=1))
    assert other.find(new_secret) == new


def test_what_is_shown_of_the_keys_is_never_old(
    store: KeyStore, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "LOOK_EVERY_S", 3600)
    other = KeyStore(path)
    store.create("a")
    changed = store.update("a", tokens_per_hour=5)
    assert other.get("a") == changed
    assert other.all() == store.all()
    store.delete("a")
    assert other.all() == []


# SLUICE_KEYS


def test_keys_of_sluice_keys_are_found_and_cannot_be_changed(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "LOOK_EVERY_S", 0)
    maker = KeyStore(tmp_path / "elsewhere")
    fixed, secret = maker.create("fixed")
    store = KeyStore(path, "\n" + maker.line("fixed") + "\n\nnonsense\n")
    own, own_secret = store.create("own")
    assert store.find(secret) == fixed
    assert store.find(own_secret) == own
    assert store.all() == [own, fixed]
    assert store.fixed_ids() == {fixed.id} != {own.id}
    assert store.problems() == ["SLUICE_KEYS: skipped line 4: not JSON"]
    for change in (store.delete, lambda name: store.update(name, disabled=True)):
        with pytest.raises(KeyFileError, match="SLUICE_KEYS"):
            change("fixed")
    with pytest.raises(KeyFileError, match="exists"):
        store.create("fixed")
    store.delete("own")
    assert store.all() == [fixed]
    path.unlink()
    assert store.all() == [fixed]


def test_the_key_file_overrides_an_equal_key_of_sluice_keys(store: KeyStore, path: Path) -> None:
    key, secret = store.create("a")
    both = KeyStore(path, store.line("a"))
    assert both.update("a", disabled=True).disabled
    assert both.find(secret) is None
    assert key.id not in both.fixed_ids()
    assert len(both.all()) == len(both.problems()) == 1


def test_a_key_made_in_code_has_the_defaults() -> None:
    key = Key(id="key_x", name="x", hash="", created=datetime.now(UTC))
    assert (key.tier, key.models, key.status) == ("unlimited", ("*",), "active")
    assert key_module.TIERS == ("free", "standard", "enterprise", "unlimited")


def test_the_documented_table_of_tiers_matches_the_code() -> None:
    table = (ROOT / "docs/guides/keys.md").read_text()
    for tier, (requests, tokens) in key_module.LIMITS.items():
        shown = ("any" if limit is None else f"{limit:,}" for limit in (requests, tokens))
        assert f"| `{tier}` | {' | '.join(shown)} |\n" in table
    assert tuple(key_module.LIMITS) == key_module.TIERS
