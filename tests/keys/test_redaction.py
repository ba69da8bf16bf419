"""Tests of keys/redaction.py: secrets are redacted in all texts that others see."""

from __future__ import annotations

import re
import secrets
import string
import time
from urllib.parse import quote

import pytest
from genai_prices.data_snapshot import get_snapshot
from hypothesis import given
from hypothesis import strategies as st

from keys import redaction
from keys.redaction import Secret
from tests.support.pace import scaled_cpu


def test_secret_is_hidden_in_repr_and_str_and_shown_by_reveal() -> None:
    secret = Secret("sk-very-secret")
    for text in (repr(secret), str(secret), f"{secret}", f"{secret!r}", repr([secret])):
        assert "very-secret" not in text
    assert secret.reveal() == "sk-very-secret"


@given(st.from_regex(redaction.KEY_LIKE))
def test_text_that_looks_like_a_key_is_detected_and_masked(text: str) -> None:
    assert redaction.may_hold_key(text)
    assert redaction.mask(text) != text


def test_may_hold_key_is_false_for_a_usual_log_line() -> None:
    assert not redaction.may_hold_key("key_CC8A3EfCkouw\n550e8400-e29b-41d4\nopenai/gpt-4o-mini")


def test_secrets_are_equal_when_their_texts_are() -> None:
    assert Secret("a") == Secret("a")
    assert Secret("a") != Secret("b")
    assert Secret("a") != "a"
    assert len({Secret("a"), Secret("a"), Secret("b")}) == 2


# Pieces of a secret


def hidden_by_pieces(secret: str, text: str, least: int) -> str:
    """Return the text without the secret's pieces, by comparing each piece with each place."""
    size = min(least, len(secret))
    pieces = {secret[at : at + size] for at in range(len(secret) - size + 1)}
    kept, at = "", 0
    while at < len(text):
        if text[at : at + size] not in pieces:
            kept, at = kept + text[at], at + 1
            continue
        while text[at : at + size] in pieces:
            at += 1
        kept, at = kept + redaction.MARK, at + size - 1
    return kept


@given(st.data(), st.text("ab0", min_size=1, max_size=40), st.integers(1, 16))
def test_every_piece_of_a_secret_is_hidden_and_nothing_else(
    data: st.DataObject, secret: str, least: int
) -> None:
    start = data.draw(st.integers(0, len(secret)))
    piece = secret[start : data.draw(st.integers(start, len(secret)))]
    text = data.draw(st.text("ab0x", max_size=30)) + piece + data.draw(st.text("ab0x", max_size=30))
    assert Secret(secret).hidden_in(text, least) == hidden_by_pieces(secret, text, least)


def test_a_long_secret_costs_hardly_more_than_a_short_one() -> None:
    text = "A valid API key is required: send it as 'Authorization: Bearer KEY'." * 3

    def cost(length: int) -> float:
        secret = Secret(secrets.token_urlsafe(length)[:length])
        rounds = []
        for _ in range(5):
            began = time.process_time()
            for _ in range(20):
                assert secret.hidden_in(text) == text
            rounds.append(time.process_time() - began)
        return min(rounds)

    assert cost(8192) < 100 * cost(50)  # it was 226 times as much: each piece was looked for


# Names that look like generated keys

LETTERS, LOWER, HEX = string.ascii_letters, string.ascii_lowercase, string.hexdigits[:16]
ALNUM, URL_SAFE = LETTERS + string.digits, LETTERS + string.digits + "-_"
FORMATS = {
    "Sluice": ("sk-sluice-", URL_SAFE, 43),
    "OpenAI, project": ("sk-proj-", URL_SAFE, 156),
    "OpenAI, old": ("sk-", ALNUM, 48),
    "Anthropic": ("sk-ant-api03-", URL_SAFE, 95),
    "OpenRouter": ("sk-or-v1-", HEX, 64),
    "DeepSeek": ("sk-", HEX, 32),
    "xAI": ("xai-", ALNUM, 80),
    "Groq": ("gsk_", ALNUM, 52),
    "Hugging Face": ("hf_", LETTERS, 34),
    "NVIDIA": ("nvapi-", URL_SAFE, 64),
    "Fireworks": ("fw_", ALNUM, 24),
    "Cerebras": ("csk-", LOWER + string.digits, 48),
    "Perplexity": ("pplx-", ALNUM, 48),
    "Google": ("AIza", URL_SAFE, 35),
    "Bedrock": ("ABSK", ALNUM, 128),
}
HF_NAMES = [
    "hf-internal-testing/tiny-random-LlamaForCausalLM", "xai-org/grok-1", "xai-org/grok-2",
    "meta-llama/Llama-3.1-405B-Instruct-FP8", "Qwen/Qwen2.5-Coder-32B-Instruct-GPTQ-Int4",
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-32B", "mistralai/Mixtral-8x22B-Instruct-v0.1",
    "HuggingFaceTB/SmolLM2-1.7B-Instruct", "HuggingFaceH4/zephyr-7b-beta", "openai-community/gpt2",
    "TheBloke/Llama-2-70B-Chat-GGUF", "unsloth/Meta-Llama-3.1-8B-bnb-4bit", "google/gemma-2-27b-it",
    "nvidia/Llama-3_1-Nemotron-51B-Instruct", "microsoft/Phi-3.5-MoE-instruct", "bigcode/tiny",
    "perplexity-ai/r1-1776", "sk-hynix/some-model-7b-instruct", "acme/hf-finetuned-mistral-7b-v0.3",
    "acme/pk_model_v2_final_2025-10-01", "trl-lib/hf-Qwen2.5-0.5B-Instruct-ORPO",
    "accounts/fireworks/models/llama-v3p1-405b-instruct", "ft:gpt-4o-mini-2024-07-18:a::AbC1dE",
    "us.anthropic.claude-haiku-4-5-20251001-v1:0", "pplx-70b-online", "pplx-7b-chat", "task-sk-x",
    "arn:aws:bedrock:us-east-1:123456789012:inference-profile/us.amazon.nova-lite-v1:0",
    "gguf/desk-assistant-13b-chat-q4_K_M", "llama3.2:3b-instruct-q8_0", "@cf/meta/llama-3-8b-awq",
]  # fmt: skip


