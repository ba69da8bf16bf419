"""Tests of a key file that is empty, gone or damaged: which keys stay valid, and for how long."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from concurrency import yielding
from keys import key as key_module
from keys import key_file
from keys import store as store_module
from keys.key_errors import KeyFileError
from keys.store import KeyStore
from tests.support.pace import HANG_S
from tests.support.paths import ROOT

pytestmark = pytest.mark.usefixtures("no_secret_is_logged")

KEPT = "; the keys that it lacks remain valid until it is repaired"


class Site:
    """A key file with the keys x, y and z, and the store of a running server."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.path = directory / "keys.jsonl"
        self.now = 1000.0
        monkeypatch.setattr(store_module, "LOOK_EVERY_S", 0)
        clock = SimpleNamespace(monotonic=lambda: self.now)
        monkeypatch.setattr(store_module, "time", clock)
        made = [key_module.new_row(name, {}) for name in "xyz"]
        self.lines = {row["name"]: key_file.write_line(row) for row, _ in made}
        self.secrets = {row["name"]: secret for row, secret in made}
        self.write(self.whole())
        self.store = KeyStore(self.path)
        assert self.valid() == "xyz"

    def whole(self, names: str = "xyz") -> bytes:
        return b"".join(self.lines[name] + b"\n" for name in names)

    def write(self, data: bytes) -> None:
        """Write the file in place, as some editors do."""
        with self.path.open("wb") as file:
            file.write(data)
        self.path.chmod(0o600)

    def commands(self) -> KeyStore:
        """Return the store of a command, which is another process."""
        return KeyStore(self.path)

    def valid(self) -> str:
        self.store.all()
        with self.store._lock:  # a large file is read by a thread
            pass
        return "".join(name for name in "xyz" if self.store.find(self.secrets[name]))


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    return Site(tmp_path, monkeypatch)


def problems_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelname == "ERROR"]


def dangle(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


LACK: list[tuple[str, Callable[[Path], object]]] = [
    ("is empty", lambda path: path.write_bytes(b"")),
    ("is empty", lambda path: os.truncate(path, 0)),
    ("no longer exists", Path.unlink),
    ("no longer exists", lambda path: path.rename(path.with_name("keys.jsonl~"))),
    ("no longer exists", dangle),
]


@pytest.mark.parametrize(("what", "do"), LACK)
def test_keys_stay_valid_for_a_minute_while_the_file_is_empty_or_gone(
    site: Site, caplog: pytest.LogCaptureFixture, what: str, do: Callable[[Path], object]
) -> None:
    do(site.path)
    for _ in range(3):
        assert site.valid() == "xyz"
    assert problems_of(caplog) == [f"keys.jsonl {what}; the keys last read remain valid for 60 s"]
    assert site.store.problems() == [f"keys.jsonl {what}"]
    site.now += 59
    assert site.valid() == "xyz"
    site.now += 1.5
    assert site.valid() == site.valid() == ""
    assert problems_of(caplog)[1:] == [f"keys.jsonl {what}, so its keys are no longer valid"]
    site.path.unlink(missing_ok=True)
    site.write(site.whole("x"))
    assert site.valid() == "x"


@pytest.mark.parametrize(("_what", "do"), LACK)
def test_a_file_that_is_back_within_a_minute_takes_effect_at_once(
    site: Site, _what: str, do: Callable[[Path], object]
) -> None:
    for back in ("xyz", "xy", "y"):
        do(site.path)
        assert site.valid()
        site.now += 50
        site.path.unlink(missing_ok=True)
        site.write(site.whole(back))
        assert site.valid() == back
        site.now += 120
        assert site.valid() == back


def test_a_file_is_gone_and_then_empty_for_a_minute_in_all(site: Site) -> None:
    site.path.unlink()
    assert site.valid() == "xyz"
    site.now += 40
    site.path.touch()
    assert site.valid() == "xyz"
    site.now += 21
    assert site.valid() == ""


@pytest.mark.parametrize("chunk", [1, 37, 150, 400])
def test_no_key_is_refused_while_the_file_is_saved_in_place(site: Site, chunk: int) -> None:
    whole = site.whole()
    ends = {
        whole.index(line) + len(line) + extra for line in site.lines.values() for extra in (0, 1)
    }
    for size in range(0, len(whole) + 1, chunk):
        if size not in ends:  # a save that pauses at the end of a line looks like a deletion
            site.write(whole[:size])
            assert site.valid() == "xyz", size
    site.write(whole)
    assert site.valid() == "xyz"
    assert site.store.problems() == []


def test_a_half_written_file_is_reported_once_and_loses_no_key(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    site.write(site.whole()[: len(site.whole("x")) + 100])
    for _ in range(3):
        assert site.valid() == "xyz"
    site.now += 3600
    assert site.valid() == "xyz"
    assert caplog.messages == [
        "keys.jsonl: skipped line 2: not JSON", "keys.jsonl is damaged" + KEPT
    ]  # fmt: skip
    site.write(site.whole("xz"))
    assert site.valid() == "xz"
    assert site.store.problems() == []


GARBAGE = [
    b"garbage", b"garbage\n", b"\0" * 500, b"\0" * 500 + b"\n", b"\x7fELF\n\n\x80\xff\n", b"[]\n",
    b"null", b'"text"\n', b"404\n", b"{}\n", b'{"error": "not found"}\n', b"<html>\n</html>\n",
    b"[" * 100_000, random.Random(1).randbytes(20_000), b"x" * (2 << 20), b"[\n{\n}\n]\n",
    b"x\n" * 10_001, "{}".encode("utf-16"),
]  # fmt: skip


@pytest.mark.parametrize("garbage", GARBAGE, ids=range(len(GARBAGE)))
def test_keys_stay_valid_while_the_file_is_full_of_garbage(
    site: Site, caplog: pytest.LogCaptureFixture, garbage: bytes
) -> None:
    site.write(garbage)
    for _ in range(3):
        assert site.valid() == "xyz"
        site.now += 3600
    assert len(problems_of(caplog)) == 1
    assert len(caplog.messages) <= store_module.MOST_LOGGED + 2
    assert site.store.problems()
    site.write(site.whole("yz"))
    assert site.valid() == "yz"
    assert site.store.problems() == []


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "utf-16-le", "utf-16-be", "shift-jis"])
@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_line_in_another_encoding_costs_only_itself(site: Site, encoding: str, at: int) -> None:
    name = "m\u00fcller" if encoding != "shift-jis" else "\u30ad\u30fc"
    row = json.dumps(key_module.new_row(name, {})[0], ensure_ascii=False)
    lines = site.whole().splitlines(keepends=True)
    lines.insert(at, row.encode(encoding).replace(b"\n", b"") + b"\n")
    site.write(b"".join(lines))
    assert site.valid() == "xyz"
    (problem,) = site.store.problems()
    assert problem == f"keys.jsonl: skipped line {at + 1}: not JSON"
    del lines[at + 1 if at < 2 else 0]
    site.write(b"".join(lines))
    assert len(site.valid()) == 2, "a deleted line counts at once, beside the invalid one"


