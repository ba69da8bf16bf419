"""The usage of all keys, for admin keys: sums by one kind of group, and the refused calls.

- The database sums and sorts, and a response has a bounded number of rows.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from typing import Any, Final, NamedTuple

from flask import Blueprint, Response
from sqlalchemy import Connection

from auth import admin_required
from endpoints import cursors
from endpoints.key_names import key_id_of, key_names
from endpoints.responses import json_response
from endpoints.services import services
from endpoints.usage import (
    FORMATS,
    accepted,
    attached,
    day,
    one_of,
    parameters,
    refuse,
    row_limit,
    varied,
)
from errors import InvalidRequest
from keys.group import NAME
from ledger import usage, usage_pages
from ledger.usage import Scope, csv_text
from ledger.usage_pages import Page, Refusals

bp = Blueprint("all_usage", __name__, url_prefix="/api/v1/usage")

REFUSAL: Final = "refusal"
GROUPS: Final = (*usage_pages.GROUPS, REFUSAL)
MOST_ROWS: Final = 1_000
"""The most groups of a response, and the default."""
MOST_CSV_ROWS: Final = 10_000
MOST_REFUSALS: Final = 100
"""The most refusals in a report that isn't grouped by refusal."""
DAYS_OF_ROWS: Final = 31
"""The days of a report that is summed from rows, if its start isn't given."""
TAKES: Final = {
    "key": "the id or the name of a key",
    "group": "the name of a group of keys",
    "group_by": " or ".join((", ".join(GROUPS[:-1]), GROUPS[-1])),
    "limit": f"an integer from 1 to {MOST_ROWS}",
    "cursor": "the next_cursor of a previous response",
}
MORE: Final = ("group_by", "format", "limit", "cursor")
OFFSET = re.compile("offset:([0-9]{1,9})")


class Asked(NamedTuple):
    """A request for usage."""

    by: str
    scope: Scope
    limit: int
    offset: int


@bp.get("")
@admin_required
def show_usage() -> Response:
    asked = parameters("start_date", "end_date", "key", "group", *MORE)
    form = one_of(asked, "format", FORMATS) or accepted()
    by = one_of(asked, "group_by", GROUPS, TAKES["group_by"]) or "key"
    most = MOST_CSV_ROWS if form == "csv" else MOST_ROWS
    wanted = Asked(by, scope_of(asked, by), row_limit(asked, most, most), offset_of(asked))
    refusals = by == REFUSAL
    if form == "csv":
        return varied(refusals_as_csv(wanted) if refusals else usage_as_csv(wanted))
    return varied(json_response(refusal_report(wanted) if refusals else usage_report(wanted)))


def scope_of(asked: Mapping[str, str], by: str) -> Scope:
    """Return the key or the group, and the days of a report. Raises InvalidRequest."""
    first, last = day(asked, "start_date"), day(asked, "end_date")
    key_id, group = key_id_of(asked.get("key")), asked.get("group")
    if group is not None and not NAME.fullmatch(group):
        refuse("group", group, TAKES["group"])
    if group is not None and (key_id is not None or by == REFUSAL):
        what = "group_by=refusal" if by == REFUSAL else "key"
        raise InvalidRequest(f"group and {what} don't go together.", param="group")
    scope = Scope(key_id, first, last, group)
    if usage_pages.is_from_rows(by, scope) and first is None:
        end = date.fromisoformat(last) if last else datetime.now(UTC).date()
        days = min(DAYS_OF_ROWS - 1, (end - date.min).days)
        first = (end - timedelta(days=days)).isoformat()
    if first and last and first > last:
        raise InvalidRequest("start_date is after end_date.", param="start_date")
    return scope._replace(first_day=first)


def usage_report(asked: Asked) -> dict[str, Any]:
    def read(connection: Connection) -> tuple[Page, Refusals | None]:
        page = usage_pages.page(connection, asked.scope, asked.by, asked.limit, asked.offset)
        if asked.scope.group is not None:  # refusals are counted by key only
            return page, None
        return page, usage_pages.refused(connection, asked.scope, MOST_REFUSALS)

    page, refused = services().ledger.read(read)
    names = key_names()
    return {
        **heading(asked),
        "data": [
            {"name": name}
            | ({"key_name": names.get(name)} if asked.by == "key" else {})
            | usage.as_json(sums)
            for name, sums in page.rows
        ],
        "total": usage.as_json(page.total),
        "groups": page.groups,
        "refused": refused and {"calls": refused.total, "data": refusal_rows(refused, names)},
        "next_cursor": next_cursor(asked, len(page.rows), page.groups),
    }


def refusal_report(asked: Asked) -> dict[str, Any]:
    found = read_refusals(asked)
    return {
        **heading(asked),
        "data": refusal_rows(found, key_names()),
        "total": {"calls": found.total},
        "groups": found.groups,
        "next_cursor": next_cursor(asked, len(found.rows), found.groups),
    }


def heading(asked: Asked) -> dict[str, Any]:
    scope = asked.scope
    return {
        "group_by": asked.by,
        "start_date": scope.first_day,
        "end_date": scope.last_day,
        "key_id": scope.key_id,
        "group": scope.group,
    }


def read_refusals(asked: Asked) -> Refusals:
    def read(connection: Connection) -> Refusals:
        return usage_pages.refused(connection, asked.scope, asked.limit, asked.offset)

    return services().ledger.read(read)


def refusal_rows(found: Refusals, names: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return refused calls as JSON. The name of a deleted key is None."""
    rows = []
    for key_id, reason, calls in found.rows:
        code, _, limit = reason.partition(":")
        row: dict[str, Any] = {"key_id": key_id, "key_name": names.get(key_id), "code": code}
        rows.append(row | {"limit": limit or None, "reason": reason, "calls": calls})
    return rows


def usage_as_csv(asked: Asked) -> Response:
    def read(connection: Connection) -> Page:
        return usage_pages.page(connection, asked.scope, asked.by, asked.limit, asked.offset)

    page = services().ledger.read(read)
    titles = [asked.by]
    cells = [[name] for name, _ in page.rows]
    if asked.by == "key":
        names = key_names()
        titles.append("name")
        cells = [[key_id, names.get(key_id, "")] for [key_id] in cells]
    sums = (sums for _, sums in page.rows)
    text = usage.as_csv(titles, zip(cells, sums, strict=True))
    return attached(text, f"usage-of-all-by-{asked.by}.csv")


def refusals_as_csv(asked: Asked) -> Response:
    names = key_names()
    lines = ["key,name,code,limit,calls"]
    for key_id, reason, calls in read_refusals(asked).rows:
        code, _, limit = reason.partition(":")
        texts = (key_id, names.get(key_id, ""), code, limit)
        lines.append(",".join((*map(csv_text, texts), str(calls))))
    return attached("".join(line + "\r\n" for line in lines), "refused-calls.csv")


def next_cursor(asked: Asked, shown: int, groups: int) -> str | None:
    """Return the cursor of the next page; None on the last one."""
    offset = asked.offset + shown
    if not shown or offset >= groups:
        return None
    return cursors.encode(f"offset:{offset}")


def offset_of(asked: Mapping[str, str]) -> int:
    """Return the number of groups on the previous pages. Raises InvalidRequest."""
    found = cursors.decode(asked)
    if found is None:
        return 0
    match = OFFSET.fullmatch(found)
    if match is None:
        refuse("cursor", asked["cursor"])
    return int(match[1])
