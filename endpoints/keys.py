"""The endpoints that manage the keys, for admin keys.

- Like the commands, they change the key file through keys.store, under the file's lock.
- A secret is only in the response that creates or rotates its key.
- No change over HTTP takes the last admin key that works, at once or by an earlier expiry. The
  commands can.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timedelta
from errno import EDQUOT, ENOSPC
from typing import Any, Final, cast

from flask import Blueprint, Response, request

from auth import admin_required, current_admin, presented_key
from endpoints import cursors
from endpoints.flask_app import current
from endpoints.key_fields import (
    FLAGS,
    NAME,
    OVERLAP,
    QUERY,
    STATUSES,
    TERMS,
    cursor_at,
    fits,
    place,
    place_of_cursor,
    read_body,
    read_fields,
    refuse_parameter,
)
from endpoints.key_names import ID
from endpoints.responses import json_response
from endpoints.services import services
from endpoints.usage import id_of_cursor, parameters, row_limit
from errors import (
    AdminRequired,
    InvalidRequest,
    KeyChanged,
    KeyExists,
    KeyNotFound,
    KeysReadOnly,
    LastAdminKey,
    SluiceError,
    Unauthorized,
    Unavailable,
)
from keys.key import Key, Terms, fingerprint
from keys.key_errors import CannotWriteKeys, KeyFileError, NameTaken, UnknownKey
from keys.key_file import VARIABLE, Line, View, write_line
from keys.store import KeyStore
from ledger import key_changes
from ledger.key_changes import Actor, AuditedKeys
from ledger.key_usage import KeySpending, by_key
from quota.key_state import described, today, useless_models

bp = Blueprint("keys", __name__, url_prefix="/api/v1/keys")

DAY_S: Final = 86_400
NO_STORE: Final = {"Cache-Control": "no-store"}
WRITABLE: Final = (
    "Give the user that runs this server the right to write the file and its folder, or use "
    "./sluice keys on the server."
)
DISK_FULL: Final = "Free some space on the disk of the file, and try again."
REPAIR: Final = (
    "Repair or restore the file on the server, and let the user that runs this server read it."
)
ADD_LINE: Final = (
    "This server's keys come from SLUICE_KEYS, and it has no key file. Run ./sluice keys create "
    "anywhere, and add the line that ./sluice keys show NAME --line prints to that variable."
)


@bp.get("")
@admin_required
def list_keys() -> Response:
    asked = parameters(*QUERY)
    for name, values in (("status", STATUSES), ("admin", FLAGS)):
        if name in asked and asked[name] not in values:
            refuse_parameter(name, asked[name])
    limit, after = row_limit(asked), place_of_cursor(asked)
    view = services().keys.view()
    lines = sorted((line for line in view.lines if fits(line.key, asked)), key=place)
    page = [line for line in lines if after is None or place(line) > after]
    more = len(page) > limit
    page = page[:limit]
    usages = spending()
    found = {
        "data": [as_json(line, usages) for line in page],
        "total": len(lines),
        "next_cursor": cursor_at(page[-1]) if more else None,
        "problems": services().keys.problems(),
    }
    return json_response(found, headers=NO_STORE)


@bp.post("")
@admin_required
def create_key() -> Response:
    fields = read_fields(read_body(), NAME | TERMS)
    if "name" not in fields:
        raise InvalidRequest(f"name is missing; expected {NAME['name'][1]}.", param="name")
    if not store().path.exists() and store().fixed_ids():
        raise KeysReadOnly(ADD_LINE)
    with changing() as keys:
        key, secret = keys.create(fields.pop("name"), Guard({}), **cast(Terms, fields))
    return answer(key, secret, 201)


@bp.get("/log")
@admin_required
def show_log() -> Response:
    asked = parameters("key", "limit", "cursor")
    limit, before = row_limit(asked), id_of_cursor(asked)
    only = asked.get("key")
    if only is not None and not ID.fullmatch(only):  # else it may be the id of a deleted key
        only = picked(only).key.id
    # One more row than requested shows whether there is a next page.
    rows = services().ledger.read(lambda found: key_changes.latest(found, before, limit + 1, only))
    found = {
        "data": [key_changes.described(change) for change in rows[:limit]],
        "next_cursor": cursors.encode(rows[limit - 1].id) if len(rows) > limit else None,
    }
    return json_response(found, headers=NO_STORE)


@bp.get("/<id_or_name>")
@admin_required
def show_key(id_or_name: str) -> Response:
    line = picked(id_or_name)
    found = as_json(line, spending(line.key.id))
    return json_response(found, headers=NO_STORE | {"ETag": etag(line)})


@bp.patch("/<id_or_name>")
@admin_required
def change_key(id_or_name: str) -> Response:
    fields = read_fields(read_body(), TERMS)
    if not fields:
        raise InvalidRequest(f"There is nothing to change; expected some of {', '.join(TERMS)}.")
    terms = cast(Terms, fields)
    with changing() as keys:
        key = keys.update(id_or_name, Guard(terms), **terms)
    return answer(key)


@bp.delete("/<id_or_name>")
@admin_required
def delete_key(id_or_name: str) -> Response:
    with changing() as keys:
        keys.delete(id_or_name, Guard({"disabled": True}))
    return json_response({"success": True}, headers=NO_STORE)


@bp.post("/<id_or_name>/rotate")
@admin_required
def rotate_key(id_or_name: str) -> Response:
    fields = read_fields(read_body(optional=True), OVERLAP)
    overlap = timedelta(seconds=fields.get("overlap_s", DAY_S))
    with changing() as keys:
        key, secret = keys.rotate(id_or_name, overlap, Guard({}))
    return answer(key, secret)


class Guard:
    """The check of a change: by an admin key, of the key of If-Match, and an admin key remains.

    The caller is checked again because another worker may not yet know that a key was revoked. The
    key must not make itself a successor meanwhile.
    """

    def __init__(self, terms: Terms) -> None:
        self._hash = fingerprint(presented_key() or "")
        self._tags = None if "If-Match" not in request.headers else request.if_match
        self._terms = terms

    def __call__(self, view: View, line: Line | None) -> None:
        """Raise SluiceError if the change must not be made."""
        caller = view.by_hash.get(self._hash)
        if caller is None or not caller.takes(self._hash):
            raise Unauthorized(key_sent=True)
        if not caller.admin:
            raise AdminRequired
        if line is None:
            return
        if self._tags is not None and not self._tags.contains(etag(line).strip('"')):
            raise KeyChanged
        if works(line.key) and is_ended(line.key, self._terms):
            others = (other.key for other in view.lines if other.key.id != line.key.id)
            if not any(map(works, others)):
                raise LastAdminKey


def works(key: Key) -> bool:
    """Return True if a key is an admin key that is accepted now."""
    return key.admin and key.status == "active"


def is_ended(key: Key, terms: Terms) -> bool:
    """Return True if new terms end what an admin key may do, at once or earlier than before."""
    expires = terms.get("expires")
    earlier = isinstance(expires, datetime) and (key.expires is None or expires < key.expires)
    return earlier or terms.get("disabled") is True or terms.get("admin") is False


def store() -> KeyStore:
    """Return the store of the keys. Raises KeysReadOnly if its file can't be read."""
    found = services().keys
    if trouble := found.trouble:
        raise KeysReadOnly(f"{trouble}. {REPAIR}")
    return found


