"""The lists of models of hosts: their shapes, as bytes.

The files in tests/fixtures/models have the shapes of the hosts' references; llamacpp.json was sent
by a server.
"""

from __future__ import annotations

import contextlib
import json
from typing import Any, NamedTuple

import pytest

from errors import UpstreamError
from providers import model_entries, registry
from providers.base import ListedModel, ModelList, Provider
from providers.hosts import BUILT_IN
from tests.support.paths import TESTS

FILES = TESTS / "fixtures" / "models"
MTOK = 1_000_000_000
"""A US dollar for a million tokens."""


class Case(NamedTuple):
    file: str
    dialect: str
    models: list[ListedModel]
    next: str | None = None


M = ListedModel
CASES = [
    Case("openai", "openai", [
        M("gpt-4.1-mini", created=1744318173),
        M("gpt-3.5-turbo-instruct", created=1692901427),
        M("ft:gpt-4.1-mini:acme:notes:Bx1", created=1750000000),
    ]),
    Case("vllm", "openai", [
        M("Qwen/Qwen2.5-Coder-7B", context_window=32768, created=1796040000),
        M("sql-lora", created=1796040000),
    ]),
    Case("llamacpp", "openai", [M("tiny", context_window=2048, created=1796040753)]),
    Case("llamacpp-embedding", "openai", [M("coder", created=1796040753)]),
    Case("llamacpp-router", "openai", [
        M("ggml-org/gemma-3-4b-it-GGUF:Q4_K_M", created=1796040753),
        M("ggml-org/Qwen2.5-Coder-1.5B-GGUF:Q8_0", created=1796040753),
    ]),
    Case("ollama", "openai", [M("llama3.2:latest", created=1795000000)]),
    Case("ollama-tags", "openai", [M("llama3.2:latest")]),
    Case("lmstudio", "openai", [
        M("qwen2-vl-7b-instruct", context_window=32768),
        M("meta-llama-3.1-8b-instruct", context_window=4096),
    ]),
    Case("openrouter", "openai", [
        M("openai/gpt-5.4-mini", "OpenAI: GPT-5.4 Mini", 400_000, 1790000000,
          (750_000_000, 4_500_000_000)),
        M("acme/brand-new", "Acme: Brand New", 131_072, 1796000000,
          (200_000_000, 1_150_000_000)),
        M("openrouter/auto", "Auto Router", 2_000_000, 1699401600),
    ]),
    Case("together", "openai", [
        M("openai/gpt-oss-120b", "OpenAI GPT-OSS 120B", 131_072, 1754000000,
          (150_000_000, 600_000_000)),
        M("mistralai/Mixtral-8x7B-v0.1", "Mixtral-8x7B v0.1", 32_768),
    ]),
    Case("mistral", "openai", [M("codestral-latest", "codestral-2508", 256_000, 1796000000)]),
    Case("fireworks", "openai", [
        M("accounts/fireworks/models/gpt-oss-120b", None, 131_072, 1754411000),
        M("accounts/fireworks/models/starcoder2-15b", None, 16_384, 1754411001),
    ]),
    Case("huggingface", "openai", [M("openai/gpt-oss-120b", None, 65_536, 1754335000)]),
    Case("groq", "openai", [M("openai/gpt-oss-20b", None, 131_072, 1754407957)]),
    Case("anthropic-1", "anthropic", [
        M("claude-opus-5-5", "Claude Opus 5.5", 1_000_000, 1788480000),
    ], "claude-2.1"),
    Case("anthropic-2", "anthropic", [M("claude-haiku-4-5-20251001", "Claude Haiku 4.5")]),
    Case("google-1", "google", [
        M("gemini-2.5-flash", "Gemini 2.5 Flash", 1_048_576),
    ], "Ch9tb2RlbHMvZ2VtaW5p+/="),
    Case("google-2", "google", [M("tunedModels/mine-42", "Mine", 32_768)]),
    Case("cohere", "cohere", [M("command-a-03-2025", None, 288_000)], "abc=="),
]  # fmt: skip


def form(dialect: str) -> ModelList:
    found = registry.model_list(Provider(name="x", dialect=dialect, base_url="http://x"))
    assert found is not None
    return found


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.file)
def test_each_shape_of_a_list_is_read(case: Case) -> None:
    page = form(case.dialect).read((FILES / f"{case.file}.json").read_bytes())
    assert list(page.models) == case.models
    assert page.next == case.next


