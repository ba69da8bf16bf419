"""Tests of a real server whose ledger fails.

No provider gets a request that can't be recorded, active calls end normally, and all rows are on
disk once the ledger is available again.
"""

from __future__ import annotations

import contextlib
import resource
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path

import pytest

from tests.support import calls, proofs
from tests.support import fake as fp
from tests.support.books import assert_sound, by_request, ledger_of, open_rows, query, rows
from tests.support.fake import FakeProvider
from tests.support.file_changes import (
    Change,
    delete,
    delete_all_three,
    rename,
    rename_back,
    rename_folder,
    rename_folder_back,
    replace_with_backup,
    replace_with_empty,
    unlink_both,
    unlink_shm,
    unlink_wal,
)
from tests.support.load import NATIVE, OPENAI, Kind, Sent, play
from tests.support.pace import HANG_S, scaled
from tests.support.paths import ROOT
from tests.support.sampling import sampled
from tests.support.servers import Kind as ServerKind
from tests.support.servers import Server, fake_rows

LOCKED_S = 8.0
SOON_S = scaled(5)
"""A bound for noticing that the file was moved."""
KEPT_S = 2.5
"""Seconds in which the ledger retries its pending writes, without success."""
PAGE = 4096
USAGE = (7, 9)
PLAIN = Kind("plain")
CHAT = "/v1/chat/completions"


class Caller:
    """A caller that makes short calls, and one stream that ends when the gate `end` opens."""

    def __init__(self, server: Server, fake: FakeProvider, place: Path) -> None:
        self.server, self.fake, self.place = server, fake, place
        self.sent: list[Sent] = []
        first, *rest = (fp.event(f) for f in fp.chunks(["a", "b"], chat=True, usage=USAGE))
        fake.default(fp.answer(fp.body("x", usage=USAGE)))
        steps = [*fp.sse([], done=False, complete=False), first, fp.gate("end"), *rest]
        fake.script([*steps, fp.last_chunk()], path=CHAT)

    def ask(self, path: str = NATIVE) -> Sent:
        self.sent.append(sent := Sent(PLAIN, path))
        play(self.server, self.server.key, sent)
        assert not sent.failure
        return sent

    def refused(self) -> bool:
        return self.ask().status == 503

    @property
    def answered(self) -> set[str]:
        return {sent.id for sent in self.sent if sent.status == 200}

    def check_outage(self, failing: AbstractContextManager[None]) -> None:
        """Assert that calls are rejected during the outage, and that the active stream ends.

        After the outage, calls must succeed and all rows must be recorded.
        """
        with self.server.client() as client:
            stream_id = calls.begin_stream(client, model="fakechat/m")
            with failing:
                self.server.wait(self.refused)
                self.check_refusals()
                self.fake.open("end")
                assert calls.kinds(list(client.frames()))[-2:] == ["usage_final", "DONE"]
                time.sleep(KEPT_S)
                assert [row["stream_id"] for row in open_rows(self.place)] == [stream_id]
        self.server.wait(self.server.is_ready)
        assert self.ask().status == 200
        self.server.wait(lambda: not open_rows(self.place))
        assert_sound(self.place)
        found = by_request(rows(self.place))
        [stream] = [row for row in found.values() if row["stream_id"] == stream_id]
        assert (stream["end_reason"], proofs.usage_of(stream)) == ("completed", USAGE)
        assert set(found) == self.answered | {stream["request_id"]}

    def check_refusals(self) -> None:
        """Assert that both faces and /ready answer 503, and that the provider gets no request."""
        received = self.fake.counts.received
        native, openai = self.ask(), self.ask(OPENAI)
        assert (native.status, native.answer["code"]) == (503, "unavailable")
        assert (openai.status, openai.answer["error"]["type"]) == (503, "server_error")
        assert native.headers["retry-after"] == openai.headers["retry-after"] == "1"
        assert calls.get(self.server, "/ready").status == 503
        assert calls.get(self.server, "/health").status == 200
        assert self.fake.counts.received == received == len(self.answered) + 1


@contextmanager
def serve(fake: FakeProvider, directory: Path | None = None, **env: str) -> Iterator[Caller]:
    """Start a server. Yield a caller of it."""
    server = Server(fake_rows(fake.base_url), env=env, directory=directory)
    server.key = server.add_key(tier="unlimited")
    with server:
        yield Caller(server, fake, Path(env.get("SLUICE_DATABASE") or ledger_of(server)))
    assert "Traceback" not in server.output()