@pytest.mark.parametrize("keep", ["", "x", "y", "z", "xy", "yz", "xz"])
def test_a_key_whose_line_is_deleted_is_refused_at_once(
    site: Site, caplog: pytest.LogCaptureFixture, keep: str
) -> None:
    site.write(site.whole(keep) or b"\n")
    assert site.valid() == keep
    assert caplog.messages == []


OLD_GARBAGE = [b"garbage", b"garbage\n", b"m\xfcll\n", b'{"id":1}\n', b"# note", b"\0\0\n"]


@pytest.mark.parametrize("garbage", OLD_GARBAGE)
@pytest.mark.parametrize("keep", ["", "x", "y", "xz"])
@pytest.mark.parametrize("by_command", [False, True])
def test_no_revoked_key_lives_on_because_of_a_line_of_garbage_elsewhere(
    site: Site, garbage: bytes, keep: str, by_command: bool
) -> None:
    site.write(site.whole() + garbage)
    assert site.valid() == "xyz"
    if by_command:
        for name in set("xyz") - set(keep):
            site.commands().delete(name)
    else:
        site.write(site.whole(keep) + garbage)
    assert site.valid() == keep


@pytest.mark.parametrize("line", [b"# %s\n", b"#%s", b"// %s\n"])
def test_a_line_that_becomes_a_comment_is_refused_at_once(site: Site, line: bytes) -> None:
    for name in "xyz":
        site.write(line % site.lines[name])
        assert site.valid() == ""


@pytest.mark.parametrize(
    "change", [{"disabled": True}, {"hash": "no"}, {"disabled": "yes"}, {"tier": "none"}]
)
@pytest.mark.parametrize("end", [b"\n", b"", b"\ngarbage", b"\ngarbage\n"])
def test_a_line_that_is_changed_on_purpose_counts_at_once(
    site: Site, change: dict[str, object], end: bytes
) -> None:
    site.write(site.whole("xy"))
    assert site.valid() == "xy"
    changed = key_file.write_line(json.loads(site.lines["y"]) | change)
    site.write(site.whole("x") + changed + end)
    assert site.valid() == "x"


def test_a_cut_file_keeps_no_key_that_came_before_its_valid_lines(site: Site) -> None:
    site.write(site.lines["y"] + b"\n" + site.lines["z"][:50])
    assert site.valid() == "yz"


def test_a_key_disabled_in_a_cut_file_is_refused_at_once(site: Site) -> None:
    disabled = key_file.write_line(json.loads(site.lines["x"]) | {"disabled": True})
    site.write(disabled + b"\n" + site.lines["y"][:50])
    assert site.valid() == "yz"