def generated(name: str) -> str:
    prefix, letters, length = FORMATS[name]
    return prefix + "".join(secrets.choice(letters) for _ in range(length))


@pytest.mark.parametrize("name", FORMATS)
def test_a_generated_key_is_detected_in_a_name_in_any_spelling(name: str) -> None:
    for _ in range(300):
        key = generated(name)
        encoded = "".join(f"%{ord(letter):02x}" for letter in key)
        for text in (key, f"mine/{key}", f"mine/x_{key}", quote(encoded), f"a b {key}, c"):
            assert redaction.holds_key(text), text
            hidden = redaction.hide_generated(text)
            assert redaction.MARK in hidden
            assert key not in hidden
            assert encoded not in hidden
        if letters_differ(key):
            assert redaction.holds_key(key.upper())


def letters_differ(key: str) -> bool:
    """Return True if the key is recognizable in capitals: it has a long run, as nearly all have."""
    return any(len(run) > redaction.LONGEST_WORD for run in re.findall("[A-Za-z0-9]+", key[5:]))


def test_no_name_of_a_model_counts_as_a_key() -> None:
    listed = {
        name
        for provider in get_snapshot().providers
        for model in provider.models
        for name in (model.id, f"{provider.id}/{model.id}")
    }
    assert len(listed) > 2000
    for name in [*listed, *HF_NAMES]:
        last = name.rpartition("/")[2]
        for text in (name, name.upper(), f"huggingface/{name}", quote(name, safe=""), f"hf-{last}"):
            assert not redaction.holds_key(text), text
            assert redaction.hide_generated(text) == text


# Other spellings of a known secret


@pytest.mark.parametrize(
    "secret",
    [generated("Sluice"), "a0" * 10 + "-B_c.D" * 4, "x" * 40],
    ids=["random", "mixed", "plain"],
)
def test_other_spellings_of_a_secret_are_hidden(secret: str) -> None:
    encoded = "".join(f"%{ord(letter):02X}" for letter in secret)
    spellings = [
        secret.upper(), secret.lower(), secret.swapcase(), encoded, quote(encoded), encoded.lower(),
        ".".join(secret), "-".join(secret), secret[8:], secret[:-8].upper(), "/".join(secret),
    ]  # fmt: skip
    for text in spellings:
        for around in ("{}", "Model 'mine/{}' was not found.", "a {} b {}"):
            shown = redaction.hide(around.replace("{}", text), [secret])
            assert redaction.MARK in shown
            assert redaction.flat(secret)[10:26] not in redaction.flat(shown)


def test_a_spelling_with_plain_pieces_is_hidden_as_a_whole() -> None:
    secret = "ABCDEFGH12" + "abcdefghij" + "KLMNOPQR34" + "klmnopqrst"
    capitals = secret.upper()
    assert redaction.hide(f"x {capitals} y", [secret]) == f"x {redaction.MARK} y"
    for text in (f"{capitals}/{secret}", f"{secret[:20]}{capitals}"):
        shown = redaction.hide(text, [secret]).split(redaction.MARK)
        assert max(map(len, shown)) < redaction.LEAST_PIECE


def test_a_secret_spread_over_words_hides_the_whole_text() -> None:
    secret = generated("Sluice")
    assert redaction.hide(f"so {' '.join(secret)} it is", [secret]) == redaction.MARK


@given(st.text("abcdefgh 01-_/.%", max_size=200))
def test_other_texts_are_shown_unchanged(text: str) -> None:
    assert redaction.hide(text, ["ZZZZZZZZyyyyyyyyXXXXXXXX9999"]) == text


@given(st.data(), st.text("ab0", min_size=1, max_size=60), st.text("ab0x", max_size=60))
def test_a_piece_of_a_secret_is_found_by_both_ways_of_searching(
    data: st.DataObject, secret: str, text: str
) -> None:
    least = data.draw(st.integers(1, 16))
    size = min(least, len(secret))
    expected = any(secret[at : at + size] in text for at in range(len(secret) - size + 1))
    with pytest.MonkeyPatch.context() as patch:
        for small in (0, 10**9):
            patch.setattr(redaction, "SMALL", small)
            assert Secret(secret).has_piece_in(text, least) == expected


@pytest.mark.parametrize("letters", ["a", "ab", "a" * 15 + "b"])
def test_a_search_for_a_long_secret_in_long_names_takes_bounded_time(letters: str) -> None:
    secret, text = (letters * 8192)[:8192], ("a" * 14 + "c") * 4400
    began = time.process_time()
    Secret(secret).has_piece_in(text, 16)
    assert time.process_time() - began < scaled_cpu(0.03)
