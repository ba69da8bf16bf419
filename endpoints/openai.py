"""The OpenAI face: completions and stop-stream, as the openai SDKs expect them.

Source: OpenAI API reference, "Completions" (read 2026-11).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from flask import Blueprint, Response

from auth import auth
from completion import (
    Added,
    Batch,
    Completion,
    CompletionRequest,
    Delta,
    Finished,
    FinishReason,
    Logprobs,
    Usage,
)
from endpoints import calls, openai_fields, passed_on, request_fields, resumable
from endpoints.added_fields import AddedFields
from endpoints.continuous_usage import Frames, UsageSoFar
from endpoints.recorder import ReplayFace, ResumableEncoder, plain_face
from endpoints.services import (
    services,
)
from errors import InvalidRequest, SluiceError
from gateway.call import Outcome
from ledger.pricing import dollars
from streams.stream import Stream

bp = Blueprint("openai", __name__, url_prefix="/v1")

BESIDE = frozenset(("prompt", "stream_options", "additional_params"))
"""The fields of this face besides request_fields.NAMES."""
MOST_CHOICES = 2048
ERROR_TYPES = {
    401: "authentication_error",
    402: "insufficient_quota",
    403: "permission_error",
    429: "rate_limit_error",
}


@bp.post("/completions")
@auth.login_required
def completions() -> Response:
    return complete(request_fields.read_object(services().settings.max_body), FACE)


@bp.get("/completions/<stream_id>")
@auth.login_required
def follow(stream_id: str) -> Response:
    return resumable.follow(stream_id, FACE)


def complete(data: dict[str, Any], face: ReplayFace) -> Response:
    """Return the response to a completion's body. Raises SluiceError."""
    found, wanted, usage = parse(data)
    encoder: Callable[[Stream], ResumableEncoder] = ContinuousUsageEncoder
    if usage != "on each chunk":
        encoder = partial(OpenAIEncoder, include_usage=usage == "at the end")
    return resumable.serve(found, wanted, encoder, answer, face)


@bp.post("/completions/stop-stream/<stream_id>")
@auth.login_required
def stop_stream(stream_id: str) -> Response:
    return calls.stop(stream_id)


def parse(
    data: dict[str, Any],
) -> tuple[request_fields.Parameters, CompletionRequest, openai_fields.UsageIn]:
    """Return the parameters, the request, and where its stream has usage. Raises InvalidRequest."""
    beside = [name for name in data if name not in request_fields.NAMES]
    passed_on.refuse_many(len(beside) - len(BESIDE.intersection(beside)))
    for name in beside:
        request_fields.refuse_lookalike(name)
    fields = {name: value for name, value in data.items() if value is not None}
    if "prompt" not in fields:
        raise InvalidRequest(
            f"prompt is missing; expected {openai_fields.PROMPT_TAKES}.", param="prompt"
        )
    prompts = openai_fields.read_prompts(fields.pop("prompt"))
    usage: openai_fields.UsageIn = "nowhere"
    unused: list[str] = []
    if (options := fields.pop("stream_options", None)) is not None:
        usage, unused = openai_fields.read_options(options)
    extra = passed_on.merge_params(fields)
    others = {name: fields.pop(name) for name in list(fields) if name not in request_fields.NAMES}
    for name in others:
        if name in request_fields.BEYOND_PARAMS:
            raise request_fields.unknown(name)
    if others:
        others = passed_on.pass_on(others, fields)
        passed_on.refuse_two_values(others, extra)
    found = request_fields.parameters(fields)
    tries = max(found.n or 1, found.best_of or 1)
    if len(prompts) * tries > MOST_CHOICES:
        raise InvalidRequest(
            f"{len(prompts)} prompts with {tries} choices each exceed the limit of {MOST_CHOICES}.",
            param="n",
        )
    wanted = request_fields.to_request(found, prompts, extra, others, unused)
    return found, wanted, usage


def answer(stream: Stream, completion: Completion, outcome: Outcome) -> dict[str, Any]:
    choices = [
        completion.added_to.get(c.index, {})
        | choice(c.index, c.text, calls.reason(outcome, c.finish_reason), c.logprobs)
        for c in completion.choices
    ]
    missing = set(range(stream.request.choices)) - {c.index for c in completion.choices}
    if outcome.reason == "stopped":
        choices += [choice(index, "", "cancelled", None) for index in sorted(missing)]
    return completion.added | {
        "id": f"cmpl-{stream.request_id}",
        "object": "text_completion",
        "created": int(stream.opened_at),
        "model": stream.target.name,
        "choices": sorted(choices, key=lambda c: int(c["index"])),
        "usage": usage_of(outcome),
        **({"byok_api_key": True} if stream.target.byok else {}),
    }


def choice(
    index: int, text: str, reason: FinishReason | None, logprobs: Logprobs | None
) -> dict[str, Any]:
    """Return a choice in OpenAI's format.

    OpenAI has no finish reason for a stopped choice, so finish_reason is "stop" for the SDKs and
    native_finish_reason holds "cancelled".
    """
    found: dict[str, Any] = {
        "text": text,
        "index": index,
        "logprobs": logprobs,
        "finish_reason": "stop" if reason == "cancelled" else reason,
    }
    if reason == "cancelled":
        found["native_finish_reason"] = reason
    return found