@contextmanager
def locked(place: Path) -> Iterator[None]:
    """Lock the database with another connection's transaction, for at least LOCKED_S."""
    until = time.monotonic() + LOCKED_S
    with closing(sqlite3.connect(place, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        yield
        time.sleep(max(0.0, until - time.monotonic()))
        other.execute("ROLLBACK")


@contextmanager
def no_file_may_grow(server: Server) -> Iterator[None]:
    """Limit the size of the worker's files, which has the effect of a full disk.

    The worker can't write a page of the database. It can still write a few lines of log.
    """
    [pid] = server.worker_pids()
    before = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    assert len(server.output()) < PAGE / 2
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (PAGE, before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, before)


@contextmanager
def full(directory: Path) -> Iterator[None]:
    """Fill the disk, so that no byte is free."""
    filler = directory / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(1024))
    assert shutil.disk_usage(directory).free == 0
    try:
        yield
    finally:
        filler.unlink()


def mounted(*arguments: str) -> bool:
    program = shutil.which("mount")
    command = [str(program), *arguments]
    return (
        bool(program) and not subprocess.run(command, capture_output=True, check=False).returncode
    )


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Yield the root of a file system of two megabytes. Skip the test if mounting is forbidden."""
    if not mounted("-t", "tmpfs", "-o", "size=2m", "sluice-test", str(tmp_path)):
        pytest.skip("file systems can't be mounted here")
    try:
        yield tmp_path
    finally:
        subprocess.run(["umount", "-l", str(tmp_path)], check=True)


@pytest.mark.thorough
def test_calls_are_refused_while_another_process_locks_the_database(fake: FakeProvider) -> None:
    with serve(fake) as caller:
        caller.check_outage(locked(caller.place))


def test_calls_are_refused_while_ledger_files_cannot_grow(fake: FakeProvider) -> None:
    with serve(fake, SLUICE_LOG_LEVEL="error") as caller:
        assert caller.ask().status == 200
        caller.check_outage(no_file_may_grow(caller.server))


@pytest.mark.thorough
def test_calls_are_refused_while_the_disk_is_full(fake: FakeProvider, small_disk: Path) -> None:
    with serve(fake, SLUICE_DATABASE=str(small_disk / "sluice.db")) as caller:
        assert caller.ask().status == 200
        caller.check_outage(full(small_disk))


@pytest.mark.thorough
def test_calls_are_served_while_an_optional_ledger_is_locked(fake: FakeProvider) -> None:
    with serve(fake, SLUICE_LEDGER_REQUIRED="0") as caller:
        assert caller.ask().status == 200
        before = caller.answered
        with locked(caller.place):
            for path in (NATIVE, OPENAI, NATIVE):
                assert caller.ask(path).status == 200
            assert caller.server.is_ready()
            unrecorded = proofs.metric(caller.server, "sluice_ledger_unrecorded_total")
        assert unrecorded == 3
        assert proofs.metric(caller.server, "sluice_ledger_errors_total") >= 1
        caller.server.wait(lambda: "database is available again" in caller.server.output())
        assert caller.ask().status == 200
        assert_sound(caller.place)
        before |= {caller.sent[-1].id}
        assert set(by_request(rows(caller.place))) == before


# The SQLite file is moved, replaced or deleted


MOVES = {
    "renamed": Change(rename, rename_back),
    "replaced by a backup": Change(replace_with_backup, rename_back),
    "replaced by an empty file": Change(replace_with_empty, rename_back),
    "its folder is renamed": Change(rename_folder, rename_folder_back),
}
moves = pytest.mark.parametrize("move", sampled(MOVES.values(), MOVES["renamed"]), ids=MOVES)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


def flask(server: Server, *arguments: str) -> str:
    """Run a command of the operator on the server's files. Return its output."""
    done = subprocess.run(
        [sys.executable, "-m", "flask", "--app", "wsgi", *arguments],
        cwd=ROOT,
        env=server._env,
        capture_output=True,
        text=True,
        timeout=HANG_S,
        check=False,
    )
    return done.stdout + done.stderr


def assert_away(caller: Caller) -> None:
    answer = calls.get(caller.server, "/ready")
    assert (answer.status, answer.json["status"]) == (503, "the ledger is away")
    usage = calls.get(caller.server, "/api/v1/user/usage", key=caller.server.key)
    assert usage.status == 503


@moves
def test_a_moved_file_refuses_calls_until_it_is_back_and_loses_no_row(
    fake: FakeProvider, folder: Path, move: Change
) -> None:
    place = folder / "sluice.db"
    with serve(fake, SLUICE_DATABASE=str(place)) as caller:
        assert caller.ask().status == 200
        with caller.server.client() as client:
            stream_id = calls.begin_stream(client, model="fakechat/m")
            move.do(place)
            caller.server.wait(lambda: not caller.server.is_ready(), SOON_S)
            caller.check_refusals()
            assert_away(caller)
            assert not place.exists() or not place.stat().st_size or "requests" in tables(place)
            caller.fake.open("end")
            assert calls.kinds(list(client.frames()))[-2:] == ["usage_final", "DONE"]
        time.sleep(KEPT_S)
        assert not caller.server.is_ready()
        move.undo(place)
        caller.server.wait(caller.server.is_ready)
        assert caller.ask().status == 200
        caller.server.wait(lambda: not open_rows(place))
        assert_sound(place)
        found = by_request(rows(place))
        [stream] = [row for row in found.values() if row["stream_id"] == stream_id]
        assert (stream["end_reason"], proofs.usage_of(stream)) == ("completed", USAGE)
        assert set(found) == caller.answered | {stream["request_id"]}
        assert "is consistent" in flask(caller.server, "usage", "verify")
        assert caller.server.output().count("database is unavailable") == 1
        assert caller.server.output().count("database is available again") == 1


def tables(place: Path) -> set[str]:
    return {row["name"] for row in query(place, "SELECT name FROM sqlite_master")}


LASTING = {
    "deleted": delete,
    "deleted with its journals": delete_all_three,
    "replaced by a backup": replace_with_backup,
    "replaced by an empty file": replace_with_empty,
}


@pytest.mark.thorough
@pytest.mark.parametrize("deed", LASTING.values(), ids=LASTING)
def test_a_restart_uses_the_file_that_is_at_the_path_by_then(
    fake: FakeProvider, folder: Path, deed: Callable[[Path], None]
) -> None:
    place = folder / "sluice.db"
    with serve(fake, SLUICE_DATABASE=str(place), directory=folder.parent) as caller:
        first = caller.ask()
        with caller.server.client() as client:
            calls.begin_stream(client, model="fakechat/m")
            deed(place)
            caller.server.wait(lambda: not caller.server.is_ready(), SOON_S)
            assert_away(caller)
            for command in (["usage", "report"], ["usage", "verify"], ["ledger", "backup", "x.db"]):
                if not place.exists():
                    assert "does not exist" in flask(caller.server, *command)
                    assert not place.exists()
            caller.fake.open("end")
            assert calls.kinds(list(client.frames()))[-2:] == ["usage_final", "DONE"]
    assert "1 steps were not written" in caller.server.output()
    with serve(fake, SLUICE_DATABASE=str(place), directory=folder.parent) as again:
        assert again.ask().status == 200
        again.server.wait(lambda: not open_rows(place))
        found = by_request(rows(place))
        kept = {first.id} if deed is replace_with_backup else set()
        assert kept | again.answered <= set(found)
        assert "is consistent" in flask(again.server, "usage", "verify")


@pytest.mark.thorough
@pytest.mark.parametrize("deed", [unlink_wal, unlink_shm, unlink_both], ids=lambda d: d.__name__)
def test_deleted_journals_of_the_database_lose_no_row(
    fake: FakeProvider, folder: Path, deed: Callable[[Path], None]
) -> None:
    place = folder / "sluice.db"
    with serve(fake, SLUICE_DATABASE=str(place)) as caller:
        for _ in range(5):
            assert caller.ask().status == 200
        deed(place)
        caller.server.wait(lambda: not caller.server.is_ready(), SOON_S)
        caller.server.wait(caller.server.is_ready)
        assert caller.ask().status == 200
        assert set(by_request(rows(place))) == caller.answered
        assert_sound(place)
        assert "is consistent" in flask(caller.server, "usage", "verify")


@pytest.mark.thorough
def test_calls_are_served_while_the_file_of_an_optional_ledger_is_gone(
    fake: FakeProvider, folder: Path
) -> None:
    place = folder / "sluice.db"
    with serve(fake, SLUICE_DATABASE=str(place), SLUICE_LEDGER_REQUIRED="0") as caller:
        first = caller.ask()
        rename(place)
        assert [caller.ask(path).status for path in (NATIVE, OPENAI, NATIVE)] == [200] * 3
        assert caller.server.is_ready()
        assert not place.exists()
        assert proofs.metric(caller.server, "sluice_ledger_unrecorded_total") == 3
        rename_back(place)
        caller.server.wait(lambda: "database is available again" in caller.server.output())
        last = caller.ask()
        assert_sound(place)
        assert set(by_request(rows(place))) == {first.id, last.id}


# The database can't be opened at the start


def damaged(folder: Path) -> Path:
    (folder / "bad.db").write_bytes(b"This is a text and no database. " * 64)
    return folder / "bad.db"


def a_directory(folder: Path) -> Path:
    (folder / "bad.db").mkdir()
    return folder / "bad.db"


def nowhere(folder: Path) -> Path:
    return folder / "missing" / "sluice.db"


@pytest.mark.parametrize("kind", sampled(["gevent", "python"], "python"))
@pytest.mark.parametrize("unusable", sampled([damaged, a_directory, nowhere], damaged))
def test_an_unusable_database_fails_the_start_with_a_clear_message(
    tmp_path: Path, kind: ServerKind, unusable: Callable[[Path], Path]
) -> None:
    assert_start_fails(unusable(tmp_path), kind)


def assert_start_fails(place: Path, kind: ServerKind) -> None:
    server = Server(kind=kind, env={"SLUICE_DATABASE": str(place)})
    with pytest.raises(RuntimeError) as raised:
        server.start()
    output = str(raised.value)
    assert server.returncode() == (4 if kind == "gevent" else 1)
    assert output.count("the ledger can't be opened") == 1
    assert "Traceback" not in output
    assert str(place) in output


@pytest.mark.parametrize("kind", sampled(["gevent", "python"], "python"))
def test_a_read_only_disk_fails_the_start_with_a_clear_message(
    small_disk: Path, kind: ServerKind
) -> None:
    if not mounted("-o", "remount,ro", str(small_disk)):
        pytest.skip("a file system can't be made read-only here")
    assert_start_fails(small_disk / "sluice.db", kind)
