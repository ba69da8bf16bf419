"""Anthropic's list of models, which comes in pages.

The functions implement `base.ModelList`, which documents them.

Source: Anthropic API reference, "List Models", and `ModelInfo` of its SDK (read 2026-11).
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final
from urllib.parse import quote

from providers import model_entries
from providers.base import ListedModel, ModelPage
from providers.model_entries import member

PAGE_SIZE: Final = 1000


def path(cursor: str | None) -> str:
    after = "" if cursor is None else f"&after_id={quote(cursor, safe='')}"
    return f"models?limit={PAGE_SIZE}{after}"


def read(body: bytes) -> ModelPage:
    data = model_entries.decode(body)
    models = (
        described(entry)
        for entry in model_entries.entries(data, "data")
        if model_entries.usable(model_entries.text(entry.get("id")))
        and entry.get("lifecycle") != "retired"
    )
    more = member(data, "has_more") is True
    last = model_entries.cursor(member(data, "last_id"))
    return ModelPage(model_entries.distinct(models), last if more else None)


def described(entry: Mapping[str, Any]) -> ListedModel:
    return ListedModel(
        entry["id"],
        name=model_entries.text(entry.get("display_name")),
        context_window=model_entries.window(entry, (("max_input_tokens",),)),
        created=timestamp(entry.get("created_at")),
    )


def timestamp(value: Any) -> int | None:
    """Return a time in RFC 3339 in seconds since 1970; None for anything else."""
    try:
        return model_entries.whole(datetime.fromisoformat(value).timestamp())
    except (TypeError, ValueError, OverflowError, OSError):
        return None
