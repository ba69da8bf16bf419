"""The lists of models of OpenAI-compatible hosts.

The functions implement `base.ModelList`, which documents them.

- The functions are pure.
- The list is in `data`, in `models`, or is the whole body. llama.cpp sends both fields: `data` has
  the sizes, and `models` says what the models can do.

Sources: OpenAI API reference, "List models"; vLLM and SGLang, `ModelCard`; llama.cpp,
tools/server/README.md, "GET /v1/models"; Ollama, `ToListCompletion`; LM Studio, "REST API"; the
references of DeepSeek, xAI, Cerebras and NVIDIA's NIM, "List models"; OpenRouter, "List models";
Together, `types/models.py` of its SDK; Mistral, `BaseModelCard` of its SDK; Fireworks,
`gatewayModelKind` of its OpenAPI document; clients of Hugging Face's router (all read 2026-11).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from providers import model_entries
from providers.base import ListedModel, ModelPage
from providers.model_entries import member

WINDOWS: Final = (
    ("loaded_context_length",),  # LM Studio's model in memory
    ("meta", "n_ctx"),  # llama.cpp's server
    ("max_model_len",),  # vLLM, SGLang
    ("context_length",),  # OpenRouter, Together, Fireworks
    ("context_window",),  # Groq
    ("max_context_length",),  # Mistral, LM Studio
    ("max_input_tokens",),
    ("meta", "n_ctx_train"),  # what llama.cpp's model was trained for
)
"""The places of the context window in an entry, the most exact ones first."""
NAMES: Final = ("display_name", "name")


def path(cursor: str | None) -> str:  # noqa: ARG001 - these lists have one page
    return "models"


def read(body: bytes) -> ModelPage:
    data = model_entries.decode(body)
    unfit = set(unfit_names(data))
    models = (
        described(entry)
        for entry in model_entries.entries(data, "data", "models")
        if model_entries.usable(name_of(entry))
        and model_entries.completes_text(entry)
        and name_of(entry) not in unfit
    )
    return ModelPage(model_entries.distinct(models))


def name_of(entry: Mapping[str, Any]) -> str | None:
    names = (model_entries.text(entry.get(field)) for field in ("id", "model", "name"))
    return next(filter(None, names), None)


def unfit_names(data: Any) -> Iterator[str]:
    """Yield the models that llama.cpp's second list says don't complete text."""
    for entry in model_entries.objects(member(data, "models")):
        if not model_entries.completes_text(entry):
            yield name_of(entry) or ""


def described(entry: Mapping[str, Any]) -> ListedModel:
    name = name_of(entry) or ""
    titles = (model_entries.text(entry.get(field)) for field in NAMES)
    return ListedModel(
        name,
        name=next((title for title in titles if title and title != name), None),
        context_window=model_entries.window(entry, WINDOWS) or routed_window(entry),
        created=model_entries.whole(entry.get("created")),
        prices=prices(entry),
    )


def routed_window(entry: Mapping[str, Any]) -> int | None:
    """Return the smallest context window of the hosts that Hugging Face's router may choose."""
    hosts = entry.get("providers")
    live = [
        host
        for host in (hosts if isinstance(hosts, list) else ())
        if isinstance(host, dict) and host.get("status", "live") == "live"
    ]
    sizes = (model_entries.window(host, (("context_length",),)) for host in live)
    return min((size for size in sizes if size), default=None)


def prices(entry: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return the prices that OpenRouter states for a token, or Together for a million of them.

    A price of 0 is Together's for a model that it bills by the hour, if it states one for the hour.
    """
    source = entry.get("pricing")
    if found := model_entries.prices(source, 1, ("prompt", "completion")):
        return found
    if model_entries.price(member(source, "hourly"), model_entries.MTOK):
        return None
    return model_entries.prices(source, model_entries.MTOK, ("input", "output"))
