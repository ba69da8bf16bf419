"""The native face: completions, stop-stream, active streams, and the key exchange."""

from __future__ import annotations

import re
from typing import Any

from flask import Blueprint, Response

from auth import auth, current_key, key_of, x_api_key
from completion import (
    Added,
    Batch,
    Completion,
    CompletionRequest,
    Delta,
    Finished,
    FinishReason,
    Logprobs,
    Summary,
)
from endpoints import calls, openai_sdk, passed_on, request_fields, resumable
from endpoints.added_fields import AddedFields
from endpoints.recorder import ReplayFace
from endpoints.responses import json_response
from endpoints.services import services
from errors import InvalidRequest, SluiceError, Unauthorized
from gateway.call import Outcome
from ledger.pricing import dollars
from quota.quota import instant
from streams.stream import Stream

bp = Blueprint("native", __name__, url_prefix="/api/v1")

FIELDS = (
    *("prompt", "model", "provider", "stream", "temperature", "max_tokens", "top_p"),
    *("frequency_penalty", "presence_penalty", "additional_params", "byok_api_key"),
    *("stream_id", "fallbacks", "resumable", "background"),
)
OPENAI_API = "POST /v1/completions, which is OpenAI's API,"
OPENAI_FIELDS = {
    "messages": " This is a completion: send the text as prompt, or the messages to "
    "POST /api/v1/chat/completions.",
    "stream_options": f" A stream has its usage here anyway; {OPENAI_API} takes this field.",
}
"""Advice for callers that send a field that only OpenAI's APIs have."""
TAKES_LISTS = f" {OPENAI_API} takes lists."
OPENAI_ONLY = frozenset(OPENAI_FIELDS)


@bp.post("/completions")
@auth.login_required
def completions() -> Response:
    openai_sdk.refuse("Sluice's own API")
    found, wanted = parse(request_fields.read_object(services().settings.max_body))
    return resumable.serve(found, wanted, NativeEncoder, answer, FACE)


@bp.get("/completions/<stream_id>")
@auth.login_required
def follow(stream_id: str) -> Response:
    return resumable.follow(stream_id, FACE)


@bp.post("/completions/stop-stream/<stream_id>")
@auth.login_required
def stop_stream(stream_id: str) -> Response:
    return calls.stop(stream_id)


@bp.get("/completions/streams")
@auth.login_required
def active_streams() -> Response:
    found = services().gateway.streams.summaries(current_key().id)
    return json_response([listed(summary) for summary in found])


@bp.post("/auth/api-key")
def exchange_key() -> Response:
    """Return the caller's key as a token. The official client starts with this request."""
    secret = x_api_key()
    key_of(secret)
    return json_response({"access_token": secret, "token_type": "bearer"})


@bp.post("/auth/token")
def refuse_token() -> Response:
    """Refuse every request. The official client posts an invalid key here; the body is not read."""
    raise Unauthorized(key_sent=True)


def parse(data: dict[str, Any]) -> tuple[request_fields.Parameters, CompletionRequest]:
    """Return the parameters and the request of a native body. Raises InvalidRequest."""
    if not OPENAI_ONLY.isdisjoint(data):
        name = next(name for name in data if name in OPENAI_ONLY)
        raise request_fields.unknown(name, hint=OPENAI_FIELDS[name])
    request_fields.refuse_unknown(
        data, FIELDS, " Provider-specific fields belong in additional_params."
    )
    fields = {name: value for name, value in data.items() if value is not None}
    if "prompt" not in fields:
        raise InvalidRequest(
            f"prompt is missing; expected {request_fields.TAKES['prompt']}.", param="prompt"
        )
    prompt = fields.pop("prompt")
    if isinstance(prompt, list) and prompt:
        raise InvalidRequest(
            f"prompt: got {request_fields.kind_of(prompt)}; expected "
            f"{request_fields.TAKES['prompt']}.{TAKES_LISTS}",
            param="prompt",
        )
    request_fields.check("prompt", prompt, request_fields.Text)
    extra = passed_on.merge_params(fields)
    found = request_fields.parameters(fields)
    return found, request_fields.to_request(found, (prompt,), extra)


def answer(stream: Stream, completion: Completion, outcome: Outcome) -> dict[str, Any]:
    first = next((c for c in completion.choices if c.index == 0), None)
    milliseconds = round(outcome.latency * 1000, 1)
    found: dict[str, Any] = {
        "request_id": stream.request_id,
        "created_at": instant(stream.opened_at),
        "duration_ms": round(outcome.duration * 1000, 1),
        "provider": stream.target.provider.name,
        "model": stream.target.model,
        "success": True,
        "message": "",
        "data": first.text if first else "",
        "finish_reason": calls.reason(outcome, first.finish_reason if first else None),
        "usage": {
            "tokens_prompt": outcome.usage.input_tokens,
            "tokens_completion": outcome.usage.output_tokens,
            "tokens_total": outcome.usage.total_tokens,
            "cost": dollars(outcome.cost),
            "latency": milliseconds,
            **particulars(outcome),
        },
    }
    if stream.request.choices > 1 or (first and first.logprobs) or completion.added_to:
        found["choices"] = [
            completion.added_to.get(choice.index, {})
            | {
                "text": choice.text,
                "index": choice.index,
                "finish_reason": calls.reason(outcome, choice.finish_reason),
                "logprobs": choice.logprobs,
            }
            for choice in completion.choices
        ]
    if completion.added:
        found["extra"] = completion.added
    return found | remarks(stream)


def particulars(outcome: Outcome) -> dict[str, Any]:
    usage = outcome.usage
    found: dict[str, Any] = {
        name: count
        for name in ("cache_read_tokens", "cache_write_tokens", "reasoning_tokens")
        if (count := getattr(usage, name))
    }
    if usage.source == "estimate":
        found["source"] = "estimate"
    if outcome.cost_reported:
        found["cost_source"] = "provider"
    return found


