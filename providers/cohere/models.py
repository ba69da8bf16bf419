"""Cohere's list of models for chat, which comes in pages.

The functions implement `base.ModelList`, which documents them.

- The list belongs to version 1 of the API, while calls go to version 2.

Source: Cohere API reference v1, "List Models", and `GetModelResponse` of its SDK (read 2026-11).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import quote

from providers import model_entries
from providers.base import ListedModel, ModelPage
from providers.model_entries import member

PAGE_SIZE: Final = 1000
ENDPOINT: Final = "chat"


def path(cursor: str | None) -> str:
    page = "" if cursor is None else f"&page_token={quote(cursor, safe='')}"
    return f"../v1/models?endpoint={ENDPOINT}&page_size={PAGE_SIZE}{page}"


def read(body: bytes) -> ModelPage:
    data = model_entries.decode(body)
    models = (
        described(entry)
        for entry in model_entries.entries(data, "models")
        if model_entries.usable(model_entries.text(entry.get("name"))) and chats(entry)
    )
    token = model_entries.cursor(member(data, "next_page_token"))
    return ModelPage(model_entries.distinct(models), token)


def chats(entry: Mapping[str, Any]) -> bool:
    endpoints = entry.get("endpoints")
    return not isinstance(endpoints, list) or ENDPOINT in endpoints


def described(entry: Mapping[str, Any]) -> ListedModel:
    return ListedModel(
        entry["name"], context_window=model_entries.window(entry, (("context_length",),))
    )
