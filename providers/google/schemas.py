"""Structs for the JSON of the Gemini API, with only the fields that Sluice reads.

Source: Gemini API reference, GenerateContentResponse, and the types of Google's own SDK (read
2026-11).
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from providers.decoding.lenient_json import Count, Text


class Part(msgspec.Struct):
    text: Text | None = None
    thought: bool | None = None


class Content(msgspec.Struct):
    parts: list[Part] | None = None


class Token(msgspec.Struct, rename="camel"):
    token: str | None = None
    log_probability: float | None = None


class Top(msgspec.Struct):
    candidates: list[Token] | None = None


class LogprobsResult(msgspec.Struct, rename="camel"):
    """Two parallel lists, with an entry for each token."""

    chosen_candidates: list[Token] | None = None
    top_candidates: list[Top] | None = None


class Candidate(msgspec.Struct, rename="camel"):
    index: int = 0
    content: Content | None = None
    finish_reason: Any = None
    error: Any = None
    logprobs_result: LogprobsResult | None = None


class Feedback(msgspec.Struct, rename="camel"):
    block_reason: str | None = None


class Tokens(msgspec.Struct, rename="camel"):
    """The `usageMetadata` object. The prompt's count includes cached tokens. The candidates' count
    excludes thoughts."""

    prompt_token_count: Count | None = None
    tool_use_prompt_token_count: Count | None = None
    cached_content_token_count: Count | None = None
    candidates_token_count: Count | None = None
    thoughts_token_count: Count | None = None
    service_tier: Any = None


class Chunk(msgspec.Struct, rename="camel"):
    """A GenerateContentResponse: a chunk of a stream, or a whole JSON body."""

    candidates: list[Candidate] | None = None
    prompt_feedback: Feedback | None = None
    usage_metadata: Tokens | None = None
    model_version: str | None = None
    error: Any = None


CHUNK: Final = msgspec.json.Decoder(Chunk)

CHUNK_FIELDS: Final = frozenset(f.encode_name for f in msgspec.structs.fields(Chunk))
CANDIDATE_FIELDS: Final = frozenset(f.encode_name for f in msgspec.structs.fields(Candidate))
"""The known fields of a chunk and of a candidate. The others are passed on to who asked."""
