"""Provider rows: overrides by sluice.toml, variables of the environment, and validation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from config import ConfigError
from providers import registry
from providers.base import Provider
from providers.hosts import BUILT_IN

URL = "http://127.0.0.1:1/v1"


def test_the_built_in_provider_rows_are_valid() -> None:
    assert list(registry.rows({})) == [row.name for row in BUILT_IN]


def test_a_provider_table_overrides_only_the_fields_that_it_names() -> None:
    row = registry.rows({"ollama": {"base_url": "http://10.0.0.5:11434/v1/"}})["ollama"]
    assert (row.base_url, row.completions) == ("http://10.0.0.5:11434/v1", True)


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"base_ulr": URL}, "base_ulr is not a field of a provider; did you mean base_url?"),
        ({"base_url": 7}, "base_url"),
        ({"base_url": URL, "fim": {"pth": "/x"}}, "did you mean path?"),
        ({"base_url": "ftp://x"}, "http://"),
        ({"base_url": ""}, "http://"),
        ({"base_url": URL, "dialect": "opnai"}, "did you mean openai"),
        ({"base_url": URL, "cannot": ["sed"]}, "did you mean seed"),
        ({"base_url": URL, "limits": {"temprature": 1}}, "did you mean temperature"),
        ({"base_url": URL, "limits": {"user": 1}}, "'user'"),
        ({"base_url": URL, "limits": {"temperature": "1"}}, "limits"),
        ({"base_url": URL, "chat_names": {"max_token": "x"}}, "did you mean max_tokens"),
        ({"base_url": URL, "families": [{"models": ["*"], "cannot": ["stp"]}]}, "stop"),
        ({"base_url": URL, "families": [{"models": ["*"], "exclusive": ["top_b"]}]}, "top_p"),
        ({"base_url": URL, "families": [{"cannot": ["stop"]}]}, "models"),
        ({"base_url": URL, "fim": {"path": "/x", "dialect": "zzz"}}, "'zzz'"),
        ({"base_url": URL, "fim": {"path": "/x", "cannot": ["nn"]}}, "'nn'"),
        ({"base_url": URL, "ca_bundle": "/nowhere/ca.pem"}, "no such file"),
        ({"base_url": URL, "sign": "sigv5"}, "did you mean sigv4"),
        ({"base_url": URL, "disconnect": "wait"}, "must be cancel or drain"),
        ({"base_url": URL, "timeouts": {"read": 5}}, "not read = 5"),
        ({"base_url": URL, "timeouts": {"idle": 0}}, "not idle = 0"),
        ({"base_url": URL, "timeouts": {"total": 86401}}, "not total = 86401"),
        ({"base_url": URL, "timeouts": {"total": "5"}}, "timeouts"),
    ],
)
def test_an_invalid_provider_row_raises_a_config_error(table: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        registry.rows({"mine": table})
    message = str(caught.value)
    assert "[providers.mine]" in message
    assert words in message
    assert "\n" not in message


@pytest.mark.parametrize("policy", ["", "cancel", "drain"])
def test_a_provider_row_sets_its_own_disconnect_policy(policy: str) -> None:
    found = registry.rows({"mine": {"base_url": URL, "disconnect": policy}})
    assert (found["mine"].disconnect, found["openai"].disconnect) == (policy, "")


def test_the_vllm_row_requests_usage_in_every_chunk() -> None:
    options = registry.rows({})["vllm"].stream_options
    assert options == {"include_usage": True, "continuous_usage_stats": True}


@pytest.mark.parametrize("name", ["", "a b", "a/b", "a\n"])
def test_an_invalid_provider_name_raises_a_config_error(name: str) -> None:
    with pytest.raises(ConfigError):
        registry.rows({name: {"base_url": URL}})


def test_a_base_url_may_hold_variables_and_missing_ones_are_reported() -> None:
    bare, filled = (
        registry.rows({}, environ)["azure"]
        for environ in ({}, {"AZURE_OPENAI_ENDPOINT": "https://me.openai.azure.com/"})
    )
    assert filled.base_url == "https://me.openai.azure.com/openai/v1"
    assert registry.missing(bare, {}) == ["AZURE_OPENAI_ENDPOINT", "AZURE_OPENAI_API_KEY"]
    assert registry.missing(filled, {"AZURE_OPENAI_API_KEY": "x"}) == []
    assert registry.missing(filled, {}, byok=True) == []


def test_a_provider_row_accepts_a_ca_bundle_file(tmp_path: Path) -> None:
    path = tmp_path / "ca.pem"
    path.touch()
    row = registry.rows({"mine": {"base_url": URL, "ca_bundle": str(path)}})["mine"]
    assert row.ca_bundle == str(path)


def test_a_provider_row_with_a_signer_needs_no_key() -> None:
    pytest.importorskip("botocore")
    row = registry.rows({"bedrock": {"sign": "sigv4"}}, {"AWS_REGION": "us-east-1"})["bedrock"]
    assert registry.missing(row, {}) == []
    assert registry.signer(row) is not None
    assert registry.signer(Provider(name="x")) is None
