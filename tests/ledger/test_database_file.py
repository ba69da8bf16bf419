"""Tests of ledger/database_file.py: a SQLite file that is moved, replaced or truncated while open.

Each test uses a ledger, because the promise is about its rows: the file at the path has each row
that was acknowledged, once the right file is there.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import func, select

from config import ConfigError
from errors import Unavailable
from ledger import database_file, upkeep
from ledger import ledger as ledger_module
from ledger.database_file import DatabaseFile, OpenFiles
from ledger.entries import Entry
from ledger.ledger import Ledger
from ledger.owners import LockFile
from ledger.schema import now_us, requests
from tests.support.file_changes import (
    CHANGES,
    Change,
    delete,
    delete_all_three,
    delete_folder,
    kept,
    rename,
    rename_back,
    rename_folder,
    rename_folder_back,
    replace_wal,
    replace_with_backup,
    side,
    truncate_while_the_wal_has_all,
    unlink_both,
    unlink_shm,
    unlink_wal,
)
from tests.support.ledgers import a_ledger, a_settlement, an_entry, at_once
from tests.support.pace import HANG_S
from tests.support.paths import ROOT
from tests.support.sampling import sampled

QUICK_S = 0.05
STAYS_S = 0.5
"""Seconds in which the ledger checks its file several times."""

COUNT = select(func.count()).select_from(requests)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_module, "RETRY_S", QUICK_S)
    monkeypatch.setattr(ledger_module, "LOOK_S", QUICK_S)
    monkeypatch.setattr(database_file, "LOOK_S", QUICK_S)
    monkeypatch.setattr(database_file, "APART_S", 4 * QUICK_S)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    return tmp_path / "data" / "sluice.db"


@pytest.fixture
def ledger(path: Path) -> Iterator[Ledger]:
    with a_ledger(f"sqlite:///{path}") as found:
        found.start()
        yield found


def eventually(condition: Callable[[], bool]) -> bool:
    until = time.monotonic() + HANG_S
    while not condition() and time.monotonic() < until:
        time.sleep(0.005)
    return condition()


def rows_in(path: Path) -> dict[str, int | None]:
    """Return the cost of each settled row, and None for each open row, by id.

    The file is opened as any other program would open it.
    """
    with closing(sqlite3.connect(f"{path.as_uri()}?mode=rw", uri=True, timeout=HANG_S)) as file:
        assert file.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        found = file.execute("SELECT id, ended_us, cost_nano FROM requests").fetchall()
        return {id_: None if ended is None else cost for id_, ended, cost in found}


def problems(path: Path) -> list[str]:
    with a_ledger(f"sqlite:///{path}") as ledger:
        return ledger.read(lambda connection: upkeep.verify(connection, now_us())).problems


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "sluice.ledger"]


def refused(ledger: Ledger) -> bool:
    found = at_once(
        lambda: ledger.open(an_entry()),
        lambda: ledger.read(lambda connection: connection.execute(COUNT).scalar()),
        lambda: ledger.write(lambda _: None),
    )
    return [type(failure) for failure in found] == [Unavailable] * 3


# The path leads to no file, or to another file


changed = pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.do.__name__)


@changed
def test_a_moved_file_is_noticed_without_a_call_and_no_row_is_lost_or_doubled(
    ledger: Ledger, path: Path, change: Change, caplog: pytest.LogCaptureFixture
) -> None:
    before, active = an_entry(), an_entry()
    for entry in (before, active):
        ledger.open(entry)
    ledger.settle(a_settlement(before))
    assert ledger.read(lambda connection: connection.execute(COUNT).scalar()) == 2
    change.do(path)
    assert eventually(lambda: not ledger.available)
    assert refused(ledger)
    began = time.monotonic()
    ledger.settle(a_settlement(active))
    assert time.monotonic() - began < 2
    time.sleep(STAYS_S)
    assert not ledger.available
    assert ledger.queue == 1
    change.undo(path)
    assert eventually(lambda: ledger.available and ledger.queue == 0)
    after = an_entry()
    ledger.open(after)
    assert rows_in(path) == {before.id: 110, active.id: 110, after.id: None}
    ledger.settle(a_settlement(after))
    ledger.close()
    assert problems(path) == []
    logged = [line for line in lines(caplog) if "query" not in line]
    assert [line.split(":")[0] for line in logged] == [
        "the ledger's database is unavailable",
        "the ledger's database is available again",
    ]
    assert str(path) in logged[0]


@changed
def test_nothing_is_created_or_written_at_the_path_of_a_moved_file(
    ledger: Ledger, path: Path, change: Change
) -> None:
    ledger.open(an_entry())
    change.do(path)
    before = (path.is_dir(), path.is_file() and path.read_bytes())
    assert eventually(lambda: not ledger.available)
    assert refused(ledger)
    time.sleep(STAYS_S)
    assert (path.is_dir(), path.is_file() and path.read_bytes()) == before
    ledger.close()
    assert (path.is_dir(), path.is_file() and path.read_bytes()) == before


@changed
def test_a_call_right_after_the_change_is_refused(
    ledger: Ledger, path: Path, change: Change, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each transaction checks the file, so the ledger doesn't wait for the next regular check."""
    monkeypatch.setattr(ledger_module, "LOOK_S", 60.0)
    time.sleep(2 * QUICK_S)
    entry = an_entry()
    ledger.open(entry)
    change.do(path)
    (failure,) = at_once(lambda: ledger.open(an_entry()))
    assert isinstance(failure, Unavailable)
    change.undo(path)
    assert eventually(lambda: ledger.available and ledger.queue == 0)
    assert rows_in(path) == {entry.id: None}