def remarks(stream: Stream) -> dict[str, Any]:
    """Return the fields that only some responses have: the BYOK mark and warnings."""
    found: dict[str, Any] = {}
    if stream.target.byok:
        found["byok_api_key"] = True
    if stream.dropped:
        found["warnings"] = [f"{stream.target.name} ignores {name}." for name in stream.dropped]
    return found


def listed(summary: Summary) -> dict[str, Any]:
    return {
        "stream_id": summary.stream_id,
        "provider": summary.provider,
        "model": summary.model,
        "started_at": instant(summary.opened_at),
        "input_tokens": summary.input_tokens,
        "output_tokens": summary.output_tokens,
        "resumable": summary.resumable,
    }


class NativeEncoder:
    """An encoder that writes usage_start, content, finish, usage_final, then [DONE] or an error."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._begun = False
        self._finished: set[int] = set()
        self._added: AddedFields | None = None
        self._texts = calls.Templates(stream)

    def begin(self) -> bytes:
        self._begun = True
        target = self._stream.target
        start = {
            "type": "usage_start",
            "request_id": self._stream.request_id,
            "stream_id": self._stream.id,
            "provider": target.provider.name,
            "model": target.model,
            "input_tokens": self._stream.tally.input_tokens or 0,
        }
        return calls.frame(start | remarks(self._stream), "usage_start")

    def events(self, batch: Batch) -> bytes:
        frames = [] if self._begun else [self.begin()]
        index = -1
        for event in batch:
            if isinstance(event, Delta):
                if event.logprobs is None and self._added is None:
                    if event.index != index:
                        index = event.index
                        filled = self._texts.of(index, self._content)
                    frames.append(filled(event.text))
                else:
                    content = self._content(event.index, event.text, event.logprobs)
                    frames.append(self._frame(content))
            elif isinstance(event, Finished):
                frames.append(self._finish(event.index, event.reason))
            elif isinstance(event, Added):
                self._added = self._added or AddedFields()
                if self._added.add(event):
                    frames.append(self._frame(self._content(event.index, "")))
        return b"".join(frames)

    def template(self, index: int) -> tuple[bytes, ...]:
        return calls.parts_of(self._content(index, calls.Template.TEXT))

    def last_frames(self, outcome: Outcome) -> bytes:
        frames = [] if self._begun else [self.begin()]
        if outcome.error is None:
            frames += [
                self._finish(index, calls.reason(outcome, None))
                for index in range(self._stream.request.choices)
                if index not in self._finished
            ]
        usage = outcome.usage
        final = {
            "type": "usage_final",
            "input_tokens": usage.input_tokens,
            "output_tokens": usage.output_tokens,
            "cost_usd": dollars(outcome.cost),
            "latency_ms": round(outcome.latency * 1000, 1),
            "attempts": len(self._stream.attempts),
        }
        frames.append(
            calls.frame(final | particulars(outcome) | remarks(self._stream), "usage_final")
        )
        if outcome.error is None:
            frames.append(calls.DONE)
        else:
            frames.append(calls.frame(error_frame(outcome.error, self._stream.request_id), "error"))
        return b"".join(frames)

    def _content(self, index: int, text: str, logprobs: Logprobs | None = None) -> dict[str, Any]:
        choice: dict[str, Any] = {
            "text": text,
            "delta": {"content": text},
            "index": index,
            "finish_reason": None,
        }
        if logprobs is not None:
            choice["logprobs"] = logprobs
        return {
            "type": "content",
            "data": text,
            "provider": self._stream.target.provider.name,
            "choices": [choice],
        }

    def _finish(self, index: int, reason: FinishReason) -> bytes:
        self._finished.add(index)
        choice = {"text": "", "delta": {}, "index": index, "finish_reason": reason}
        finish = {
            "type": "finish",
            "provider": self._stream.target.provider.name,
            "finish_reason": reason,
            "choices": [choice],
        }
        return self._frame(finish | ({"continued": True} if self._stream.continued else {}))

    def _frame(self, data: dict[str, Any]) -> bytes:
        """Return a frame with one choice, and with the provider's fields that waited for it."""
        if self._added is not None:
            [choice] = data["choices"]
            top, added = self._added.take(choice["index"])
            data["choices"] = [added | choice]
            if top:
                data["extra"] = top
        return calls.frame(data)


MISLEADING = re.compile("validation|invalid format", re.IGNORECASE)
"""Words in a 400 that the official client mistakes for another error. They may come from a provider
or from a value that the caller sent."""


def worded(error: SluiceError) -> str:
    """Return the error's message, with MISLEADING words abbreviated in a 400."""
    if error.status != InvalidRequest.status:
        return error.message
    return MISLEADING.sub(lambda found: found[0][0] + "...", error.message)


def detail(error: SluiceError, request_id: str) -> str:
    """Return the only text of an error that the official client shows."""
    return f"{worded(error)} (request_id {request_id})"


def error_body(error: SluiceError, request_id: str) -> dict[str, Any]:
    return {
        "success": False,
        "request_id": request_id,
        "error": error.code,
        "code": error.code,
        "message": worded(error),
        "status_code": error.status,
        "details": error.details,
        "detail": detail(error, request_id),
        "data": "",
    }


def error_frame(error: SluiceError, request_id: str) -> dict[str, Any]:
    return {
        "type": "error",
        "error": detail(error, request_id),
        "code": error.code,
        "message": worded(error),
        "status_code": error.status,
        "details": error.details,
        "request_id": request_id,
    }


FACE = ReplayFace(
    "native",
    error_body,
    lambda error, request_id: calls.frame(error_frame(error, request_id), "error"),
)
