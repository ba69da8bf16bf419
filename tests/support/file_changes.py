"""Changes that an operator may make to a SQLite file while a server has it open."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from ledger import upkeep
from tests.support.ledgers import a_ledger, an_entry


def side(path: Path, ending: str) -> Path:
    return path.with_name(path.name + ending)


class Change(NamedTuple):
    """A change to the file, and the function that undoes it."""

    do: Callable[[Path], None]
    undo: Callable[[Path], None]


def another_database(path: Path) -> Path:
    other = path.with_name("other.db")
    with a_ledger(f"sqlite:///{other}") as ledger:
        ledger.open(an_entry())
    return other


def kept(path: Path) -> Path:
    return path.with_name("kept.db")


def rename(path: Path) -> None:
    path.rename(kept(path))


def rename_back(path: Path) -> None:
    kept(path).rename(path)


def replace_with_database(path: Path) -> None:
    other = another_database(path)
    rename(path)
    other.rename(path)


def replace_with_backup(path: Path) -> None:
    copy = path.with_name("copy.db")
    upkeep.backup(path, copy)
    kept(path).hardlink_to(path)
    copy.rename(path)


def replace_with_backup_and_delete_journals(path: Path) -> None:
    replace_with_backup(path)
    side(path, "-wal").unlink()
    side(path, "-shm").unlink()


def replace_with_empty(path: Path) -> None:
    rename(path)
    path.touch()


def replace_with_directory(path: Path) -> None:
    rename(path)
    path.mkdir()


def remove_directory(path: Path) -> None:
    path.rmdir()
    rename_back(path)


def replace_with_link_to_another(path: Path) -> None:
    other = another_database(path)
    rename(path)
    path.symlink_to(other)


def replace_with_broken_link(path: Path) -> None:
    rename(path)
    path.symlink_to(path.with_name("nowhere.db"))


def rename_all_three(path: Path) -> None:
    for ending in ("", "-wal", "-shm"):
        side(path, ending).rename(side(kept(path), ending))


def rename_all_back(path: Path) -> None:
    for ending in ("", "-wal", "-shm"):
        if side(kept(path), ending).exists():
            side(kept(path), ending).rename(side(path, ending))


def rename_folder(path: Path) -> None:
    path.parent.rename(path.parent.with_name("elsewhere"))


def rename_folder_back(path: Path) -> None:
    path.parent.with_name("elsewhere").rename(path.parent)


def replace_folder(path: Path) -> None:
    rename_folder(path)
    path.parent.mkdir()


def replace_folder_back(path: Path) -> None:
    path.parent.rmdir()
    rename_folder_back(path)


CHANGES = [
    Change(rename, rename_back),
    Change(rename_all_three, rename_all_back),
    Change(replace_with_database, rename_back),
    Change(replace_with_backup, rename_back),
    Change(replace_with_backup_and_delete_journals, rename_back),
    Change(replace_with_empty, rename_back),
    Change(replace_with_directory, remove_directory),
    Change(replace_with_link_to_another, rename_back),
    Change(replace_with_broken_link, rename_back),
    Change(rename_folder, rename_folder_back),
    Change(replace_folder, replace_folder_back),
]


def delete(path: Path) -> None:
    path.unlink()


def delete_all_three(path: Path) -> None:
    for ending in ("", "-wal", "-shm"):
        side(path, ending).unlink()


def delete_folder(path: Path) -> None:
    shutil.rmtree(path.parent)


def unlink_wal(path: Path) -> None:
    side(path, "-wal").unlink()


def unlink_shm(path: Path) -> None:
    side(path, "-shm").unlink()


def unlink_both(path: Path) -> None:
    unlink_wal(path)
    unlink_shm(path)


def replace_wal(path: Path) -> None:
    unlink_wal(path)
    side(path, "-wal").touch()


def truncate_while_the_wal_has_all(path: Path) -> None:
    """Truncate the file of a young database, whose pages are all in the -wal file."""
    os.truncate(path, 0)
