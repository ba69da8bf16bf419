"""fim_rules.py: the rules for a suffix in sluice.toml, and which of them applies to a model."""

from __future__ import annotations

from typing import Any

import pytest

from config import ConfigError
from providers import fim_rules, registry
from providers.base import Target
from providers.fim_templates import BY_NAME

URL = "http://127.0.0.1:1/v1"


def target(name: str, model: str, **table: Any) -> Target:
    return Target(registry.rows({name: table} if table else {})[name], model)


def how(found: Target) -> str:
    """Return how a target fills in: none, its endpoint, native, or the name of its template."""
    rule = fim_rules.usable(found)
    if rule is None:
        return "none"
    template = fim_rules.template_of(rule, found.model) if rule.by_template else None
    return template.name if template else rule.path or "native"


@pytest.mark.parametrize(
    ("name", "model", "expected"),
    [
        ("mistral", "codestral-latest", "/fim/completions"),
        ("mistral", "mistral-small-latest", "none"),
        ("deepseek", "deepseek-flash", "/beta/completions"),
        ("llamacpp", "anything", "/infill"),
        ("vllm", "Qwen/Qwen2.5-Coder-7B", "qwen-coder"),
        ("vllm", "deepseek-ai/DeepSeek-V4-Flash", "deepseek"),
        ("vllm", "meta-llama/Llama-3.1-8B", "none"),
        ("sglang", "bigcode/starcoder2-7b", "starcoder2"),
        ("together", "Qwen/Qwen3-Coder-480B-A35B-Instruct", "qwen-coder"),
        ("fireworks", "accounts/fireworks/models/qwen2p5-coder-32b", "qwen-coder"),
        ("lmstudio", "qwen2.5-coder-7b", "qwen-coder"),
        ("cerebras", "qwen-3-coder-480b", "none"),
        ("openai", "gpt-4.1-mini", "none"),
        ("anthropic", "claude-opus-5-5", "none"),
        ("local", "pydoc", "none"),
    ],
)
def test_each_built_in_row_fills_in_by_its_endpoint_or_by_template(
    name: str, model: str, expected: str
) -> None:
    assert how(target(name, model)) == expected


OWN = {"models": ["mine"], "template": "<A>{prefix}<B>{suffix}<C>"}


@pytest.mark.parametrize(
    ("fim", "model", "expected"),
    [
        ("native", "Qwen2.5-Coder-7B", "native"),
        ("none", "Qwen2.5-Coder-7B", "none"),
        ("template", "Qwen2.5-Coder-7B", "qwen-coder"),
        ({"template": "starcoder2"}, "coder", "starcoder2"),
        ({"models": ["old*"], "template": "starcoder"}, "Qwen2.5-Coder-7B", "qwen-coder"),
        ({"models": ["Qwen*"], "kind": "none"}, "Qwen2.5-Coder-7B", "none"),
        ([OWN, {"models": ["v4"], "kind": "native"}], "mine", "own"),
        ([OWN, {"models": ["v4"], "kind": "native"}], "v4", "native"),
        ([OWN, {"models": ["v4"], "kind": "native"}], "starcoder2-3b", "starcoder2"),
        ({"path": "/gap", "models": ["gap"]}, "gap", "/gap"),
    ],
)
def test_rules_of_sluice_toml_come_before_those_of_the_row(
    fim: Any, model: str, expected: str
) -> None:
    assert how(target("vllm", model, fim=fim)) == expected


def test_native_keeps_the_endpoint_of_a_built_in_row() -> None:
    assert how(target("deepseek", "m", fim="native")) == "/beta/completions"
    assert how(target("mistral", "codestral-2508", fim="native")) == "/fim/completions"


@pytest.mark.parametrize("fim", ["native", "template", {"template": "starcoder2"}])
def test_a_chat_model_fills_in_only_at_an_endpoint_of_its_own(fim: Any) -> None:
    assert how(target("mine", "starcoder2", base_url=URL, fim=fim)) == "none"
    assert how(target("mine", "x", base_url=URL, fim={"path": "/gap"})) == "/gap"
    partly = {"base_url": URL, "completions": ["coder*"], "fim": {"template": "starcoder2"}}
    assert how(target("mine", "coder", **partly)) == "starcoder2"
    assert how(target("mine", "chatty", **partly)) == "none"


def test_stop_strings_of_a_rule_are_added_to_those_of_a_family() -> None:
    found = target("vllm", "coder", fim={"template": "starcoder2", "stop": ["</code>"]})
    rule = fim_rules.usable(found)
    assert rule is not None
    template = fim_rules.template_of(rule, "coder")
    assert template is not None
    assert template.stop == ("</code>", *BY_NAME["starcoder2"].stop)


@pytest.mark.parametrize(
    ("fim", "words"),
    [
        ("always", 'fim must be "native", "template", "none", a table'),
        (5, "fim must be"),
        (["native"], "fim must be"),
        ({"kind": "magic"}, "kind"),
        ({"template": "qwen"}, "known family"),
        ({"template": "starcoder3"}, "did you mean starcoder"),
        ({"template": "<A>{prefix}<B>"}, "template must have {suffix}"),
        ({"template": "<A>{suffix}<B>"}, "template must have {prefix}"),
        ({"template": "{prefix}{suffix}{middle}"}, "template has {middle}"),
        ({"template": "{prefix}{suffix}{prefix}"}, "{prefix} more than once"),
        ({"template": "{prefix}{suffix}", "file": "{path}"}, "file must have {text}"),
        ({"template": "{prefix}{suffix}", "file": "{text}{files}"}, "file has {files}"),
        ({"template": "starcoder2", "file": "{text}"}, "file needs a prompt in template"),
        ({"template": "{prefix}{suffix}", "stop": [""]}, "stop must be at most 64 strings"),
        ({"template": "{prefix}{suffix}", "stop": ["x"] * 65}, "stop must be at most 64"),
        ({"template": "{prefix}{suffix}", "kind": "native"}, 'kind = "template"'),
        ({"stop": ["x"]}, 'kind = "template"'),
        ({"path": "fim"}, "path must begin with /"),
        ({"path": "/fim", "kind": "template"}, 'path needs kind = "native"'),
        ({"dialect": "infill"}, "dialect needs the path"),
        ({"path": "/fim", "dialect": "infil"}, "did you mean infill"),
        ({"path": "/fim", "cannot": ["nn"]}, "'nn'"),
        ({"paths": "/fim"}, "paths"),
        ({"template": 5}, "template"),
    ],
)
def test_an_invalid_rule_raises_a_config_error_of_one_line(fim: Any, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        target("vllm", "m", fim=fim)
    message = str(caught.value)
    assert "[providers.vllm]" in message
    assert words in message
    assert "\n" not in message
