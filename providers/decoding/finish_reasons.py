"""The meaning of the finish reasons of all hosts, in one table.

- The module is pure.
- A reason that means a failure never becomes "stop".
- Dialects share the table, because hosts speak each other's formats: GLM's own words also come in
  Anthropic's format, and Gemini's in OpenAI's.
- Spelling doesn't matter: MAX_TOKENS, maxTokens, max-tokens and FINISH_REASON_MAX_TOKENS count as
  one word.

Source: the references of OpenAI, Anthropic, Gemini, Mistral, DeepSeek, GLM (Zhipu), Groq,
OpenRouter and Together, and the sources of vLLM, SGLang, TGI and LM Studio (read 2026-11).
"""

from __future__ import annotations

import re
from collections.abc import Container, Mapping
from types import MappingProxyType
from typing import Any, Final

from completion import FinishReason
from errors import UpstreamError

GEMINI_FILTERS: Final = (
    *("SAFETY", "RECITATION", "LANGUAGE", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII"),
    *("IMAGE_SAFETY", "IMAGE_PROHIBITED_CONTENT", "IMAGE_RECITATION", "MODEL_ARMOR"),
)
"""Gemini's words for a filter that removed the output."""
GEMINI_FAILURES: Final = (
    *("OTHER", "IMAGE_OTHER", "NO_IMAGE", "MALFORMED_RESPONSE", "MISSING_THOUGHT_SIGNATURE"),
    *("MALFORMED_FUNCTION_CALL", "UNEXPECTED_TOOL_CALL", "TOO_MANY_TOOL_CALLS"),
)
"""Gemini's words for output that is not the requested text, although no filter removed it."""

REASONS: Final[dict[str, FinishReason]] = {
    **dict.fromkeys(
        (
            *("length", "max_tokens", "max_length", "max_new_tokens", "max_output_tokens"),
            *("max_completion_tokens", "max_predicted_tokens_reached", "token_limit", "limit"),
            *("model_length", "model_context_window_exceeded", "context_window_exceeded"),
            *("context_length", "context_length_exceeded", "context_length_reached"),
            *("truncated", "repetition"),
        ),
        "length",
    ),
    **dict.fromkeys(
        (
            *("content_filter", "content_filtered", "content_policy", "content_policy_violation"),
            *("sensitive", "refusal", "moderation", "blocked"),
            *("guardrail", "guardrails", "guardrail_intervened", *GEMINI_FILTERS),
        ),
        "content_filter",
    ),
}
"""The finish reason for each host's word. Any other word that isn't a failure, known (stop, eos,
end_turn, tool_calls, ...) or new, becomes "stop". vLLM ends a choice with "repetition" when it cuts
off text that repeats itself, so the choice isn't complete."""

FAILURES: Final = frozenset(
    (
        *("error", "abort", "aborted", "failed", "failure", "exception", "timeout", "timed_out"),
        *("network_error", "insufficient_system_resource", "overloaded", "engine_overloaded"),
        *("cancelled", "canceled", "user_cancel", "model_unloaded", "function_call_filter"),
        *GEMINI_FAILURES,
    )
)
"""The words that report a failure: the output is not the whole answer, and neither a limit nor a
filter ended it."""

FAILING: Final = frozenset(("error", "failed", "failure", "exception", "timeout", "overloaded"))
"""The parts of an unknown word that make it a failure, such as upstream_error."""

NOT_YET: Final = frozenset(("", "null", "none", "unspecified", "finishreasonunspecified"))
"""The words that some hosts send before a choice has finished, without separators."""

WORD_FIELDS: Final = ("type", "reason", "finish_reason", "stop_reason", "name", "value", "code")
"""The fields that may hold the word, if a finish reason is an object."""


def _plain(word: str) -> str:
    """Return a word in lower case, without separators."""
    return re.sub("[^a-z0-9]", "", word.lower())


_REASONS: Final = {_plain(word): reason for word, reason in REASONS.items()}
_EXACT: Final[dict[str, FinishReason]] = {"stop": "stop", **REASONS}
_FAILURES: Final = frozenset(map(_plain, FAILURES))


def meaning_of(
    raw: Any,
    own: Mapping[str, FinishReason] = MappingProxyType({}),
    failures: Container[str] = (),
    native: Any = None,
) -> FinishReason | None:
    """Return the meaning of a host's finish reason, or None if the choice hasn't finished.

    Args:
        raw: the finish reason: a word, or an object such as {"type": "length"}.
        own: the dialect's own words, which are searched before the table.
        failures: the dialect's own words that report a failure.
        native: the finish reason of the host behind the host (OpenRouter's native_finish_reason).
            It counts if `raw` is missing or only says "stop".

    Raises:
        UpstreamError: The finish reason reports a failure.
    """
    if native is None and isinstance(raw, str) and raw not in failures:  # the usual case, fast
        if raw in own:
            return own[raw]
        if raw in _EXACT:
            return _EXACT[raw]
    word = word_of(raw)
    if word in failures:
        raise failed(word, raw)
    reason = own.get(word) or _meaning(word, raw)
    if native is None or reason in ("length", "content_filter"):
        return reason
    return _meaning(word_of(native), native) or reason


def _meaning(word: str, raw: Any) -> FinishReason | None:
    if _plain(word) in NOT_YET:
        return None
    # Gemini's OpenAI-compatible API adds details: "content_filter: RECITATION".
    for part in (word, *word.split(":", 1)):
        plain = _plain(part).removeprefix("finishreason")
        if plain in _REASONS:
            return _REASONS[plain]
        if plain in _FAILURES:
            raise failed(word, raw)
    if FAILING.intersection(re.findall("[a-z]+", word.lower())):
        raise failed(word, raw)
    return "stop"


def word_of(raw: Any) -> str:
    """Return the word of a finish reason of any shape, or "" if there is none."""
    if isinstance(raw, list) and raw:
        raw = raw[0]
    if isinstance(raw, dict):
        words = [word for name in WORD_FIELDS if isinstance(word := raw.get(name), str)]
        # The only key may be the word: {"length": {...}}.
        raw = next(iter(words or raw), None) if words or len(raw) == 1 else None
    return raw if isinstance(raw, str) else ""


def failed(word: str, raw: Any = None) -> UpstreamError:
    """Return the error for a finish reason. SGLang's object has the host's status and message."""
    about = raw if isinstance(raw, dict) else {}
    status, message = about.get("status_code"), about.get("message")
    return UpstreamError(
        "The upstream reported a failed completion.",
        upstream_status=status if isinstance(status, int) and 400 <= status < 600 else None,
        upstream_code=word,
        upstream_message=message if isinstance(message, str) else None,
    )