def test_commands_on_a_damaged_file_count_at_once_and_keep_the_lost_keys(site: Site) -> None:
    site.write(site.lines["x"] + b"\n" + site.lines["y"][:50])
    assert site.valid() == "xyz"
    site.commands().update("x", disabled=True)
    assert site.valid() == "yz"
    key, secret = site.commands().create("new")
    assert site.store.find(secret) == key
    assert site.valid() == "yz"
    site.commands().delete("x")
    assert site.valid() == "yz"
    lines = site.path.read_bytes().splitlines(keepends=True)
    assert lines[0] == site.lines["y"][:50] + b"\n"
    site.write(b"".join(lines[1:]))
    assert site.valid() == ""
    assert site.store.find(secret) == key


def test_deleting_the_last_keys_by_command_counts_at_once(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    for left in ("yz", "z", ""):
        site.commands().delete("xyz"[2 - len(left)])
        assert site.valid() == left
    assert site.path.read_bytes() == b"\n"
    assert caplog.messages == []
    key, secret = site.commands().create("new")
    assert site.store.find(secret) == key
    assert len(site.path.read_bytes().splitlines()) == 1


def test_commands_refuse_a_file_that_cannot_be_read(site: Site) -> None:
    for data, says in ((site.whole().decode().encode("utf-16"), "is UTF-16; save it as UTF-8"),
                       (b"x\n" * 10_001, "has more than 10,000 invalid lines")):  # fmt: skip
        site.write(data)
        with pytest.raises(KeyFileError, match=says):
            site.commands().create("new")
        assert site.path.read_bytes() == data
        assert site.commands().problems() == [f"keys.jsonl {says}"]


def test_a_huge_file_is_not_read(
    site: Site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    os.truncate(site.path, 100_000_000)
    began = time.perf_counter()
    for _ in range(100):
        assert site.valid() == "xyz"
    assert time.perf_counter() - began < 2
    trouble = "keys.jsonl is larger than 32 MiB"
    assert caplog.messages == [f"{trouble}; the keys last read remain valid"]
    with pytest.raises(KeyFileError, match="is larger than 32 MiB"):
        site.commands().create("new")


@pytest.mark.parametrize("data", [b"x" * (20 << 20) + b"\n", b"\n" * 900_000, b" \n" * 900_000])
def test_reading_a_large_file_yields(
    site: Site, monkeypatch: pytest.MonkeyPatch, data: bytes
) -> None:
    yields: list[float] = []
    clock = SimpleNamespace(monotonic=time.monotonic, sleep=yields.append)
    monkeypatch.setattr(yielding, "time", clock)
    site.write(data + site.whole())
    began = time.monotonic()
    assert site.valid() == "xyz"
    assert len(yields) > (time.monotonic() - began) / 0.2


READER = """
import sys, time
from pathlib import Path
from keys.store import KeyStore

store = KeyStore(Path(sys.argv[1]))
print(flush=True)
for line in sys.stdin:
    time.sleep(0.3)
    print(sum(store.find(secret) is not None for secret in sys.argv[2:]), flush=True)
"""


def test_each_process_keeps_the_keys_that_it_last_read(site: Site) -> None:
    command = [sys.executable, "-c", READER, str(site.path), *site.secrets.values()]
    readers = [
        subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]

    def count(reader: subprocess.Popen[str]) -> int:
        assert reader.stdin
        assert reader.stdout
        reader.stdin.write("\n")
        reader.stdin.flush()
        return int(reader.stdout.readline())

    for reader in readers:
        assert reader.stdout
        reader.stdout.readline()
    for data, expected in (
        (b"", 3), (site.whole()[:50], 3), (site.whole("xy"), 2), (b"junk\n", 2), (b"\n", 0),
    ):  # fmt: skip
        site.write(data)
        assert [count(reader) for reader in readers] == [expected] * 2
    for reader in readers:
        reader.communicate()


def test_the_call_that_notices_a_large_change_does_not_wait_for_it(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading, go_on = threading.Event(), threading.Event()

    def read(path: Path) -> bytes:
        reading.set()
        assert go_on.wait(HANG_S)
        return path.read_bytes()

    monkeypatch.setattr(store_module, "read_bytes", read)
    site.write(b" " * store_module.LARGE + b"\n" + site.whole("y"))
    for _ in range(3):
        assert site.store.find(site.secrets["x"]) is not None
    assert reading.wait(HANG_S)
    go_on.set()
    assert site.valid() == "y"


def test_a_file_with_too_many_lines_is_not_read(site: Site) -> None:
    site.write(b"\n" * 1_000_001 + site.whole("x"))
    assert site.valid() == "xyz"
    assert site.store.problems() == ["keys.jsonl has more than 1,000,000 lines"]
