"""The audit log of the keys: it records which actor changed which key, when, and how.

- Both the commands and the HTTP API change keys through AuditedKeys, by the rules of keys.store.
- A change counts even if it can't be recorded in the ledger. Then only a server's log has it.
- No record has a secret or a hash.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any, Literal, NamedTuple, Self, TypeAlias, Unpack

import msgspec
from sqlalchemy import Connection, insert, select

from errors import Unavailable
from keys.key import FIELDS, Key, Terms, public
from keys.key_file import Line, View
from keys.redaction import mask
from keys.store import Check, KeyStore, always
from ledger.ledger import Ledger
from ledger.schema import as_utc, key_changes, new_id, now_us

log = logging.getLogger("sluice.keys")

Via: TypeAlias = Literal["cli", "http"]
Action: TypeAlias = Literal["create", "change", "disable", "enable", "rotate", "delete"]
Changes: TypeAlias = dict[str, Any]
"""The new value of each changed field, or {"from": old, "to": new} if the key existed before."""


class Actor(NamedTuple):
    """The admin key or the user that changes keys."""

    via: Via
    name: str
    """The admin key's name, or the name of the user who runs the command."""
    id: str | None = None
    """The admin key's id; None for a command."""
    request_id: str | None = None


class KeyChange(msgspec.Struct, frozen=True, kw_only=True):
    """A change of a key. The fields are the columns of the table."""

    id: str
    at_us: int
    via: str
    actor_id: str | None
    actor_name: str
    request_id: str | None
    action: str
    key_id: str
    key_name: str
    changes: str
    """Changes as JSON."""


class AuditedKeys:
    """The key store for one actor, which records each change of a field.

    Use it as a context manager. The changes are recorded when the block ends, so that the block's
    output, such as a new secret, doesn't wait for the ledger.
    """

    def __init__(self, store: KeyStore, ledger: Ledger, actor: Actor) -> None:
        self._store, self._ledger, self._actor = store, ledger, actor
        self._made: list[KeyChange] = []
        self.unrecorded = 0
        """The number of changes that the ledger lacks, once the block has ended."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        made, self._made = self._made, []
        for change in made:
            log.info("%s", in_words(change), extra={"request_id": change.request_id})
        if made and not recorded(self._ledger, made):
            self.unrecorded += len(made)
            log.warning("the ledger is unavailable, so it lacks changes of keys: %d", len(made))

    def create(self, name: str, check: Check = always, **terms: Unpack[Terms]) -> tuple[Key, str]:
        """Create a key, and return it with its secret. Raises what KeyStore.create raises."""
        key, secret = self._store.create(name, check, **terms)
        self._note("create", key, created(key))
        return key, secret

    def update(self, id_or_name: str, check: Check = always, **terms: Unpack[Terms]) -> Key:
        """Change the given terms of a key. Raises what KeyStore.update raises."""
        before = Before(check)
        key = self._store.update(id_or_name, before, **terms)
        if changes := differences(before.key, key):
            self._note(action_of(changes), key, changes)
        return key

    def rotate(self, id_or_name: str, overlap: timedelta, check: Check = always) -> tuple[Key, str]:
        """Give a key a new secret, and return both. Raises what KeyStore.rotate raises."""
        key, secret = self._store.rotate(id_or_name, overlap, check)
        self._note("rotate", key, {"overlap_s": int(overlap.total_seconds())})
        return key, secret

    def delete(self, id_or_name: str, check: Check = always) -> Key:
        """Delete a key, and return it. Raises what KeyStore.delete raises."""
        key = self._store.delete(id_or_name, check)
        self._note("delete", key, {})
        return key

    def _note(self, action: Action, key: Key, changes: Changes) -> None:
        actor = self._actor
        self._made.append(
            KeyChange(
                id=new_id(),
                at_us=now_us(),
                via=actor.via,
                actor_id=actor.id,
                actor_name=mask(actor.name),
                request_id=actor.request_id,
                action=action,
                key_id=key.id,
                key_name=mask(key.name),
                changes=json.dumps(masked(changes), ensure_ascii=False),
            )
        )


def masked(value: Any) -> Any:
    """Return a value of a change with masked keys, which may have been pasted into any field."""
    match value:
        case str():
            return mask(value)
        case list():
            return [masked(item) for item in value]
        case dict():
            return {name: masked(item) for name, item in value.items()}
    return value


class Before:
    """A check that remembers the key as it was before its change."""

    key: Key

    def __init__(self, check: Check) -> None:
        self._check = check

    def __call__(self, view: View, line: Line | None) -> None:
        self._check(view, line)
        if line is not None:
            self.key = line.key


def created(key: Key) -> Changes:
    """Return the terms of a new key that aren't the defaults."""
    plain = {
        field.name: msgspec.to_builtins(field.default) for field in FIELDS if not field.required
    }
    return {
        name: value for name, value in public(key).items() if name in plain and value != plain[name]
    }


def differences(old: Key, new: Key) -> Changes:
    before, after = public(old), public(new)
    return {
        name: {"from": before[name], "to": after[name]}
        for name in after
        if before[name] != after[name]
    }


def action_of(changes: Changes) -> Action:
    if changes.keys() == {"disabled"}:
        return "disable" if changes["disabled"]["to"] else "enable"
    return "change"


def in_words(change: KeyChange) -> str:
    """Return a change as a log message."""
    by = f"{change.actor_name} ({change.actor_id or 'a command'})"
    more = "" if change.changes == "{}" else f": {change.changes}"
    return f"key {change.key_id} ({change.key_name}): {change.action} by {by}{more}"


def recorded(ledger: Ledger, changes: Sequence[KeyChange]) -> bool:
    """Write changes to the ledger. Return False if it is unavailable."""
    with suppress(Unavailable):
        ledger.write(lambda connection: write(connection, changes), wait=False)
        return True
    return False


def write(connection: Connection, changes: Sequence[KeyChange]) -> None:
    """Write changes in the current transaction, which may be a second attempt."""
    ids = [change.id for change in changes]
    there = set(connection.execute(select(row.id).where(row.id.in_(ids))).scalars())
    rows = [msgspec.structs.asdict(change) for change in changes if change.id not in there]
    if rows:
        connection.execute(insert(key_changes), rows)


row = key_changes.c


def latest(
    connection: Connection, before: str | None, limit: int, key_id: str | None = None
) -> list[KeyChange]:
    """Return the latest changes, newest first.

    Args:
        before: the id below which to start; None: start at the newest change.
        limit: the most changes to return.
        key_id: the only key whose changes to return; None: all keys.
    """
    found = select(key_changes)
    if before is not None:
        found = found.where(row.id < before)
    if key_id is not None:
        found = found.where(row.key_id == key_id)
    found = found.order_by(row.id.desc()).limit(limit)
    return [KeyChange(**one) for one in connection.execute(found).mappings()]


def described(change: KeyChange) -> Mapping[str, Any]:
    """Return a change as JSON, without the row's id."""
    return {
        "at": as_utc(change.at_us),
        "action": change.action,
        "key_id": change.key_id,
        "key_name": change.key_name,
        "changes": json.loads(change.changes),
        "via": change.via,
        "by": {"key_id": change.actor_id, "name": change.actor_name},
        "request_id": change.request_id,
    }
