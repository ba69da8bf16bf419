"""The rotation of a key's secret: the store, the key file, and processes that read it."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime, timedelta
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import pytest

import keys.key as key_module
import keys.store as store_module
from keys.key import fingerprint, rotated
from keys.key_errors import KeyFileError
from keys.store import KeyStore

HOUR = timedelta(hours=1)


class Clock(datetime):
    """A datetime whose `now` a test sets."""

    moved = timedelta()

    @classmethod
    def now(cls, tz: Any = None) -> datetime:  # type: ignore[override]
        return datetime.now(tz) + cls.moved


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(store_module, "LOOK_EVERY_S", 0)
    return tmp_path / "keys.jsonl"


@pytest.fixture
def store(path: Path) -> KeyStore:
    return KeyStore(path)


def advance(monkeypatch: pytest.MonkeyPatch, by: timedelta) -> None:
    monkeypatch.setattr(Clock, "moved", by)
    monkeypatch.setattr(key_module, "datetime", Clock)


def test_both_secrets_are_valid_until_the_end_of_the_overlap_then_only_the_new_one(
    store: KeyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, old = store.create("a")
    key, new = store.rotate("a", HOUR)
    assert old != new
    assert store.find(old) == store.find(new) == key
    advance(monkeypatch, HOUR - timedelta(seconds=5))
    assert store.find(old) == key
    advance(monkeypatch, HOUR + timedelta(seconds=1))
    assert (store.find(old), store.find(new)) == (None, key)


def test_without_an_overlap_the_old_secret_ends_at_once(store: KeyStore, path: Path) -> None:
    _, old = store.create("a")
    key, new = store.rotate("a", timedelta())
    assert (store.find(old), store.find(new)) == (None, key)
    assert fingerprint(old) not in path.read_text()
    assert "previous" not in path.read_text()


def test_a_rotation_keeps_everything_else_and_other_lines(store: KeyStore, path: Path) -> None:
    before, _ = store.create("a", tier="free", budget_usd=5.0, models=("openai/*",))
    store.create("b")
    row = json.loads(path.read_text().splitlines()[0]) | {"note": "mine"}
    other = path.read_text().splitlines()[1]
    path.write_text(json.dumps(row) + "\n" + other + "\n")
    after, new = store.rotate("a", HOUR)
    assert after.id == before.id
    written = json.loads(path.read_text().splitlines()[0])
    assert written["hash"] == fingerprint(new)
    assert written["previous_hash"] == before.hash
    changed = {"hash", "previous_hash", "previous_until"}
    assert {n: v for n, v in written.items() if n not in changed} == {
        n: v for n, v in row.items() if n != "hash"
    }
    assert path.read_text().splitlines()[1] == other


def test_a_second_rotation_ends_the_oldest_secret(store: KeyStore) -> None:
    _, first = store.create("a")
    _, second = store.rotate("a", HOUR)
    key, third = store.rotate("a", HOUR)
    assert [store.find(secret) for secret in (first, second, third)] == [None, key, key]


@pytest.mark.parametrize("terms", [{"disabled": True}, {"expires": timedelta(seconds=2)}])
def test_the_old_secret_is_valid_only_as_long_as_its_key(
    store: KeyStore, monkeypatch: pytest.MonkeyPatch, terms: Any
) -> None:
    _, old = store.create("a")
    store.rotate("a", HOUR)
    store.update("a", **terms)
    advance(monkeypatch, timedelta(seconds=10))
    assert store.find(old) is None


def test_another_process_notices_a_rotation_and_logs_it(
    store: KeyStore, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    key, old = store.create("a")
    server = KeyStore(path)
    with caplog.at_level(logging.INFO, logger="sluice.auth"):
        store.rotate("a", HOUR)
        caplog.clear()
        assert server.find(old) is not None
        [line] = caplog.messages
        assert line.startswith(f"key {key.id} has a new secret; the previous one is valid until 2")
        store.rotate("a", timedelta())
        caplog.clear()
        assert server.find(old) is None
        [line] = caplog.messages
        assert line == f"key {key.id} has a new secret; the previous one is no longer valid"
        caplog.clear()
        store.create("b")
        store.update("a", tier="free")
        server.all()
        assert caplog.messages == []


@pytest.mark.parametrize("overlap", [timedelta(seconds=-1), timedelta(days=91)])
def test_an_overlap_out_of_range_is_refused(store: KeyStore, overlap: timedelta) -> None:
    _, old = store.create("a")
    with pytest.raises(KeyFileError, match="from 0 to 90 days"):
        store.rotate("a", overlap)
    assert store.find(old) is not None


def test_a_key_of_sluice_keys_is_not_rotated(store: KeyStore, tmp_path: Path) -> None:
    store.create("a")
    other = KeyStore(tmp_path / "none.jsonl", store.line("a"))
    with pytest.raises(KeyFileError, match="comes from SLUICE_KEYS"):
        other.rotate("a", HOUR)


def test_a_rotated_line_works_in_sluice_keys(store: KeyStore, tmp_path: Path) -> None:
    _, old = store.create("a")
    key, new = store.rotate("a", HOUR)
    other = KeyStore(tmp_path / "none.jsonl", store.line("a"))
    assert other.find(old) == other.find(new) == key


@pytest.mark.parametrize(
    ("broken", "problem"),
    [
        ({"previous_until": ...}, "'previous_until' is missing"),
        ({"previous_hash": ...}, "'previous_hash' is missing"),
        ({"previous_until": "soon"}, "'previous_until' is invalid"),
        ({"previous_until": "2030-01-01T00:00:00"}, "'previous_until' is invalid"),
        ({"previous_hash": "sha256:x"}, "'previous_hash' is invalid"),
        ({"previous_until": ..., "previous_untill": "2030-01-01T00:00:00Z"}, "is misspelt"),
    ],
)
def test_a_damaged_rotation_makes_its_line_invalid(
    store: KeyStore, path: Path, broken: dict[str, Any], problem: str
) -> None:
    _, old = store.create("a")
    _, new = store.rotate("a", HOUR)
    row = json.loads(path.read_text()) | broken
    path.write_text(json.dumps({n: v for n, v in row.items() if v is not ...}) + "\n")
    [found] = store.problems()
    assert problem in found
    assert store.find(old) is store.find(new) is None


def test_the_current_secret_of_a_key_wins_over_the_previous_one_of_another(
    store: KeyStore, path: Path
) -> None:
    _, old = store.create("a")
    store.rotate("a", HOUR)
    copy = json.loads(path.read_text()) | {"id": "key_other", "hash": fingerprint(old)}
    del copy["previous_hash"], copy["previous_until"]
    path.write_text(path.read_text() + json.dumps(copy) + "\n")
    found = store.find(old)
    assert found is not None
    assert found.id == "key_other"


FIRST_RELEASE = (
    *("id", "name", "hash", "created", "expires", "disabled", "tier"),
    *("requests_per_minute", "tokens_per_hour", "budget_usd", "models"),
)
"""The fields that the first release requires. It ignores others, unless they resemble its own."""


def test_an_older_release_reads_a_rotated_line_and_takes_only_the_new_secret() -> None:
    row = dict.fromkeys(FIRST_RELEASE, "x") | {"hash": "sha256:old"}
    new, secret = rotated(row, HOUR, datetime.now(UTC))
    assert new.keys() - row.keys() == set(key_module.PREVIOUS)
    assert new["hash"] == fingerprint(secret)
    known = {*FIRST_RELEASE, "budget_period", "max_streams", "resumable"}
    for name in key_module.PREVIOUS:
        assert not get_close_matches(name, known, 1, key_module.NEARLY)
