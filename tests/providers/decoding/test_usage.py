"""usage.py, and what each dialect reads for it: costs, tiers, and units other than tokens."""

from __future__ import annotations

import json
from typing import Any

import pytest

from completion import Batch, CompletionRequest, Delta, Prompt, Started, Usage, Used, fold
from providers.anthropic.response import AnthropicResponse, read_whole
from providers.bedrock.response import usage_of as bedrock_usage
from providers.bedrock.schemas import CacheDetail
from providers.bedrock.schemas import Tokens as BedrockTokens
from providers.decoding import sse
from providers.decoding.usage import MOST_COST, nano_dollars
from providers.google.response import usage_of as google_usage
from providers.google.schemas import Tokens as GoogleTokens
from providers.openai.response import OpenAIResponse
from streams.tally import Tally

PROMPTS: tuple[Prompt, ...] = ("hi",)
TOKENS = {"prompt_tokens": 10, "completion_tokens": 4, "total_tokens": 14}


@pytest.mark.parametrize(
    ("value", "nano"),
    [
        (0, 0),
        (0.0123, 12_300_000),
        ("0.0123", 12_300_000),
        (1e-10, 1),
        (MOST_COST, MOST_COST * 10**9),
        (MOST_COST + 1, None),
        (-0.1, None),
        (float("nan"), None),
        (float("inf"), None),
        ("1e999999999", None),
        ("free", None),
        (True, None),
        (None, None),
        ([1], None),
    ],
)
def test_only_a_plausible_number_is_a_cost(value: object, nano: int | None) -> None:
    assert nano_dollars(value) == nano


def openai_events(*chunks: dict[str, Any]) -> Batch:
    batch: Batch = []
    response = OpenAIResponse(CompletionRequest(prompts=PROMPTS))
    for chunk in chunks:
        response.read(json.dumps(chunk).encode(), batch)
    response.finish_all(batch)
    return batch


def openai_usage(usage: dict[str, Any], **more: Any) -> Usage:
    choice = {"index": 0, "message": {"content": "ok"}, "finish_reason": "stop"}
    found = fold(openai_events({"model": "m", "choices": [choice], "usage": usage, **more})).usage
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("more", "nano"),
    [
        ({"cost": 0.5}, 5 * 10**8),
        ({"cost": 0}, 0),
        ({"cost": {"total_cost": 3.51, "currency": "USD"}}, 3_510_000_000),
        ({"cost": {"total": 1}}, None),
        ({"cost": None}, None),
        ({"cost": "?"}, None),
        ({"estimated_cost": 0.25}, 25 * 10**7),
        ({"cost_in_usd_ticks": 37_756_000}, 3_775_600),
        ({"cost": 0.01, "is_byok": False, "cost_details": {"upstream_inference_cost": 1}}, 10**7),
        (
            {"cost": 0.01, "is_byok": True, "cost_details": {"upstream_inference_cost": 1}},
            1_010_000_000,
        ),
        ({}, None),
    ],
)
def test_costs_of_openai_compatible_hosts_are_read(more: dict[str, Any], nano: int | None) -> None:
    assert openai_usage(TOKENS | more).cost_nano == nano


def test_perplexity_counts_reasoning_separately_and_other_hosts_do_not() -> None:
    units = {"reasoning_tokens": 3, "citation_tokens": 7, "num_search_queries": 2}
    found = openai_usage(TOKENS | units)
    assert found == Usage(10, 7, reasoning_tokens=3, citation_tokens=7, searches=2)
    assert openai_usage(TOKENS | {"reasoning_tokens": 3}) == Usage(10, 4, reasoning_tokens=3)
    assert openai_usage(TOKENS | {"reasoning_tokens": 9}) == Usage(10, 13, reasoning_tokens=9)


@pytest.mark.parametrize(
    ("told", "tier"), [("priority", "priority"), ("FLEX", "flex"), (None, None), (3, None)]
)
def test_the_service_tier_of_a_response_is_read(told: Any, tier: str | None) -> None:
    assert openai_usage(TOKENS, service_tier=told).tier == tier


