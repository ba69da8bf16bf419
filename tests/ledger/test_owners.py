"""Tests of ledger/owners.py: telling dead processes from living ones."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Connection, create_engine, select

from ledger import owners, schema
from ledger.owners import DEAD_AFTER_S, Heartbeat, LockFile


@pytest.fixture
def connection() -> Iterator[Connection]:
    engine = create_engine("sqlite://")
    with engine.begin() as found:
        schema.create(found)
        yield found
    engine.dispose()


# Lock files


def a_file(tmp_path: Path, name: str) -> LockFile:
    return LockFile(tmp_path / "sluice.db", name)


def names(tmp_path: Path) -> set[str]:
    return {path.name for path in (tmp_path / "sluice.db.owners").iterdir()}


def test_an_owner_is_alive_while_its_lock_file_is_held(
    tmp_path: Path, connection: Connection
) -> None:
    one, other = a_file(tmp_path, "one"), a_file(tmp_path, "other")
    assert one.is_dead(connection, "other"), "the other process has not begun yet"
    for presence in (one, other):
        presence.begin(connection)
        presence.begin(connection)
        presence.beat(connection)
    assert not one.is_dead(connection, "other")
    assert not other.is_dead(connection, "one")
    assert (tmp_path / "sluice.db.owners").stat().st_mode & 0o777 == 0o700
    other.leave(connection)
    other.leave(connection)
    assert one.is_dead(connection, "other")
    assert names(tmp_path) == {"one"}
    one.leave(connection)
    assert names(tmp_path) == set()


def test_files_of_dead_owners_are_swept_and_those_of_live_owners_stay(
    tmp_path: Path, connection: Connection
) -> None:
    living, dead, new = (a_file(tmp_path, name) for name in ("living", "dead", "new"))
    living.begin(connection)
    dead.begin(connection)
    assert dead._held is not None
    os.close(dead._held)  # the system does this when a process dies
    assert living.is_dead(connection, "dead")
    new.begin(connection)
    assert names(tmp_path) == {"living", "new"}
    assert new.is_dead(connection, "dead")
    for presence in (living, new):
        presence.leave(connection)


def open_files() -> int:
    return sum(1 for _ in Path("/dev/fd").iterdir())


def test_a_begin_that_failed_can_be_repeated_and_leaks_no_file(
    tmp_path: Path, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the process would live on without a lock file, and be considered dead."""
    one, other = a_file(tmp_path, "one"), a_file(tmp_path, "other")
    opened = open_files()

    def full(*_: object) -> None:
        raise OSError("No space left on device")

    with monkeypatch.context() as disk:
        disk.setattr(Path, "rename", full)
        with pytest.raises(OSError, match="No space"):
            one.begin(connection)
    assert other.is_dead(connection, "one")
    assert open_files() == opened
    one.begin(connection)
    assert not other.is_dead(connection, "one")
    one.leave(connection)


# Heartbeats


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(owners, "time", found)
    return found


def beats(connection: Connection) -> dict[str, int]:
    return {row.id: row.beats for row in connection.execute(select(schema.owners))}


def test_an_owner_without_heartbeats_for_long_enough_is_dead(
    connection: Connection, clock: Clock
) -> None:
    one, other = Heartbeat("one"), Heartbeat("other")
    one.begin(connection)
    other.begin(connection)
    for _ in range(5):
        assert not one.is_dead(connection, "other")
        clock.now += DEAD_AFTER_S - 1
        other.beat(connection)
    assert not one.is_dead(connection, "other")
    clock.now += DEAD_AFTER_S - 1
    assert not one.is_dead(connection, "other")
    clock.now += 1
    assert one.is_dead(connection, "other")
    assert set(beats(connection)) == {"one"}
    assert one.is_dead(connection, "other"), "it stays dead"


def test_a_dead_owner_whose_heartbeat_resumes_is_alive_again(
    connection: Connection, clock: Clock
) -> None:
    """Otherwise its later calls would be closed again and again while it serves them."""
    one, other = Heartbeat("one"), Heartbeat("other")
    one.begin(connection)
    other.begin(connection)
    one.is_dead(connection, "other")
    clock.now += DEAD_AFTER_S
    assert one.is_dead(connection, "other")
    other.beat(connection)
    assert not one.is_dead(connection, "other")


def test_an_owner_that_keeps_reconnecting_is_not_considered_dead(
    connection: Connection, clock: Clock
) -> None:
    one, other = Heartbeat("one"), Heartbeat("other")
    one.begin(connection)
    for _ in range(10):
        other.begin(connection)
        assert not one.is_dead(connection, "other")
        clock.now += DEAD_AFTER_S / 2


def test_a_returning_owner_declares_no_other_owner_dead_at_once(
    connection: Connection, clock: Clock
) -> None:
    one, other = Heartbeat("one"), Heartbeat("other")
    other.begin(connection)
    one.begin(connection)
    assert not one.is_dead(connection, "other")
    clock.now += 10 * DEAD_AFTER_S
    one.begin(connection)
    assert not one.is_dead(connection, "other")


def test_an_owner_that_ended_is_dead_and_has_no_row(connection: Connection, clock: Clock) -> None:
    one, other = Heartbeat("one"), Heartbeat("other")
    for presence in (one, other):
        presence.begin(connection)
    other.leave(connection)
    assert one.is_dead(connection, "other")
    assert set(beats(connection)) == {"one"}
