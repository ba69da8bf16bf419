"""fill_in.py: what a target gets of a request with a suffix."""

from __future__ import annotations

import json
from typing import Any

import pytest

from completion import Delta, Finished, SourceFile, Started
from errors import InvalidRequest, UnsupportedParameter
from gateway.capabilities import Candidate, candidates, fit, prepared
from gateway.echo import echoed
from providers import registry
from providers.base import Target
from providers.fim_templates import BY_NAME
from tests.routing.test_router import a_request

QWEN = "<|fim_prefix|>P<|fim_suffix|>S<|fim_middle|>"
FILES = (SourceFile("a.py", "A"),)
BODY = {
    "input_prefix": "P",
    "input_suffix": "S",
    "input_extra": [{"text": "A", "filename": "a.py"}],
    "id_slot": 0,
    "samplers": ["top_k"],
    "n_predict": 5,
}


def target(model: str, **table: Any) -> Target:
    name, _, own = model.partition("/")
    return Target(registry.rows({name: table} if table else {})[name], own)


def fitted(model: str, *, strict: bool = False, **fields: Any) -> Candidate:
    request = a_request(**({"prompts": ("P",), "suffix": "S"} | fields))
    return prepared(fit(request, target(model), strict=strict))


def sent(found: Candidate) -> dict[str, Any]:
    """Return the body that a candidate's host gets."""
    request = registry.dialect(found.target.dialect).call(found.request, found.target)
    body: dict[str, Any] = json.loads(request.body)
    return body


@pytest.mark.parametrize("name", ["vllm", "sglang", "together", "fireworks", "lmstudio"])
def test_a_host_that_only_continues_text_gets_the_prompt_of_the_family(name: str) -> None:
    found = fitted(f"{name}/Qwen2.5-Coder-7B", strict=True)
    body = sent(found)
    assert body["prompt"] == QWEN
    assert "suffix" not in body
    assert "<|endoftext|>" in body["stop"]
    assert found.dropped == ()


@pytest.mark.parametrize("model", ["openai/gpt-3.5-turbo-instruct", "ollama/qwen2.5-coder:7b"])
def test_a_host_whose_completions_take_a_suffix_gets_it(model: str) -> None:
    body = sent(fitted(model, strict=True))
    assert (body["prompt"], body["suffix"]) == ("P", "S")


@pytest.mark.parametrize(
    ("suffix", "prompt"),
    [("", "<|fim_prefix|>P<|fim_suffix|><|fim_middle|>"), ("S", QWEN)],
)
def test_an_empty_suffix_still_means_fill_in_the_middle(suffix: str, prompt: str) -> None:
    assert fitted("vllm/qwen3-coder", suffix=suffix).request.prompts == (prompt,)


def test_each_prompt_of_a_list_gets_the_template() -> None:
    found = fitted("vllm/qwen3-coder", prompts=("P", "Q"))
    assert found.request.prompts == (QWEN, QWEN.replace("P<", "Q<"))
    split = fitted("together/qwen3-coder", prompts=("P", "Q"))
    assert split.split
    assert split.request.prompts == found.request.prompts


def test_the_stop_strings_of_the_template_come_before_those_of_the_caller() -> None:
    stop = fitted("sglang/codellama-7b", stop=("x", "<EOT>"), strict=True).request.stop
    assert stop == ("<MID>", "<SUF>", "<PRE>", "x", "<EOT>")


def test_stop_strings_beyond_the_number_of_the_host_are_emulated() -> None:
    found = fitted("vllm/qwen3-coder", stop=("X1", "Y1", "Z1"), strict=True)
    assert found.request.stop == BY_NAME["qwen-coder"].stop[:4]
    assert found.stops is not None
    assert found.stops.scan(0, "xY1")[1] >= 0