def test_every_recorded_list_is_tested() -> None:
    assert {case.file for case in CASES} == {path.stem for path in FILES.iterdir()}


PATHS = [
    ("openai", None, "models"),
    ("anthropic", None, "models?limit=1000"),
    ("anthropic", "a/b&c", "models?limit=1000&after_id=a%2Fb%26c"),
    ("google", None, "models?pageSize=1000"),
    ("google", "C+/=", "models?pageSize=1000&pageToken=C%2B%2F%3D"),
    ("cohere", None, "../v1/models?endpoint=chat&page_size=1000"),
    ("cohere", "a=", "../v1/models?endpoint=chat&page_size=1000&page_token=a%3D"),
]


@pytest.mark.parametrize(("dialect", "cursor", "path"), PATHS)
def test_the_address_of_a_page_has_the_cursor(dialect: str, cursor: str | None, path: str) -> None:
    assert form(dialect).path(cursor) == path


NO_LIST = {"local", "bedrock", "azure", "perplexity"}


def test_every_built_in_row_has_a_list_except_those_whose_hosts_have_none_that_fits() -> None:
    assert {row.name for row in BUILT_IN if registry.model_list(row) is None} == NO_LIST


def test_a_row_can_turn_its_list_off_and_a_deployments_url_has_none() -> None:
    assert registry.model_list(Provider(name="x", base_url="http://x", discover=False)) is None
    deployment = Provider(name="x", base_url="http://x/deployments/{model}")
    assert registry.model_list(deployment) is None
    assert registry.model_list(Provider(name="x", dialect="infill", base_url="http://x")) is None


@pytest.mark.parametrize("dialect", registry.MODEL_LISTS)
@pytest.mark.parametrize(
    "body", [b"", b"nonsense", b"null", b"3", b'"models"', b'{"data":', b"\xff\xfe", b"[" * 99999]
)
def test_a_body_that_is_no_list_is_an_upstream_error(dialect: str, body: bytes) -> None:
    with pytest.raises(UpstreamError):
        form(dialect).read(body)


ODD: list[Any] = [
    None, True, 0, -1, 1.5, 1e300, "", " ", "a" * 5000, "x\ny", "\ud800", [], {}, [None], {"a": 1},
]  # fmt: skip
FIELDS = (
    *(
        "id",
        "name",
        "model",
        "display_name",
        "displayName",
        "created",
        "created_at",
        "type",
        "kind",
    ),
    *("context_length", "context_window", "max_model_len", "meta", "architecture", "capabilities"),
    *("pricing", "providers", "endpoints", "supportedGenerationMethods", "inputTokenLimit"),
    *("lifecycle", "active", "status", "output_modalities", "max_input_tokens", "task"),
)


@pytest.mark.parametrize("dialect", registry.MODEL_LISTS)
def test_a_value_of_the_wrong_type_costs_at_most_its_entry(dialect: str) -> None:
    odd = [{"id": f"m{n}", "name": f"m{n}", field: value}
           for field in FIELDS for n, value in enumerate(ODD)]  # fmt: skip
    entries = [*ODD, *odd, {"id": "good", "name": "good"}]
    for field in ("data", "models"):
        body = json.dumps({field: entries, "has_more": 1, "last_id": [], "nextPageToken": {}})
        if field == "models" or dialect in ("openai", "anthropic"):
            if dialect == "anthropic" and field == "models":
                continue
            page = form(dialect).read(body.encode())
            assert "good" in {model.id for model in page.models}
            assert page.next is None
            for model in page.models:
                assert model.id.isprintable()
                assert len(model.id) <= model_entries.LONGEST_NAME


def test_nan_and_a_byte_order_mark_are_accepted() -> None:
    body = b'\xef\xbb\xbf{"data": [{"id": "a", "context_length": NaN, "created": Infinity}]}'
    assert form("openai").read(body).models == (M("a"),)


def test_a_name_that_comes_twice_is_listed_once_and_the_first_entry_counts() -> None:
    body = b'[{"id": "a", "context_length": 5}, {"id": "a"}, {"id": "b"}]'
    assert [model.id for model in form("openai").read(body).models] == ["a", "b"]


