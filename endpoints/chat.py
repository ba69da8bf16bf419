"""Chats of both faces: a body is sent to the host unchanged, and the host's answer is passed on.

- Nothing is translated. providers/openai/chat.py documents what is sent, and
  gateway/chat_answers.py what is changed in an answer.
- A chunk keeps the host's id. Sluice's own ids are in the headers X-Request-ID and X-Stream-ID.

Source: OpenAI API reference, "Chat" (read 2026-11).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Final

import msgspec
from flask import Blueprint, Response

from auth import auth
from completion import (
    Batch,
    Completion,
    CompletionRequest,
    Event,
    Finished,
    FinishReason,
    Logprobs,
    Opaque,
)
from endpoints import (
    calls,
    chat_fields,
    native,
    openai,
    openai_sdk,
    request_fields,
    resumable,
)
from endpoints.flask_app import current
from endpoints.frame_events import data_of
from endpoints.openai_fields import UsageIn
from endpoints.recorder import ReplayFace, ResumableEncoder
from endpoints.services import services
from gateway import chat_answers
from gateway.call import Outcome
from gateway.chat_answers import Renaming
from ledger.pricing import dollars
from streams.stream import Stream

bp = Blueprint("chat", __name__)

NATIVE_FIELDS: Final = ("messages", *(name for name in native.FIELDS if name != "prompt"))
CONTENT: Final = b'data: {"type":"content","data":'
SAMPLING: Final = ("temperature", "top_p", "frequency_penalty", "presence_penalty")


@bp.post("/v1/chat/completions")
@auth.login_required
def openai_chat() -> Response:
    found, wanted, usage = read(is_native=False)
    return respond(found, wanted, partial(ChatEncoder, usage=usage), answer, FACE)


@bp.post("/api/v1/chat/completions")
@auth.login_required
def native_chat() -> Response:
    openai_sdk.refuse("Sluice's own API")
    found, wanted, _ = read(is_native=True)
    return respond(found, wanted, NativeChatEncoder, native_answer, NATIVE_FACE)


@bp.get("/v1/chat/completions/<stream_id>")
@auth.login_required
def follow_openai(stream_id: str) -> Response:
    return resumable.follow(stream_id, FACE)


@bp.get("/api/v1/chat/completions/<stream_id>")
@auth.login_required
def follow_native(stream_id: str) -> Response:
    return resumable.follow(stream_id, NATIVE_FACE)


@bp.post("/v1/chat/completions/stop-stream/<stream_id>")
@bp.post("/api/v1/chat/completions/stop-stream/<stream_id>")
@auth.login_required
def stop_stream(stream_id: str) -> Response:
    return calls.stop(stream_id)


def respond(
    found: request_fields.Parameters,
    wanted: CompletionRequest,
    encoder: Callable[[Stream], ResumableEncoder],
    whole: Callable[[Stream, Completion, Outcome], Any],
    face: ReplayFace,
) -> Response:
    """Return the response to a chat. Release its body if no call starts. Raises SluiceError."""
    try:
        return resumable.serve(found, wanted, encoder, whole, face)
    except BaseException:
        if current().call is None and wanted.chat is not None:
            wanted.chat.release()
        raise


def read(*, is_native: bool) -> tuple[request_fields.Parameters, CompletionRequest, UsageIn]:
    """Return the parameters and the request of the current body, and where its stream has usage.

    The body's bytes are counted as held until it can't be sent again. Raises SluiceError.
    """
    settings, request = services().settings, current()
    limit = settings.max_chat_body
    held = services().bodies.take(min(request.announced or 0, limit))
    try:
        decode = partial(chat_fields.decode, most_beside=settings.max_body)
        fields = request_fields.read_object(limit, decode, held.grow)
        request.byok_api_key = chat_fields.value_of(fields, "byok_api_key")
        if is_native:
            fields = native_fields(fields)
        found, wanted, usage = chat_fields.parse(fields, held.size)
        assert wanted.chat is not None  # noqa: S101 - parse sets it
        wanted.chat.released = held.release
        return found, wanted, usage
    except BaseException:
        held.release()
        raise


def native_fields(fields: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a native body that aren't null. Raises InvalidRequest."""
    request_fields.refuse_unknown(
        fields, NATIVE_FIELDS, " Provider-specific fields belong in additional_params."
    )
    found = {name: value for name, value in fields.items() if value != chat_fields.NULL}
    for name in SAMPLING:
        if name in found:
            value = chat_fields.value_of(found, name)
            request_fields.check(name, value, request_fields.FIELDS[name])
    return found


def answer(stream: Stream, completion: Completion, outcome: Outcome) -> dict[str, Any]:
    """Return the host's answer with the gateway's name of the model, and with the cost."""
    found = chat_answers.whole(completion, stream.request.choices) or empty(stream)
    found["model"] = stream.target.name
    found["usage"] = usage_with_cost(chat_answers.value_of(found, "usage"), outcome)
    return found | ({"byok_api_key": True} if stream.target.byok else {})


def empty(stream: Stream) -> dict[str, Any]:
    """Return the answer of a call that was stopped before the host answered."""
    message = {"role": "assistant", "content": ""}
    choices = [
        {"index": index, "message": message, "finish_reason": "stop"}
        | {"native_finish_reason": "cancelled"}
        for index in range(stream.request.choices)
    ]
    return {
        "id": f"chatcmpl-{stream.request_id}",
        "object": "chat.completion",
        "created": int(stream.opened_at),
        "model": stream.target.name,
        "choices": choices,
    }