@pytest.mark.parametrize("extra", [{"min_tokens": 2}, {"include_stop_str_in_output": True}])
def test_where_stops_cannot_be_emulated_the_callers_own_are_kept(extra: dict[str, Any]) -> None:
    found = fitted("vllm/qwen3-coder", stop=("a", "b", "c"), openai_extra=extra)
    assert found.request.stop == ("<|endoftext|>", "a", "b", "c")
    assert found.stops is None


def test_a_template_sets_no_token_id_prompts() -> None:
    with pytest.raises(UnsupportedParameter) as caught:
        fitted("vllm/qwen3-coder", prompts=((1, 2),))
    assert "a prompt of token ids together with suffix" in caught.value.message


def test_echo_with_a_template_repeats_the_prompt_of_the_caller() -> None:
    request = a_request(prompts=("P",), suffix="S", echo=True)
    found = fit(request, target("vllm/qwen3-coder"), strict=True)
    assert (found.echo, found.request.echo) == (True, False)
    assert "echo" not in sent(found)
    batches = list(echoed(iter([[Started(), Delta(0, "M"), Finished(0, "stop")]]), request))
    text = "".join(event.text for batch in batches for event in batch if isinstance(event, Delta))
    assert text == "PM"


def test_echo_with_logprobs_and_a_template_is_refused() -> None:
    with pytest.raises(UnsupportedParameter) as caught:
        fitted("vllm/qwen3-coder", echo=True, logprobs=1)
    assert caught.value.param == "logprobs"
    assert fitted("vllm/qwen3-coder", logprobs=1).request.logprobs == 1


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("vllm/llama-3.1-8b", "can set fim in [providers.vllm] of sluice.toml."),
        ("openai/gpt-4.1-mini", "[providers.openai] of sluice.toml; with /completions also "),
        ("anthropic/claude-haiku-5-5", "doesn't support suffix."),
        ("local/pydoc", "doesn't support suffix."),
    ],
)
def test_a_refused_suffix_names_the_setting_where_one_can_help(model: str, words: str) -> None:
    with pytest.raises(UnsupportedParameter) as caught:
        fitted(model)
    assert words in caught.value.message
    assert caught.value.message.startswith(f"{model} doesn't support suffix.")
    assert (caught.value.param, caught.value.status) == ("suffix", 400)
    assert ("sluice.toml" in caught.value.message) == ("sluice.toml" in words)


def test_among_fallbacks_a_target_that_can_fill_in_is_used() -> None:
    request = a_request(prompts=("P",), suffix="S")
    chat, coder = target("openai/gpt-4.1-mini"), target("vllm/qwen3-coder")
    [found] = candidates(request, [chat, coder], strict=False)
    assert (found.target.name, found.request.prompts) == ("vllm/qwen3-coder", (QWEN,))


def test_a_request_without_a_suffix_is_unchanged() -> None:
    request = a_request(stop=("a",))
    for model in ("vllm/qwen3-coder", "llamacpp/m", "mistral/codestral-latest"):
        found = fit(request, target(model), strict=True)
        assert found == Candidate(target(model), request)
        assert found.target.fim is None


def test_a_template_of_sluice_toml_is_used() -> None:
    own = {"template": "<A>{prefix}<B>{suffix}<C>", "stop": ["<Z>"], "file": "<F>{path}:{text}"}
    request = a_request(prompts=("P",), suffix="S", files=FILES, infill=BODY)
    found = fit(request, target("vllm/mine", fim=own), strict=False)
    assert found.request.prompts == ("<F>a.py:A<A>P<B>S<C>",)
    assert found.request.stop == ("<Z>",)


# llama.cpp's own body


def asked_in_llamacpp(**fields: Any) -> Any:
    values = {"prompts": ("P",), "suffix": "S", "files": FILES, "infill": BODY, "max_tokens": 5}
    return a_request(**(values | fields))


def test_a_llamacpp_server_gets_the_body_as_it_came_with_its_own_model() -> None:
    found = fit(asked_in_llamacpp(stream=True), target("llamacpp/mine"), strict=True)
    assert sent(found) == BODY | {"model": "mine", "stream": True}
    assert found.dropped == ()