@pytest.mark.parametrize(
    "name",
    [
        *("gpt-5.4-mini", "llama3.2:latest", "a b", "modèle", "/models/llama-7b.Q4.gguf", "x/../y"),
        *("..", "a/./b", "text-embedding-3-small", "BAAI/bge-m3", "rerank-v4.0-pro", "flux.1-dev"),
        *("embedders/llama-8b", "gemini-2.5-flash-image", "lives-3b", "imaginary", "claude-live"),
        *("Qwen/Qwen3-VL-8B", "jina-reranker-v2", "mistral-moderation-2411", "videollama-3"),
        *("nv-embedqa-e5-v5", "black-forest-labs/FLUX.2-pro", "stable-diffusion-3.5-large"),
        *("nvidia/llama-3.1-nemotron-70b-reward", "nvidia/nvclip", "wanx2.1-t2i-plus"),
        *("cosyvoice-v2", "paraformer-v2", "eclipse-7b", "rewarding-7b"),
    ],
)
def test_names_tell_models_for_other_things_than_text(name: str) -> None:
    text = {
        *("gpt-5.4-mini", "llama3.2:latest", "a b", "modèle", "/models/llama-7b.Q4.gguf"),
        *("embedders/llama-8b", "lives-3b", "imaginary", "Qwen/Qwen3-VL-8B", "videollama-3"),
        *("eclipse-7b", "rewarding-7b"),
    }
    assert model_entries.usable(name) == (name in text)


@pytest.mark.parametrize(
    ("value", "tokens", "price"),
    [
        ("0.0000002", 1, 200_000_000),
        (0.15, 1_000_000, 150_000_000),
        ("0", 1, 0),
        ("-1", 1, None),
        (True, 1, None),
        ("NaN", 1, None),
        ("1e999999999", 1, None),
        ("9" * 5000, 1, None),
        ("dear", 1, None),
        (None, 1, None),
        (5, 1, None),
    ],
)
def test_a_price_is_nano_dollars_for_a_million_tokens(
    value: Any, tokens: int, price: int | None
) -> None:
    assert model_entries.price(value, tokens) == price


VALUES: list[Any] = [
    *(None, True, 0, -1, 5, 1.5, 10**30, "", "x", "1e999999", "\u202ey", "\ud800", "a" * 5000),
    *([], [1], [[]], ["text"], [{}], [None], {}, {"n_ctx": "x"}, {"prompt": [], "completion": {}}),
    {"output_modalities": [[]]},
]
"""Values of the wrong type, or without sense, in any field."""
LISTS = ("data", "models")
CURSORS = {"has_more": True, "last_id": "a", "nextPageToken": "a", "next_page_token": "a"}


@pytest.mark.parametrize("dialect", sorted(registry.MODEL_LISTS))
def test_a_cursor_of_the_wrong_type_or_that_no_url_can_have_ends_the_list(dialect: str) -> None:
    for value in VALUES:
        for field in CURSORS:
            lists = {name: [{"id": "good", "name": "good"}] for name in LISTS}
            page = form(dialect).read(encoded(lists | CURSORS | {field: value}))
            if page.next is not None:
                form(dialect).path(page.next).encode("ascii")


@pytest.mark.parametrize("dialect", sorted(registry.MODEL_LISTS))
@pytest.mark.parametrize("field", LISTS)
def test_a_list_of_the_wrong_type_is_an_error_at_most(dialect: str, field: str) -> None:
    for value in VALUES:
        lists = {name: [{"id": "good", "name": "good"}] for name in LISTS} | {field: value}
        with contextlib.suppress(UpstreamError):
            form(dialect).read(encoded(lists))


@pytest.mark.parametrize("dialect", sorted(registry.MODEL_LISTS))
def test_only_so_many_entries_of_a_page_are_looked_at(
    dialect: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_entries, "MOST_ENTRIES", 3)
    many = [{"id": f"m{number}", "name": f"m{number}"} for number in range(9)]
    page = form(dialect).read(encoded(dict.fromkeys(LISTS, many)))
    assert [model.id for model in page.models] == ["m0", "m1", "m2"]


def test_other_threads_run_while_a_long_list_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("concurrency.yielding.time.sleep", pauses.append)
    monkeypatch.setattr("concurrency.yielding.WORK_S", 0.0)
    entries = [{"id": f"m{number}"} for number in range(100)]
    form("openai").read(encoded(entries))
    assert len(pauses) > 50


def encoded(data: Any) -> bytes:
    return json.dumps(data).encode()