def usage_with_cost(usage: Any, outcome: Outcome) -> dict[str, Any]:
    """Return the host's usage with the cost, or Sluice's own if the host's isn't complete."""
    if not isinstance(usage, dict) or outcome.usage.source == "estimate":
        return openai.usage_of(outcome)
    reported = {"cost_source": "provider"} if outcome.cost_reported else {}
    return usage | {"cost": dollars(outcome.cost)} | reported


def native_answer(stream: Stream, completion: Completion, outcome: Outcome) -> dict[str, Any]:
    found = native.answer(stream, completion, outcome)
    whole = chat_answers.whole(completion, stream.request.choices)
    choices = chat_answers.choices_of(whole)
    first = next((one for one in choices if one.get("index", 0) == 0), {})
    reason = first.get("finish_reason")
    return found | {
        "data": chat_answers.text_of(first),
        "finish_reason": reason if isinstance(reason, str) else found["finish_reason"],
        "choices": choices,
    }


def chunk_choice(
    index: int, text: str, reason: FinishReason | None, logprobs: Logprobs | None
) -> dict[str, Any]:
    """Return the choice of a chunk of Sluice's own, which has no text."""
    choice = openai.choice(index, text, reason, logprobs)
    del choice["text"], choice["logprobs"]
    return {"index": index, "delta": {}} | choice


class ChatEncoder(openai.OpenAIEncoder):
    """An encoder that passes chunks on, and adds the usage at the end if it was requested."""

    KIND = "chat.completion.chunk"
    _choice = staticmethod(chunk_choice)

    def __init__(self, stream: Stream, *, usage: UsageIn) -> None:
        super().__init__(stream, include_usage=usage != "nowhere")
        self._id = f"chatcmpl-{stream.request_id}"
        self._usage = usage
        self._renaming: Renaming | None = None
        self._last = b""
        """The host's last chunk, or the one with only its usage."""

    def events(self, batch: Batch) -> bytes:
        frames = [self._late_remarks()] if self._released else []
        renaming = self._renaming or self._new_renaming()
        for event in batch:
            if event.__class__ is Opaque:
                data = self._last = event.data
                if event.index < 0:
                    continue
                if event.ends:
                    self._finished.update(event.ends)
                if event.reports and self._hides_usage:
                    data = chat_answers.without_usage(data)
                if data.startswith(renaming.before):
                    data = renaming.after + data[renaming.at :]
                else:
                    data = renaming.replaced(data)
                frames.append(b"data: " + data + b"\n\n")
            elif isinstance(event, Finished):
                self._finished.add(event.index)
        return calls.escaped(b"".join(frames))

    def last_frames(self, outcome: Outcome) -> bytes:
        last = chat_answers.decoded_fields(self._last)
        self._id = last.get("id") or self._id
        include, self._include_usage = self._include_usage, False
        frames = super().last_frames(outcome)
        if not include or outcome.error is not None:
            return frames
        usage = usage_with_cost(chat_answers.usage_of(last), outcome)
        head = {n: v for n, v in last.items() if n not in ("choices", "usage")}
        chunk = self._shape([]) | head | {"model": self._stream.target.name, "usage": usage}
        return frames.removesuffix(calls.DONE) + calls.frame(chunk) + calls.DONE

    def _new_renaming(self) -> Renaming:
        self._renaming = Renaming(msgspec.json.encode(self._stream.target.name))
        return self._renaming

    @property
    def _hides_usage(self) -> bool:
        """Return True if usage beside choices isn't shown.

        The caller gets it at the end, or only the row's options requested it. Some clients add up
        all usage that they see.
        """
        options = self._stream.target.provider.stream_options
        unasked = self._usage == "nowhere" and bool(options.get("continuous_usage_stats"))
        return unasked or self._usage == "at the end"


class NativeChatEncoder(native.NativeEncoder):
    """An encoder that passes the choices of chunks on, in the frames of the native face."""

    def events(self, batch: Batch) -> bytes:
        frames = [] if self._begun else [self.begin()]
        shown, raw_choices = chat_answers.shown, chat_answers.raw_choices
        provider = msgspec.json.encode(self._stream.target.provider.name)
        middle = b',"provider":' + provider + b',"choices":'
        for event in batch:
            if event.__class__ is Opaque:
                if event.ends:
                    self._finished.update(event.ends)
                if event.text_size:
                    # Most chunks have only text, which is passed on without being decoded.
                    try:
                        text = bytes(shown(event.data).choices[0].delta.content)
                        choices = bytes(raw_choices(event.data).choices)
                    except (msgspec.DecodeError, IndexError):
                        text = b""
                    if text[:1] == b'"':
                        frames.append(CONTENT + text + middle + choices + b"}\n\n")
                        continue
                frames.append(self._passed_on(event.data))
            elif isinstance(event, Finished):
                self._finished.add(event.index)
        return calls.escaped(b"".join(frames))

    def _passed_on(self, data: bytes) -> bytes:
        """Return the frame of a chunk, or nothing if the chunk has no choices."""
        choices = chat_answers.choices_of(chat_answers.decoded_fields(data))
        if not choices:
            return b""
        text, reason = chat_answers.text_of(choices[0]), choices[0].get("finish_reason")
        found: dict[str, Any] = {"type": "finish" if reason else "content"}
        if text or not reason:
            found["data"] = text
        found["provider"] = self._stream.target.provider.name
        if reason:
            found["finish_reason"] = reason
        return calls.frame(found | {"choices": choices})


def events_in(frame: bytes) -> Iterator[Event]:
    """Yield the chunk in a frame of either face."""
    data = data_of(frame)
    if data is not None and data.get("choices"):
        chunk = {"choices": data["choices"]} if "type" in data else data
        yield Opaque(msgspec.json.encode(chunk))


FACE: Final = openai.FACE._replace(name="chat", events=events_in)
NATIVE_FACE: Final = native.FACE._replace(name="native chat", events=events_in)