def usage_of(outcome: Outcome) -> dict[str, Any]:
    usage = outcome.usage
    return {
        **usage_counts(usage),
        "cost": dollars(outcome.cost),
        **usage_details(usage),
        **({"cost_source": "provider"} if outcome.cost_reported else {}),
    }


def usage_counts(usage: Usage) -> dict[str, int]:
    return {
        "prompt_tokens": usage.input_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.total_tokens,
    }


def usage_details(usage: Usage) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if usage.cache_read_tokens or usage.cache_write_tokens:
        found["prompt_tokens_details"] = {
            "cached_tokens": usage.cache_read_tokens,
            "cache_write_tokens": usage.cache_write_tokens,
        }
    if usage.reasoning_tokens:
        found["completion_tokens_details"] = {"reasoning_tokens": usage.reasoning_tokens}
    if usage.source == "estimate":
        found["source"] = "estimate"
    return found


class OpenAIEncoder:
    """An encoder that writes OpenAI chunks, then [DONE] or an error."""

    KIND = "text_completion"
    _choice = staticmethod(choice)

    def __init__(self, stream: Stream, *, include_usage: bool) -> None:
        self._stream = stream
        self._include_usage = include_usage
        self._id = f"cmpl-{stream.request_id}"
        self._finished: set[int] = set()
        self._released = False
        self._added: AddedFields | None = None
        self._texts = calls.Templates(stream)

    def begin(self) -> bytes:
        self._released = True
        return b": waiting for the model\n\n"

    def events(self, batch: Batch) -> bytes:
        frames = [self._late_remarks()] if self._released else []
        index = -1
        for event in batch:
            if isinstance(event, Delta):
                if event.logprobs is None and self._added is None:
                    if event.index != index:
                        index = event.index
                        filled = self._texts.of(index, self._content)
                    frames.append(filled(event.text))
                else:
                    frames.append(
                        self._chunk(self._choice(event.index, event.text, None, event.logprobs))
                    )
            elif isinstance(event, Finished):
                frames.append(self._finish(event.index, event.reason))
            elif isinstance(event, Added):
                self._added = self._added or AddedFields()
                if self._added.add(event):
                    frames.append(self._chunk(self._choice(event.index, "", None, None)))
        return b"".join(frames)

    def template(self, index: int) -> tuple[bytes, ...] | None:
        return calls.parts_of(self._content(index, calls.Template.TEXT))

    def last_frames(self, outcome: Outcome) -> bytes:
        if outcome.error is not None:
            return calls.frame(error_body(outcome.error, self._stream.request_id))
        frames = [self._late_remarks()] if self._released else []
        frames += [
            self._finish(index, calls.reason(outcome, None))
            for index in range(self._stream.request.choices)
            if index not in self._finished
        ]
        if self._include_usage:
            top = self._added.take()[0] if self._added else {}
            frames.append(calls.frame(top | self._shape([]) | {"usage": usage_of(outcome)}))
        return b"".join([*frames, calls.DONE])

    def _late_remarks(self) -> bytes:
        """Return a comment that names dropped parameters, once it is too late for the header."""
        self._released = False
        dropped = calls.dropped_names(self._stream)
        return f": X-Sluice-Dropped: {dropped}\n\n".encode() if dropped else b""

    def _content(self, index: int, text: str) -> dict[str, Any]:
        return self._shape([self._choice(index, text, None, None)])

    def _finish(self, index: int, reason: FinishReason) -> bytes:
        self._finished.add(index)
        more = {"continued": True} if self._stream.continued else {}
        return self._chunk(self._choice(index, "", reason, None) | more)

    def _chunk(self, choice: dict[str, Any]) -> bytes:
        top: dict[str, Any] = {}
        if self._added is not None:
            top, added = self._added.take(choice["index"])
            choice = added | choice
        return calls.frame(top | self._shape([choice]))

    def _shape(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": self.KIND,
            "created": int(self._stream.opened_at),
            "model": self._stream.target.name,
            "choices": choices,
        }


class ContinuousUsageEncoder(OpenAIEncoder):
    """An OpenAIEncoder that adds the usage so far to each chunk. The last one's is the bill's."""

    def __init__(self, stream: Stream) -> None:
        super().__init__(stream, include_usage=True)
        self._texts = Frames()
        self._usage = UsageSoFar(stream)

    def events(self, batch: Batch) -> bytes:
        encode = super().events
        return b"".join([encode(part) for part in self._usage.counted(batch)])

    def template(self, index: int) -> None:  # noqa: ARG002 - the usage varies too
        return None

    def last_frames(self, outcome: Outcome) -> bytes:
        self._usage.at_least(outcome.usage)
        return super().last_frames(outcome)

    def _shape(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        usage = self._usage.usage()
        return super()._shape(choices) | {"usage": usage_counts(usage) | usage_details(usage)}


def error_body(error: SluiceError, request_id: str) -> dict[str, Any]:
    """Return the body of an error response, which is also the last frame of a failed stream."""
    server = "server_error" if error.status >= 500 else "invalid_request_error"
    found: dict[str, Any] = {
        "message": error.message,
        "type": ERROR_TYPES.get(error.status, server),
        "param": error.param,
        "code": error.code,
        "request_id": request_id,
    }
    if error.details is not None:
        found["details"] = error.details
    return {"error": found}


FACE = plain_face("openai", error_body)