@contextmanager
def changing() -> Iterator[AuditedKeys]:
    """Yield the keys, whose changes are recorded under the caller's name. Raises SluiceError."""
    admin = current_admin()
    actor = Actor("http", admin.name, admin.id, current().id)
    try:
        with AuditedKeys(store(), services().ledger, actor) as keys:
            yield keys
    except KeyFileError as error:
        raise public_error(error) from None


def public_error(error: KeyFileError) -> SluiceError:
    """Return the error that a client gets for an operation on the keys."""
    message = str(error)
    match error:
        case UnknownKey():
            return KeyNotFound()
        case NameTaken():
            return KeyExists(message, param=error.field)
        case CannotWriteKeys() if VARIABLE in message:
            return KeysReadOnly(f"{message.rstrip('.')}, and restart the server.")
        case CannotWriteKeys():
            return KeysReadOnly(f"{message} {advice(error.__cause__)}")
    return InvalidRequest(
        f"{error.field}: {message}" if error.field else message, param=error.field
    )


def advice(cause: BaseException | None) -> str:
    """Return what to do about a file that can't be changed."""
    if not isinstance(cause, OSError):
        return REPAIR
    return DISK_FULL if cause.errno in (EDQUOT, ENOSPC) else WRITABLE


def picked(id_or_name: str) -> Line:
    """Return a key's line. Raises KeyNotFound, and InvalidRequest for an ambiguous name."""
    try:
        return services().keys.view().pick(id_or_name)
    except KeyFileError as error:
        raise public_error(error) from None


def etag(line: Line) -> str:
    """Return an ETag, which changes with the key's line in the file."""
    return etag_of(write_line(line.row))


def etag_of(data: bytes) -> str:
    return f'"{hashlib.sha256(data).hexdigest()[:32]}"'


def as_json(line: Line, usages: Mapping[str, KeySpending] | None) -> dict[str, Any]:
    fixed = (line.key.id,) if line.fixed else ()
    return described(line.key, fixed, usages) | {"etag": etag(line)}


def answer(key: Key, secret: str | None = None, status: int = 200) -> Response:
    """Return the response to a change of a key."""
    line = picked(key.id)
    found = as_json(line, spending(key.id))
    if secret is not None:
        first = {"id": found.pop("id"), "name": found.pop("name"), "key": secret}
        found = first | found
    aliases = services().gateway.router.aliases
    if warnings := useless_models(key.models, aliases):
        found["warnings"] = warnings
    return json_response(found, status, NO_STORE | {"ETag": etag(line)})


def spending(key_id: str | None = None) -> Mapping[str, KeySpending] | None:
    """Return the usage of one key, or of all keys; None if the ledger can't be read."""
    try:
        return services().ledger.read(lambda found: by_key(found, today(), key_id))
    except Unavailable:
        return None