def test_other_targets_get_its_meaning_and_its_knobs_are_named() -> None:
    found = fit(asked_in_llamacpp(), target("vllm/qwen3-coder"), strict=False)
    assert found.dropped == ("id_slot", "samplers")
    body = sent(found)
    assert body["prompt"].startswith("<|repo_name|>repository\n<|file_sep|>a.py\nA\n")
    assert body["max_tokens"] == 5
    assert not {"id_slot", "samplers", "input_prefix"} & body.keys()
    with pytest.raises(UnsupportedParameter, match="id_slot"):
        fit(asked_in_llamacpp(), target("vllm/qwen3-coder"), strict=True)


def test_an_endpoint_without_a_place_for_other_files_drops_them_by_name() -> None:
    found = fit(asked_in_llamacpp(), target("mistral/codestral-latest"), strict=False)
    assert found.dropped == ("id_slot", "input_extra", "samplers")
    assert sent(found) == {
        "model": "codestral-latest", "prompt": "P", "suffix": "S", "max_tokens": 5,
    }  # fmt: skip


def test_a_host_without_n_answers_with_one_result_instead_of_several() -> None:
    request = asked_in_llamacpp(n=3)
    one = fit(request, target("lmstudio/qwen3-coder"), strict=False)
    assert (one.request.n, one.dropped) == (None, ("id_slot", "n_cmpl", "samplers"))
    assert fit(request, target("vllm/qwen3-coder"), strict=False).request.n == 3
    assert fit(request, target("llamacpp/m"), strict=True).request.n == 3


def test_a_request_that_only_fills_the_cache_costs_other_hosts_one_token() -> None:
    request = asked_in_llamacpp(max_tokens=0)
    assert fit(request, target("vllm/qwen3-coder"), strict=False).request.max_tokens == 1
    assert fit(request, target("llamacpp/m"), strict=True).request.max_tokens == 0


@pytest.mark.parametrize("model", ["local/pydoc", "openai/gpt-4.1-mini", "vllm/llama-3.1-8b"])
def test_a_target_that_cannot_fill_in_refuses_llamacpps_body_too(model: str) -> None:
    with pytest.raises(UnsupportedParameter) as caught:
        fit(asked_in_llamacpp(), target(model), strict=False)
    assert (caught.value.param, caught.value.details) == (
        "suffix",
        {"parameter": "suffix", "target": model},
    )


@pytest.mark.parametrize("model", ["ollama/qwen2.5-coder:7b", "deepseek/m", "sglang/starcoder"])
def test_no_other_host_gets_llamacpps_body(model: str) -> None:
    found = fit(asked_in_llamacpp(), target(model), strict=False)
    assert (found.request.infill, found.request.files) == ({}, ())
    assert {"id_slot", "samplers"} <= {*found.dropped}


def test_a_limit_of_the_row_holds_for_a_body_that_passes_through() -> None:
    with pytest.raises(UnsupportedParameter, match="n above 1"):
        fit(asked_in_llamacpp(n=2), target("llamacpp/m", limits={"n": 1}), strict=False)


def test_a_body_that_is_nested_too_deeply_is_refused() -> None:
    deep: Any = 1
    for _ in range(5000):
        deep = [deep]
    with pytest.raises(InvalidRequest, match="nested too deeply"):
        fit(asked_in_llamacpp(infill=BODY | {"x": deep}), target("llamacpp/m"), strict=False)


@pytest.mark.parametrize("field", ["min_tokens", "metadata", "prompt_cache_key"])
def test_mistral_gets_only_the_fields_that_it_knows(field: str) -> None:
    found = fitted("mistral/codestral-latest", openai_extra={field: 1, "top_k": 40}, seed=7)
    assert sent(found) == {
        "model": "codestral-latest", "prompt": "P", "suffix": "S", "random_seed": 7, field: 1,
    }  # fmt: skip
    assert found.dropped == ("top_k",)