def test_the_service_tier_of_a_stopped_stream_is_known() -> None:
    first = {"model": "m", "service_tier": "flex", "choices": [{"delta": {"content": "Hello"}}]}
    batch = openai_events(first)
    assert batch[0] == Started("m", tier="flex")
    tally = Tally(PROMPTS)
    tally.add(batch)
    assert tally.usage(failed=False).tier == "flex"


def test_usage_in_a_later_chunk_has_the_service_tier_of_the_first_chunk() -> None:
    first = {"model": "m", "service_tier": "flex", "choices": [{"delta": {"content": "Hello"}}]}
    found = fold(openai_events(first, {"choices": [], "usage": TOKENS})).usage
    assert found == Usage(10, 4, tier="flex")


def test_a_cost_that_covers_one_of_several_choices_is_not_used() -> None:
    tally = Tally(PROMPTS, choices=2)
    tally.add([Delta(0, "long text " * 9), Delta(1, "x" * 90), Used(Usage(10, 1, cost_nano=5))])
    assert tally.usage(failed=False).cost_nano is None


ANTHROPIC = {
    "input_tokens": 5,
    "cache_creation_input_tokens": 30,
    "cache_creation": {"ephemeral_5m_input_tokens": 10, "ephemeral_1h_input_tokens": 20},
    "output_tokens": 1,
    "service_tier": "priority",
    "speed": "fast",
}
SERVED = Usage(35, 3, 0, 30, cache_write_1h_tokens=20, tier="priority", speed="fast", searches=2)


def anthropic_stream(start: dict[str, Any], delta: dict[str, Any]) -> Batch:
    batch: Batch = []
    response = AnthropicResponse()
    for frame in (
        {"type": "message_start", "message": {"model": "m", "usage": start}},
        {"type": "content_block_delta", "delta": {"type": "text_delta", "text": "ok"}},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": delta},
        {"type": "message_stop"},
    ):
        response.read(sse.Frame(json.dumps(frame).encode(), str(frame["type"])), batch)
    return batch


def test_anthropic_reports_lifetimes_tier_speed_and_searches_in_streams_and_bodies() -> None:
    tools = {"server_tool_use": {"web_search_requests": 2}}
    assert fold(anthropic_stream(ANTHROPIC, {"output_tokens": 3} | tools)).usage == SERVED
    batch: Batch = []
    body = {"model": "m", "content": [{"type": "text", "text": "ok"}], "stop_reason": "end_turn"}
    usage = ANTHROPIC | tools | {"output_tokens": 3}
    read_whole(json.dumps(body | {"usage": usage}).encode(), batch)
    assert fold(batch).usage == SERVED


def test_a_stopped_anthropic_stream_keeps_the_lifetimes_and_the_speed() -> None:
    tally = Tally(PROMPTS)
    tally.add(anthropic_stream(ANTHROPIC, {})[:3])
    found = tally.usage(failed=False)
    assert (found.cache_write_1h_tokens, found.speed, found.source) == (20, "fast", "estimate")


def test_anthropic_cache_writes_may_be_reported_by_lifetime_only() -> None:
    usage = {name: value for name, value in ANTHROPIC.items() if not name.endswith("_tokens")}
    found = fold(anthropic_stream(usage | {"input_tokens": 5}, {"output_tokens": 3})).usage
    assert found is not None
    assert (found.input_tokens, found.cache_write_tokens) == (35, 30)


def test_more_tokens_of_a_lifetime_than_cache_writes_are_not_believed() -> None:
    odd = BedrockTokens(5, 1, 0, 10, [CacheDetail("1h", 99), CacheDetail("5m", 1), CacheDetail()])
    found = bedrock_usage(odd)
    assert found == Usage(15, 1, 0, 10, cache_write_1h_tokens=10)


def test_gemini_reports_its_service_tier() -> None:
    found = google_usage(GoogleTokens(10, candidates_token_count=2, service_tier="PRIORITY"))
    assert found == Usage(10, 2, tier="priority")
