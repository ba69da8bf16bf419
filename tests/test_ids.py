"""Ids: their form, and that no two are alike, in a forked process neither."""

from __future__ import annotations

import os
import uuid

import completion as ids


def test_new_uuid_has_version_4() -> None:
    for _ in range(1000):
        text = ids.new_uuid()
        found = uuid.UUID(text)
        assert str(found) == text
        assert (found.version, found.variant) == (4, uuid.RFC_4122)


def test_hexadecimal_digits_keep_their_leading_zeros() -> None:
    assert {len(ids.hexadecimal(8)) for _ in range(1000)} == {8}
    assert all(int(ids.hexadecimal(1), 16) < 16 for _ in range(100))


def test_new_uuids_are_unique() -> None:
    assert len({ids.new_uuid() for _ in range(10_000)}) == 10_000


def test_forked_process_makes_different_uuids() -> None:
    ids.new_uuid()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writer, ids.new_uuid().encode())
        os._exit(0)
    os.waitpid(child, 0)
    theirs = os.read(reader, 100).decode()
    os.close(reader)
    os.close(writer)
    assert len(theirs) == 36
    assert theirs not in [ids.new_uuid() for _ in range(10)]
