"""Who is calling: the live store of keys, and bearer authentication on top of it.

Rules that hold here: a reader of the store never waits and never sees a moment without keys (a new
View takes the old one's place in one assignment). A change rewrites the one line it is about;
every other, a broken one too, keeps its bytes. No key, an unknown, a disabled and an expired one
are refused in the same words. This is the one module below the endpoints that imports Flask.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn, TypeVar, Unpack

from flask import Flask, Request
from flask.globals import _cv_app, _cv_request
from flask_httpauth import HTTPTokenAuth
from werkzeug.datastructures import Authorization

from errors import Unauthorized
from keyfile import (
    View,
    locked,
    read_view,
    regular,
    replace,
    split_lines,
    write_line,
)
from keys import (
    TIERS,
    Key,
    KeyFileError,
    Terms,
    allows,
    changed,
    fingerprint,
    new_row,
    read_row,
)

__all__ = [
    "TIERS",
    "Key",
    "KeyFileError",
    "KeyStore",
    "allows",
    "auth",
    "caller",
    "current_key",
    "key_of",
    "presented_key",
    "x_api_key",
]

LOOK_EVERY_S = 0.25
LONGEST_SECRET = 512
"""Characters. Nothing longer is hashed: a header can be a megabyte."""

F = TypeVar("F", bound=Callable[..., Any])
log = logging.getLogger("sluice.auth")


class KeyStore:
    """The keys of a file, which need not exist, and of SLUICE_KEYS's lines, which can't be changed.

    The file is looked at again when LOOK_EVERY_S have passed. While it can't be read, the keys
    last read stay. Threads may share a store, processes may share a file.
    """

    def __init__(self, path: Path, lines: str = "") -> None:
        self.path = path
        self._fixed = lines.encode("utf-8", "surrogateescape")
        self._lock = threading.Lock()
        self._view = View()
        self._seen: tuple[int, ...] | None = None
        """The (mtime, size, inode) last read; () when there was no file, None before."""
        self._trouble = ""
        self._warned_of_mode = False
        self._look_at = 0.0
        self._look()

    def find(self, secret: str) -> Key | None:
        """The key with this text; None when it is unknown, disabled or expired."""
        if len(secret) > LONGEST_SECRET:
            return None
        key = self._fresh().by_hash.get(fingerprint(secret))
        return key if key is not None and key.status == "active" else None

    def all(self) -> list[Key]:
        return [line.key for line in self._fresh().lines]

    def get(self, id_or_name: str) -> Key:
        """Raises KeyFileError when no key, or more than one, is called so."""
        return self._fresh().pick(id_or_name).key

    def line(self, id_or_name: str) -> str:
        """The key's line, fit for SLUICE_KEYS: it has the hash, not the text. Raises as get."""
        return write_line(self._fresh().pick(id_or_name).row).decode("utf-8", "replace")

    def is_fixed(self, key: Key) -> bool:
        """Whether it comes from SLUICE_KEYS."""
        return any(line.fixed and line.key.id == key.id for line in self._fresh().lines)

    def problems(self) -> list[str]:
        """What is wrong with the file and the variable: a sentence each, no content."""
        view = self._fresh()
        return [self._trouble, *view.problems] if self._trouble else list(view.problems)

    def create(self, name: str, **terms: Unpack[Terms]) -> tuple[Key, str]:
        """A new key, and its text: the only time that it is known. Raises KeyFileError."""
        new, secret = new_row(name, terms)

        def add(view: View, rows: list[bytes]) -> Key:
            if any(line.key.name == name for line in view.lines):
                raise KeyFileError(f"There is a key called {name!r} already.")
            rows.append(write_line(new))
            return read_row(new)

        return self._rewrite(add), secret

    def update(self, id_or_name: str, **terms: Unpack[Terms]) -> Key:
        """The key as it is now; what isn't named stays. Raises KeyFileError."""

        def change(view: View, rows: list[bytes]) -> Key:
            line = view.pick_changeable(id_or_name)
            new = changed(line.row, terms, datetime.now(UTC))
            rows[line.at] = write_line(new)
            return read_row(new)

        return self._rewrite(change)

    def delete(self, id_or_name: str) -> Key:
        """The key that was. Raises KeyFileError."""

        def drop(view: View, rows: list[bytes]) -> Key:
            line = view.pick_changeable(id_or_name)
            del rows[line.at]
            return line.key

        return self._rewrite(drop)

    def _rewrite(self, edit: Callable[[View, list[bytes]], Key]) -> Key:
        """Reads, lets `edit` change the list of lines, and writes, all under the file's lock."""
        target = Path(os.path.realpath(self.path))
        try:
            if target.exists():
                regular(target)
            with locked(target):
                # Asked again: another process may have made it while this one waited.
                data = target.read_bytes() if target.exists() else b""
                rows = split_lines(data)
                key = edit(read_view(data, self.path.name, self._fixed), rows)
                replace(target, b"".join(row + b"\n" for row in rows))
        except OSError as error:
            raise KeyFileError(f"{self.path} can't be changed: {error.strerror}.") from error
        with self._lock:
            self._look()
        return key

    def _fresh(self) -> View:
        """The keys as of LOOK_EVERY_S ago at most; who comes while another looks has the old."""
        if time.monotonic() >= self._look_at and self._lock.acquire(blocking=False):
            try:
                self._look()
            finally:
                self._lock.release()
        return self._view

    def _look(self) -> None:
        """Reads the file, if it isn't the one last read."""
        self._look_at = time.monotonic() + LOOK_EVERY_S
        try:
            found = regular(self.path)
            seen = (found.st_mtime_ns, found.st_size, found.st_ino)
            if seen == self._seen:
                return
            # The bytes may be newer than `seen`; then the next look reads them once more.
            self._take(self.path.read_bytes(), seen)
            self._warn_of_mode(found.st_mode)
        except FileNotFoundError:
            if self._seen or self._trouble:
                log.warning("%s is gone, and its keys with it", self.path.name)
            if self._seen != ():
                self._take(b"", ())
        except OSError as error:
            trouble = f"{self.path.name} can't be read: {error.strerror}"
            if trouble != self._trouble:
                log.error("%s; the keys last read stay", trouble)
            self._trouble, self._seen = trouble, None

    def _take(self, data: bytes, seen: tuple[int, ...]) -> None:
        view = read_view(data, self.path.name, self._fixed)
        for problem in view.problems:
            if problem not in self._view.problems:
                log.warning("%s", problem)
        self._view, self._seen, self._trouble = view, seen, ""

    def _warn_of_mode(self, mode: int) -> None:
        if mode & 0o077 and not self._warned_of_mode:
            self._warned_of_mode = True
            log.warning("others may read or write %s: chmod 600 it", self.path.name)


