"""Tests of the warnings for a provider's key in a variable of a wrong name."""

from __future__ import annotations

import pytest

from providers import registry
from providers.key_variables import near_misses

ROWS = registry.rows({"mine": {"base_url": "http://127.0.0.1", "api_key_env": "MY_OWN_KEY"}})


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("OPENAI_APIKEY", "OPENAI_API_KEY"),
        ("OPENAI_KEY", "OPENAI_API_KEY"),
        ("OPENAI_API_KEYS", "OPENAI_API_KEY"),
        ("OPENAI_TOKEN", "OPENAI_API_KEY"),
        ("openai_api_key", "OPENAI_API_KEY"),
        ("OPENAPI_API_KEY", "OPENAI_API_KEY"),
        ("ANTHROPIC_KEY", "ANTHROPIC_API_KEY"),
        ("ANTROPIC_API_KEY", "ANTHROPIC_API_KEY"),
        ("GOOGLE_API_KEY", "GEMINI_API_KEY"),
        ("HUGGINGFACE_API_KEY", "HF_TOKEN"),
        ("HUGGING_FACE_TOKEN", "HF_TOKEN"),
        ("AZURE_API_KEY", "AZURE_OPENAI_API_KEY"),
        ("OPEN_ROUTER_API_KEY", "OPENROUTER_API_KEY"),
        ("BEDROCK_API_KEY", "AWS_BEARER_TOKEN_BEDROCK"),
        ("XAI_KEY", "XAI_API_KEY"),
        ("MY_OWN_API_KEY", "MY_OWN_KEY"),
    ],
)
def test_a_near_miss_of_a_providers_variable_is_reported_without_its_value(
    name: str, meant: str
) -> None:
    [warning] = near_misses(ROWS.values(), {name: "sk-secret"})
    assert warning.startswith(f"{name} isn't used; did you mean {meant}")
    assert "sk-secret" not in warning


@pytest.mark.parametrize(
    "environ",
    [
        {"OPENAI_API_KEY": "k"},
        {"OPENAI_API_KEY": "k", "OPENAI_KEY": "k"},
        {"OPENAI_KEY": " "},
        {"OPENAI_ORG_ID": "x", "OPENAI_BASE_URL": "x", "OPENAI_API_BASE": "x"},
        {"GITHUB_TOKEN": "x", "API_KEY": "x", "KEY": "x", "STRIPE_API_KEY": "x"},
        {"AWS_SECRET_ACCESS_KEY": "x", "AWS_SESSION_TOKEN": "x", "SSH_AUTH_SOCK": "x"},
        {"SLUICE_KEY": "x", "SLUICE_METRICS_TOKEN": "x", "GROK_API_KEY": "x"},
    ],
)
def test_other_variables_are_no_near_misses(environ: dict[str, str]) -> None:
    assert near_misses(ROWS.values(), environ) == []
