"""fim_templates.py: which family a model belongs to, and the prompt that its family reads."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from completion import SourceFile
from providers import fim_templates
from providers.fim_templates import (
    BY_NAME,
    FAMILIES,
    FILE_HAS,
    PLACEHOLDER,
    PROMPT_HAS,
    REPOSITORY_HAS,
    FimTemplate,
    build,
    family_of,
)

MODELS = {
    "qwen-coder": (
        *("Qwen/Qwen2.5-Coder-7B", "Qwen/Qwen2.5-Coder-32B-Instruct", "qwen2.5-coder-7b@q4_k_m"),
        *("accounts/fireworks/models/qwen2p5-coder-32b", "Qwen/Qwen3-Coder-30B-A3B-Instruct"),
        *("qwen3-coder-next", "/models/Qwen2.5-Coder-1.5B/", "unsloth/Qwen2.5-Coder-7B-GGUF"),
    ),
    "codeqwen": ("Qwen/CodeQwen1.5-7B", "codeqwen1.5-7b-chat"),
    "deepseek": (
        *("deepseek-ai/deepseek-coder-6.7b-base", "deepseek-ai/DeepSeek-Coder-V2-Lite-Base"),
        *("deepseek-ai/DeepSeek-V4-Flash",),
    ),
    "starcoder2": ("bigcode/starcoder2-15b", "starcoder2-3b"),
    "santacoder": ("bigcode/santacoder", "bigcode/gpt_bigcode-santacoder"),
    "starcoder": ("bigcode/starcoder", "bigcode/starcoderbase-1b", "bigcode/tiny_starcoder_py"),
    "codellama": ("codellama/CodeLlama-7b-hf", "meta-llama/CodeLlama-13b-Instruct-hf"),
    "codegemma": ("google/codegemma-2b", "google/codegemma-7b", "google/codegemma-1.1-2b"),
    "codestral": ("mistralai/Codestral-22B-v0.1", "codestral-latest", "codestral-2508"),
    "granite-4": ("ibm-granite/granite-4.0-h-tiny", "granite-4.0-micro"),
    "granite-code": ("ibm-granite/granite-8b-code-base-4k", "granite-34b-code-instruct"),
    "codegeex4": ("THUDM/codegeex4-all-9b",),
    "glm-4": ("THUDM/glm-4-9b", "zai-org/GLM-4.5-Air", "GLM-4-32B-0414"),
    "seed-coder": ("ByteDance-Seed/Seed-Coder-8B-Base",),
    "mellum": ("JetBrains/Mellum-4b-base", "mellum2"),
    "stable-code": ("stabilityai/stable-code-3b",),
    "refact": ("smallcloudai/Refact-1_6B-fim",),
    "falcon-h1-tiny-coder": ("tiiuae/Falcon-H1-Tiny-Coder-90M",),
}
NOT_TRAINED = (
    *("mistralai/Mamba-Codestral-7B-v0.1", "codestral-mamba-latest", "codestral-embed"),
    *("infly/OpenCoder-8B-Base", "replit/replit-code-v1-3b", "zed-industries/zeta"),
    *("codellama/CodeLlama-34b-hf", "codellama/CodeLlama-70b-hf"),
    *("codellama/CodeLlama-7b-Python-hf", "codellama/CodeLlama-13b-Python-hf"),
    *("google/codegemma-7b-it", "google/codegemma-1.1-7b-it-GGUF", "google/gemma-2-9b"),
    *("stabilityai/stablelm-2-1_6b", "stable-diffusion-xl", "stabilityai/stable-code-instruct-3b"),
    *("Qwen/Qwen3-8B", "Qwen/Qwen2.5-7B-Instruct", "deepseek-ai/DeepSeek-R1", "deepseek-chat"),
    *("ibm-granite/granite-3.3-8b-base", "ibm-granite/granite-guardian-3.2-5b", "THUDM/glm-4v-9b"),
    *("zai-org/GLM-4.5V", "chatglm-6b", "meta-llama/Llama-3.1-8B", "gpt-oss-20b", "m", ""),
    *("qwen2.5-coder/other-model", "seed-oss-36b"),
)


@pytest.mark.parametrize(
    ("family", "model"), [(name, model) for name in MODELS for model in MODELS[name]]
)
def test_a_models_name_tells_its_family(family: str, model: str) -> None:
    found = family_of(model)
    assert found is not None
    assert found.name == family


@pytest.mark.parametrize("model", NOT_TRAINED)
def test_a_model_that_was_not_trained_to_fill_in_has_no_family(model: str) -> None:
    assert family_of(model) is None


def test_every_family_has_examples_a_source_and_a_unique_name() -> None:
    assert set(MODELS) == {family.name for family in FAMILIES} == set(BY_NAME)
    assert len(BY_NAME) == len(FAMILIES)
    assert all(family.source and family.models and family.stop for family in FAMILIES)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_a_family_has_valid_layouts_and_distinct_stop_strings(family: FimTemplate) -> None:
    prompt = PLACEHOLDER.findall(family.prompt)
    assert {"prefix", "suffix"} <= {*prompt} <= {*PROMPT_HAS}
    assert len(prompt) == len({*prompt})
    assert {"text"} <= {*PLACEHOLDER.findall(family.file)} <= {*FILE_HAS}
    assert PLACEHOLDER.findall(family.repository) == [*REPOSITORY_HAS]
    stops = (*family.stop, *family.file_stop)
    assert len(stops) == len({*stops})
    assert all(stops)


PROMPTS = {
    "qwen-coder": "<|fim_prefix|>P<|fim_suffix|>S<|fim_middle|>",
    "codeqwen": "<fim_prefix>P<fim_suffix>S<fim_middle>",
    "deepseek": "<\uff5cfim▁begin\uff5c>P<\uff5cfim▁hole\uff5c>S<\uff5cfim▁end\uff5c>",
    "starcoder2": "<fim_prefix>P<fim_suffix>S<fim_middle>",
    "santacoder": "<fim-prefix>P<fim-suffix>S<fim-middle>",
    "starcoder": "<fim_prefix>P<fim_suffix>S<fim_middle>",
    "codellama": "<PRE> P <SUF>S <MID>",
    "codegemma": "<|fim_prefix|>P<|fim_suffix|>S<|fim_middle|>",
    "codestral": "[SUFFIX]S[PREFIX]P",
    "granite-4": "<|fim_prefix|>P<|fim_suffix|>S<|fim_middle|>",
    "granite-code": "<fim_prefix>P<fim_suffix>S<fim_middle>",
    "codegeex4": "<|user|>\n###MODE:BLOCK\n<|code_suffix|>S<|code_prefix|>P<|code_middle|>"
    "<|assistant|>\n",
    "glm-4": "<|code_prefix|>P<|code_suffix|>S<|code_middle|>",
    "seed-coder": "<[fim-suffix]>S<[fim-prefix]>P<[fim-middle]>",
    "mellum": "<fim_suffix>S<fim_prefix>P<fim_middle>",
    "stable-code": "<fim_prefix>P<fim_suffix>S<fim_middle>",
    "refact": "<fim_prefix>P<fim_suffix>S<fim_middle>",
    "falcon-h1-tiny-coder": "<|prefix|>P<|suffix|>S<|middle|>",
}


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_the_prompt_of_a_family_has_its_tokens_in_their_order(family: FimTemplate) -> None:
    assert build(family, "P", "S") == PROMPTS[family.name]


FILES = (SourceFile("a.py", "A"), SourceFile("b.py", "B"))
WITH_FILES = {
    "qwen-coder": "<|repo_name|>repository\n<|file_sep|>a.py\nA\n<|file_sep|>b.py\nB\n"
    "<|file_sep|>current\n<|fim_prefix|>P<|fim_suffix|>S<|fim_middle|>",
    "starcoder2": "<file_sep>A<file_sep>B<file_sep><fim_prefix>P<fim_suffix>S<fim_middle>",
    "codegemma": "A<|file_separator|>B<|file_separator|>"
    "<|fim_prefix|>P<|fim_suffix|>S<|fim_middle|>",
    "codestral": "[SUFFIX]S[PREFIX]+++++ a.py\nA\n\n+++++ b.py\nB\n\n+++++ current\nP",
    "codegeex4": "<|user|>\n###REFERENCE:\n###PATH:a.py\nA\n###REFERENCE:\n###PATH:b.py\nB\n"
    "###MODE:BLOCK\n<|code_suffix|>S<|code_prefix|>P<|code_middle|><|assistant|>\n",
    "mellum": "<filename>a.py\nA<filename>b.py\nB<filename>current\n"
    "<fim_suffix>S<fim_prefix>P<fim_middle>",
}
SNIPPETS = "\n\n--- snippet ---\n\nA\n\n--- snippet ---\n\nB"


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_other_files_come_in_the_layout_of_the_family_or_as_snippets(family: FimTemplate) -> None:
    expected = WITH_FILES.get(family.name, SNIPPETS + PROMPTS[family.name])
    assert build(family, "P", "S", FILES) == expected


def test_codestral_stops_at_the_next_file_only_if_there_are_files() -> None:
    codestral = BY_NAME["codestral"]
    assert fim_templates.stops(codestral) == ("[PREFIX]", "[SUFFIX]")
    assert fim_templates.stops(codestral, FILES) == ("[PREFIX]", "[SUFFIX]", "\n+++++ ")


def test_no_family_stops_at_a_comment() -> None:
    assert all("//" not in family.stop for family in FAMILIES)


def test_a_special_family_comes_before_the_general_one_that_its_models_match_too() -> None:
    names = [family.name for family in FAMILIES]
    order = ("starcoder2", "santacoder", "starcoder")
    assert all(names.index(first) < names.index(then) for first, then in pairwise(order))


@given(prefix=st.text(), suffix=st.text(), text=st.text(), name=st.sampled_from(sorted(BY_NAME)))
def test_the_texts_are_in_the_prompt_unchanged(
    prefix: str, suffix: str, text: str, name: str
) -> None:
    family = BY_NAME[name]
    layout = family.prompt.replace("{files}", "")
    parts = PLACEHOLDER.split(layout)
    values = {"prefix": prefix, "suffix": suffix}
    parts[1::2] = [values[part] for part in parts[1::2]]
    assert build(family, prefix, suffix) == "".join(parts)
    assert text in build(family, "P", "S", [SourceFile("a.py", text)])


@pytest.mark.parametrize(
    "text", ["{prefix}", "{suffix}{files}", "{0}{}", "<|fim_middle|>", "{text}{path}", "%s\\1"]
)
def test_a_text_with_placeholders_or_tokens_passes_as_text(text: str) -> None:
    family = BY_NAME["qwen-coder"]
    expected = f"<|fim_prefix|>{text}<|fim_suffix|>{text}<|fim_middle|>"
    assert build(family, text, text) == expected
    assert build(family, text, text, [SourceFile(text, text)]).endswith(expected)