def current_app() -> Flask:
    """The app that answers now. Flask's own proxy calls four functions at each use of it, and a
    call uses it some thirty times."""
    return _cv_app.get().app


def current_request() -> Request:
    """The request that is being answered."""
    return _cv_request.get().request


class BearerAuth(HTTPTokenAuth):  # type: ignore[misc]
    """HTTPTokenAuth that takes its token from where `presented_key` finds it.

    The library's own reading (werkzeug's request.authorization) raises on a non-ASCII Basic
    header and takes a token with a `=` inside for parameters.
    """

    def get_auth(self) -> Authorization | None:
        secret = presented_key()
        return None if secret is None else Authorization("bearer", token=secret)

    def login_required(self, view: F) -> F:
        """The view, for callers with a good key only. OPTIONS needs none."""
        guarded: F = super().login_required(view)
        return guarded

    def ensure_sync(self, view: F) -> F:
        """As it is: our views are plain functions, and the library's asks the app at each call."""
        return view


auth = BearerAuth(scheme="Bearer", realm="sluice")


def verify(secret: str) -> Key | None:
    store: KeyStore = current_app().extensions["sluice"].keys
    return store.find(secret)


def refuse(_status: int) -> NoReturn:
    raise Unauthorized(key_sent=presented_key() is not None)


auth.verify_token(verify)
auth.error_handler(refuse)


def presented_key() -> str | None:
    """The text of the key in this request, good or not: the Authorization header's, if it is a
    bearer's; X-API-Key's only when there is no Authorization header."""
    header = current_request().environ.get("HTTP_AUTHORIZATION", "").strip()
    if not header:
        return x_api_key()
    scheme, _, token = header.partition(" ")
    return (token.strip() or None) if scheme.lower() == "bearer" else None


def x_api_key() -> str | None:
    """The text in this request's X-API-Key header."""
    return current_request().environ.get("HTTP_X_API_KEY", "").strip() or None


def key_of(secret: str | None) -> Key:
    """The key with this text, for a view that reads its header itself. Raises Unauthorized."""
    key = None if secret is None else verify(secret)
    if key is None:
        raise Unauthorized(key_sent=secret is not None)
    return key


def caller() -> Key | None:
    """The caller's key, once a view under login_required was reached with a good one."""
    key = _cv_app.get().g.get("flask_httpauth_user")
    return key if isinstance(key, Key) else None


def current_key() -> Key:
    """The caller's key, in a view under login_required. Raises Unauthorized where there is none."""
    key = caller()
    if key is None:
        raise Unauthorized(key_sent=False)
    return key