def test_the_renamed_file_is_whole_without_its_wal_file(ledger: Ledger, path: Path) -> None:
    entry = an_entry()
    ledger.open(entry)
    assert side(path, "-wal").stat().st_size > 0
    rename(path)
    assert eventually(lambda: not ledger.available)
    assert rows_in(kept(path)) == {entry.id: None}
    assert side(path, "-wal").stat().st_size == 0, "it would be applied to another database here"


def test_a_restored_backup_is_intact_and_used_after_a_restart(ledger: Ledger, path: Path) -> None:
    old, lost = an_entry(), an_entry()
    ledger.open(old)
    ledger.settle(a_settlement(old))
    copy = path.with_name("copy.db")
    upkeep.backup(path, copy)
    ledger.open(lost)
    copy.rename(path)
    assert eventually(lambda: not ledger.available)
    ledger.settle(a_settlement(lost))
    ledger.close()
    with a_ledger(f"sqlite:///{path}") as again:
        again.start()
        new = an_entry()
        again.open(new)
        again.settle(a_settlement(new))
        assert rows_in(path) == {old.id: 110, new.id: 110}
    assert problems(path) == []


@pytest.mark.parametrize("deed", [delete, delete_all_three, delete_folder])
def test_a_deleted_file_is_unavailable_until_the_restart(
    ledger: Ledger, path: Path, deed: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    entry = an_entry()
    ledger.open(entry)
    deed(path)
    assert eventually(lambda: not ledger.available)
    assert refused(ledger)
    ledger.settle(a_settlement(entry))
    time.sleep(STAYS_S)
    assert not path.exists()
    assert not ledger.available
    ledger.close()
    assert not path.exists()
    assert "1 steps were not written" in caplog.text
    path.parent.mkdir(exist_ok=True)
    with a_ledger(f"sqlite:///{path}") as again:
        again.start()
        assert again.open(an_entry())
    assert len(rows_in(path)) == 1


def test_a_new_file_with_the_inode_of_the_deleted_file_is_another_file(
    ledger: Ledger, path: Path
) -> None:
    """File systems reuse the inode of a deleted file, unless a process still has it open."""
    inode = path.stat().st_ino
    delete_all_three(path)
    assert eventually(lambda: not ledger.available)
    for number in range(50):
        path.with_name(str(number)).touch()
        assert path.with_name(str(number)).stat().st_ino != inode


def test_an_optional_ledger_serves_calls_while_its_file_is_gone(path: Path) -> None:
    unrecorded: list[None] = []
    url = f"sqlite:///{path}"
    with a_ledger(url, required=False, unrecorded=lambda: unrecorded.append(None)) as ledger:
        ledger.start()
        first, last = an_entry(), an_entry()
        assert ledger.open(first)
        rename(path)
        assert [ledger.open(an_entry()) for _ in range(3)] == [False] * 3
        assert ledger.available
        assert len(unrecorded) == 3
        ledger.settle(a_settlement(first))
        assert not path.exists()
        rename_back(path)
        assert eventually(lambda: ledger.open(last))
    assert {first.id: 110, last.id: None}.items() <= rows_in(path).items()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may use any file")
def test_a_file_without_permissions_is_noticed(ledger: Ledger, path: Path) -> None:
    path.chmod(0)
    assert eventually(lambda: not ledger.available)
    path.chmod(0o600)
    assert eventually(lambda: ledger.available)


def test_a_file_that_may_not_be_written_is_noticed(
    ledger: Ledger, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = an_entry()
    ledger.open(entry)
    with monkeypatch.context() as denied:
        denied.setattr(database_file.os, "access", lambda *_: False)  # type: ignore[attr-defined]
        assert eventually(lambda: not ledger.available)
        assert refused(ledger)
        ledger.settle(a_settlement(entry))
    assert eventually(lambda: ledger.available and ledger.queue == 0)
    assert rows_in(path) == {entry.id: 110}


# The path leads to the right file, but it or its journals were changed


@pytest.mark.parametrize(
    "deed",
    [unlink_wal, unlink_shm, unlink_both, replace_wal, truncate_while_the_wal_has_all],
    ids=lambda deed: deed.__name__,
)
def test_a_changed_file_is_repaired_without_loss(
    ledger: Ledger,
    path: Path,
    deed: Callable[[Path], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    entries = [an_entry() for _ in range(20)]
    for entry in entries:
        ledger.open(entry)
    deed(path)
    for entry in entries[:10]:
        ledger.settle(a_settlement(entry))
    assert eventually(lambda: not ledger.available)
    for entry in entries[10:]:
        ledger.settle(a_settlement(entry))
    assert eventually(lambda: ledger.available and ledger.queue == 0)
    assert rows_in(path) == {entry.id: 110 for entry in entries}
    assert ledger.open(an_entry())
    assert [line.split(":")[0] for line in lines(caplog)] == [
        "the ledger's database is unavailable",
        "the ledger's database is available again",
    ]
    ledger.close()
    assert problems(path) == []


def checkpoint(path: Path) -> None:
    with closing(sqlite3.connect(path)) as other:
        assert other.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0] == 0


def truncate_to_nothing(path: Path) -> None:
    checkpoint(path)
    os.truncate(path, 0)


def truncate_to_half(path: Path) -> None:
    checkpoint(path)
    os.truncate(path, path.stat().st_size // 2 // 4096 * 4096)


def truncate_wal(path: Path) -> None:
    os.truncate(side(path, "-wal"), 0)


def truncate_both(path: Path) -> None:
    os.truncate(path, 0)
    truncate_wal(path)


@pytest.mark.parametrize(
    "deed",
    [truncate_to_nothing, truncate_to_half, truncate_wal, truncate_both],
    ids=lambda deed: deed.__name__,
)
def test_a_damaged_file_is_unavailable_and_not_written_to(
    ledger: Ledger, path: Path, deed: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(50):
        entry = an_entry()
        ledger.open(entry)
    time.sleep(QUICK_S)
    deed(path)
    size = path.stat().st_size
    ledger.settle(a_settlement(entry))
    assert eventually(lambda: not ledger.available)
    assert refused(ledger)
    time.sleep(STAYS_S + 4 * QUICK_S)
    assert not ledger.available
    assert path.stat().st_size == size
    ledger.close()
    assert path.stat().st_size == size
    assert "truncated" in lines(caplog)[0]


ABANDONING = """
import os, sqlite3, sys, time
from pathlib import Path
from ledger import ledger as module
from ledger import database_file
from tests.support.ledgers import an_entry
database_file.LOOK_S = module.LOOK_S = module.RETRY_S = database_file.APART_S = 0.05
path = Path(sys.argv[1])
book = module.Ledger(f"sqlite:///{path}")
for _ in range(40):
    entry = an_entry()
    book.open(entry)
with sqlite3.connect(path) as other:
    assert other.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0] == 0
for _ in range(40):
    book.open(an_entry())
path.write_bytes(Path(sys.argv[2]).read_bytes())
for ending in ("-wal", "-shm"):
    path.with_name(path.name + ending).unlink()
until = time.monotonic() + 20
while book.available and time.monotonic() < until:
    time.sleep(0.01)
assert not book.available
book.close()
"""


def test_a_backup_copied_over_the_open_file_is_not_overwritten_at_the_exit(
    path: Path, tmp_path: Path
) -> None:
    """An operator runs the guide's commands for a restore, but forgets to stop the server."""
    small = tmp_path / "small.db"
    with a_ledger(f"sqlite:///{small}") as ledger:
        ledger.open(an_entry())
    content = small.read_bytes()
    done = subprocess.run(
        [sys.executable, "-c", ABANDONING, str(path), str(small)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=HANG_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert path.read_bytes() == content
    assert "overwritten or truncated" in done.stderr


def test_vacuum_by_another_program_interrupts_nothing(
    ledger: Ledger, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    entries = [an_entry(request_id="x" * 2000) for _ in range(200)]
    for entry in entries:
        ledger.open(entry)
    ledger.write(lambda connection: connection.execute(requests.delete()))
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        size = path.stat().st_size
        other.execute("VACUUM")
        other.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        assert path.stat().st_size < size
    time.sleep(STAYS_S)
    last = an_entry()
    assert ledger.open(last)
    assert rows_in(path) == {last.id: None}
    assert lines(caplog) == []


# Several ledgers


@pytest.mark.parametrize("deed", [unlink_wal, unlink_shm, unlink_both], ids=lambda d: d.__name__)
def test_ledgers_that_share_a_file_lose_no_row_when_its_journals_are_deleted(
    path: Path, deed: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    hold_traffic(path, lambda: deed(path), lambda: None, caplog)


@pytest.mark.parametrize("change", sampled(CHANGES, *CHANGES[::3]), ids=lambda c: c.do.__name__)
def test_ledgers_that_share_a_file_lose_no_row_when_it_is_moved(
    path: Path, change: Change, caplog: pytest.LogCaptureFixture
) -> None:
    hold_traffic(path, lambda: change.do(path), lambda: change.undo(path), caplog)


def hold_traffic(
    path: Path,
    do: Callable[[], object],
    undo: Callable[[], object],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Open and settle rows in three ledgers while the file changes; then check all rows."""
    ledgers = [Ledger(f"sqlite:///{path}") for _ in range(3)]
    for ledger in ledgers:
        ledger.start()
    settled: list[Entry] = []
    over = threading.Event()

    def call(ledger: Ledger) -> None:
        while not over.is_set():
            entry = an_entry()
            try:
                ledger.open(entry)
            except Unavailable:
                time.sleep(0.01)
                continue
            settled.append(entry)
            ledger.settle(a_settlement(entry))

    threads = [threading.Thread(target=call, args=(ledgers[n % 3],)) for n in range(6)]
    for thread in threads:
        thread.start()
    time.sleep(0.2)
    do()
    # A ledger may be available again before the last one notices the change.
    assert eventually(lambda: sum("is unavailable" in line for line in lines(caplog)) >= 3)
    time.sleep(QUICK_S)
    undo()
    assert eventually(lambda: all(ledger.available for ledger in ledgers))
    time.sleep(0.2)
    over.set()
    for thread in threads:
        thread.join(HANG_S)
    assert eventually(lambda: not any(ledger.queue for ledger in ledgers))
    found = rows_in(path)
    for ledger in ledgers:
        ledger.close()
    assert found == {entry.id: 110 for entry in settled}
    assert problems(path) == []


TRAFFIC = """
import sys, time
from pathlib import Path
from errors import Unavailable
from ledger import ledger as module
from tests.support.ledgers import a_settlement, an_entry
book = module.Ledger(f"sqlite:///{sys.argv[1]}")
book.start()
print("started", flush=True)
stop = Path(sys.argv[2])
while not stop.exists():
    entry = an_entry()
    try:
        book.open(entry)
    except Unavailable:
        time.sleep(0.02)
        continue
    print(entry.id, flush=True)
    book.settle(a_settlement(entry))
until = time.monotonic() + 30
while (book.queue or not book.available) and time.monotonic() < until:
    time.sleep(0.02)
book.close()
print(book.queue, flush=True)
"""


@pytest.mark.parametrize(
    ("do", "undo"),
    [
        pytest.param(unlink_wal, None, marks=pytest.mark.thorough),
        pytest.param(unlink_both, None, marks=pytest.mark.thorough),
        pytest.param(rename, rename_back, marks=pytest.mark.thorough),
        pytest.param(rename_folder, rename_folder_back, marks=pytest.mark.thorough),
        (replace_with_backup, rename_back),
    ],
    ids=lambda deed: deed and deed.__name__,
)
def test_processes_that_share_a_file_lose_no_row(
    path: Path, tmp_path: Path, do: Callable[[Path], None], undo: Callable[[Path], None] | None
) -> None:
    """Locks work differently between processes than within one, so these are real processes."""
    stop = tmp_path / "stop"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", TRAFFIC, str(path), str(stop)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    outputs: list[tuple[str, str]] = []
    with ThreadPoolExecutor(3) as readers:
        try:
            found = [readers.submit(process.communicate, None, HANG_S) for process in processes]
            assert eventually(lambda: len(list(side(path, ".owners").glob("[!.]*"))) == 3)
            time.sleep(1)
            do(path)
            time.sleep(2.5)
            if undo is not None:
                undo(path)
            time.sleep(2.5)
        finally:
            stop.touch()
            outputs = [future.result() for future in found]
    acknowledged: set[str] = set()
    for output, log in outputs:
        first, *ids, queue = output.split()
        assert (first, queue) == ("started", "0"), log
        assert log.count("database is unavailable") == log.count("available again"), log
        acknowledged |= set(ids)
    assert rows_in(path) == dict.fromkeys(acknowledged, 110)
    assert problems(path) == []


def test_a_new_process_creates_no_file_while_others_wait_for_it(path: Path) -> None:
    url = f"sqlite:///{path}"
    with a_ledger(url) as ledger:
        ledger.start()
        rename(path)
        assert eventually(lambda: not ledger.available)
        late = Ledger(url)
        (failure,) = at_once(late.start)
        assert isinstance(failure, ConfigError)
        assert "other processes" in str(failure)
        assert not path.exists()
        rename_back(path)
        assert eventually(lambda: ledger.available and late.available)
        late.close()


def test_ledgers_that_start_at_once_create_one_file(path: Path) -> None:
    ledgers = [Ledger(f"sqlite:///{path}") for _ in range(6)]
    assert at_once(*(ledger.start for ledger in ledgers)) == [None] * 6
    for ledger in ledgers:
        ledger.open(an_entry())
        ledger.close()
    assert len(rows_in(path)) == 6


# Who may create the file


def test_reading_does_not_create_a_missing_file(path: Path) -> None:
    with a_ledger(f"sqlite:///{path}") as ledger:
        ledger.never_create()
        for ask in (ledger.read, ledger.write):
            with pytest.raises(Unavailable):
                ask(lambda _: None)
        assert list(path.parent.iterdir()) == []


def test_a_lock_file_that_was_deleted_is_restored(ledger: Ledger, path: Path) -> None:
    """Other processes would close the open rows of a process without a lock file."""
    entry = an_entry()
    ledger.open(entry)
    shutil.rmtree(side(path, ".owners"))
    other = LockFile(path, "other")
    assert other.is_dead(None, ledger._owner)
    assert eventually(lambda: not other.is_dead(None, ledger._owner))
    assert other.in_use()
    ledger.close()
    assert not other.in_use()


# The check itself


def test_a_check_costs_little(path: Path) -> None:
    """A check runs after each transaction, which takes a hundred times longer."""
    file = DatabaseFile(path)
    admitted = file.admit(create=True)
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("CREATE TABLE t (x)")
        files: OpenFiles = file.opened(admitted, connection)
        began = time.thread_time()
        for _ in range(1000):
            files.check()
        assert time.thread_time() - began < 0.1
    file.close()
