"""The Gemini API's list of models, which comes in pages.

The functions implement `base.ModelList`, which documents them.

- Names lose their `models/`, as the price list has them without it. Those of tuned models keep
  their `tunedModels/`.

Source: Gemini API reference, "models.list" (read 2026-11).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import quote

from providers import model_entries
from providers.base import ListedModel, ModelPage
from providers.model_entries import member

PAGE_SIZE: Final = 1000
METHOD: Final = "generateContent"


def path(cursor: str | None) -> str:
    page = "" if cursor is None else f"&pageToken={quote(cursor, safe='')}"
    return f"models?pageSize={PAGE_SIZE}{page}"


def read(body: bytes) -> ModelPage:
    data = model_entries.decode(body)
    found = data
    if isinstance(data, dict):
        found = data.get("models", [])  # protobuf's JSON leaves out empty lists
    models = (
        described(entry)
        for entry in model_entries.entries(found)
        if model_entries.usable(name_of(entry)) and generates(entry)
    )
    token = model_entries.cursor(member(data, "nextPageToken"))
    return ModelPage(model_entries.distinct(models), token)


def name_of(entry: Mapping[str, Any]) -> str | None:
    name = model_entries.text(entry.get("name"))
    return name and (name.removeprefix("models/") or None)


def generates(entry: Mapping[str, Any]) -> bool:
    methods = entry.get("supportedGenerationMethods")
    return not isinstance(methods, list) or METHOD in methods


def described(entry: Mapping[str, Any]) -> ListedModel:
    return ListedModel(
        name_of(entry) or "",
        name=model_entries.text(entry.get("displayName")),
        context_window=model_entries.window(entry, (("inputTokenLimit",),)),
    )
