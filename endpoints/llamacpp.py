"""The endpoints of llama.cpp's server that editors call: /infill and /completion.

- A llama.cpp server gets the body of /infill as it came, and its answer goes back as it is. Other
  targets get what the body means, and answers have llama.cpp's format.
- The JSON is compact, on one line: some clients search it as text.

Source: llama.cpp, tools/server/README.md, "POST /infill" and "POST /completion" (read 2026-11).
"""

from __future__ import annotations

from functools import partial
from typing import Any, Final

import msgspec
from flask import Blueprint, Response

from auth import auth
from completion import (
    Added,
    Batch,
    Choice,
    Completion,
    CompletionRequest,
    Delta,
    Finished,
    FinishReason,
    Opaque,
    SourceFile,
)
from endpoints import calls, fim, openai, openai_sdk, passed_on, request_fields, resumable
from endpoints.added_fields import AddedFields
from endpoints.llamacpp_answers import LAST, cut, events_in, joined, piece
from endpoints.recorder import ReplayFace, plain_face
from errors import InvalidRequest
from gateway.call import Outcome
from streams.stream import Stream

bp = Blueprint("llamacpp", __name__)

COMMON: Final = (
    *("model", "provider", "fallbacks", "byok_api_key", "stream_id", "stream"),
    *("resumable", "background"),
    *("temperature", "max_tokens", "top_p", "frequency_penalty", "presence_penalty"),
    *("stop", "seed", "n", "best_of"),
)
"""The fields of `Parameters` that a body in llama.cpp's format has with the same meaning."""
SENT_AS: Final = {
    "max_tokens": "n_predict",
    "n": "n_cmpl",
    "temperature": "temperature",
    "top_p": "top_p",
    "frequency_penalty": "frequency_penalty",
    "presence_penalty": "presence_penalty",
    "stop": "stop",
    "seed": "seed",
}
"""The fields of CompletionRequest that a llama.cpp server gets, and its names for them."""
INPUTS: Final = ("input_prefix", "input_suffix", "input_extra", "prompt", "response_fields")
EXTRA_TAKES: Final = "a list of objects with text and filename, which are strings"
FIELDS_TAKES: Final = "a list of strings"
UNNAMED: Final = "tmp"
"""llama.cpp's name for a file without one."""
STOP_TYPES: Final[dict[FinishReason, str]] = {
    "stop": "eos",
    "length": "limit",
    "content_filter": "eos",
    "cancelled": "none",
}


class ExtraFile(msgspec.Struct):
    """A file in `input_extra`."""

    text: str
    filename: str | None = None


@bp.post("/infill")
@bp.post("/v1/infill")
@auth.login_required
def infill() -> Response:
    data = fim.read_body()
    return respond(data, *parse_infill(data), INFILL_FACE)


@bp.get("/infill/<stream_id>")
@bp.get("/v1/infill/<stream_id>")
@auth.login_required
def follow_infill(stream_id: str) -> Response:
    return resumable.follow(stream_id, INFILL_FACE)


@bp.post("/completion")
@bp.post("/completions")
@auth.login_required
def completion() -> Response:
    openai_sdk.refuse("llama.cpp's API")
    data = fim.read_body()
    return respond(data, *parse_completion(data), FACE)


@bp.get("/completion/<stream_id>")
@bp.get("/completions/<stream_id>")
@auth.login_required
def follow(stream_id: str) -> Response:
    return resumable.follow(stream_id, FACE)


def respond(
    data: dict[str, Any],
    found: request_fields.Parameters,
    wanted: CompletionRequest,
    face: ReplayFace,
) -> Response:
    fields = response_fields(data)
    encoder, whole = partial(LlamaCppEncoder, fields=fields), partial(answer, fields=fields)
    return resumable.serve(found, wanted, encoder, whole, face)


def response_fields(data: dict[str, Any]) -> list[str] | None:
    """Return the paths of the fields that an answer is cut to; None for all fields."""
    value = data.get("response_fields")
    found: list[str] | None = convert("response_fields", value, list[str], FIELDS_TAKES)
    return found


def convert(name: str, value: Any, kind: Any, takes: str) -> Any:
    """Return a field's value as a type, or None if it is absent. Raises InvalidRequest."""
    try:
        return None if value is None else msgspec.convert(value, kind)
    except msgspec.ValidationError:
        got = request_fields.shown(name, value)
        raise InvalidRequest(f"{name}: got {got}; expected {takes}.", param=name) from None


def parse_infill(data: dict[str, Any]) -> tuple[request_fields.Parameters, CompletionRequest]:
    """Return the parameters and the request of a body of /infill. Raises InvalidRequest."""
    response_fields(data)
    prefix, suffix = (
        fim.check_text(name, data.get(name)) for name in ("input_prefix", "input_suffix")
    )
    prompt = data.get("prompt")
    start = "" if prompt is None else fim.check_text("prompt", prompt)
    extra = convert("input_extra", data.get("input_extra"), list[ExtraFile], EXTRA_TAKES) or []
    fields = known_fields(data)
    names = [name for name in data if name not in COMMON and name not in INPUTS]
    for name in names:
        if name in request_fields.BEYOND_PARAMS:
            raise request_fields.unknown(name)
    own = passed_on.pass_on(
        {name: data[name] for name in names if not is_unlimited(name, data[name])}, fields
    )
    found = request_fields.parameters(fields)
    wanted = request_fields.to_request(found, (prefix + start,), {})
    inputs = {name: data[name] for name in INPUTS[:4] if data.get(name) is not None}
    wanted = msgspec.structs.replace(
        wanted,
        suffix=suffix,
        files=tuple(SourceFile(file.filename or UNNAMED, file.text) for file in extra),
        infill=inputs | own | as_llamacpp(found, wanted.stop),
    )
    return found, wanted


def known_fields(data: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of Parameters that a body sets."""
    return {
        name: value
        for name in COMMON
        if (value := data.get(name)) is not None and not is_unlimited(name, value)
    }


def is_unlimited(name: str, value: Any) -> bool:
    """Return True for a number of tokens by which llama.cpp means that there is no limit."""
    return (
        name in ("n_predict", "max_tokens", "max_completion_tokens")
        and isinstance(value, int)
        and value < 0
    )


def as_llamacpp(found: request_fields.Parameters, stop: tuple[str, ...]) -> dict[str, Any]:
    """Return a body's parameters under llama.cpp's names.

    None is left out: llama.cpp's defaults aren't those that have no effect.
    """
    values = {theirs: getattr(found, ours) for ours, theirs in SENT_AS.items()}
    values["stop"] = stop or None
    return {name: value for name, value in values.items() if value is not None}


def parse_completion(data: dict[str, Any]) -> tuple[request_fields.Parameters, CompletionRequest]:
    """Return the parameters and the request of a body of /completion. Raises InvalidRequest."""
    response_fields(data)
    found, wanted, _ = openai.parse(
        {
            name: value
            for name, value in data.items()
            if name != "response_fields" and not is_unlimited(name, value)
        }
    )
    return found, wanted


def is_silent(request: CompletionRequest) -> bool:
    """Return True if the request only fills the model's cache. Other hosts generate a token."""
    return request.max_tokens == 0 and bool(request.infill)


def answer(
    stream: Stream, completion: Completion, outcome: Outcome, *, fields: list[str] | None
) -> Any:
    """Return the body of a whole completion: an object, or a list if there are several choices."""
    if completion.opaque:
        found = [cut(data, fields) for data in completion.opaque]
        if stream.request.stream:  # a resumable call, whose upstream sends pieces
            found = joined(completion.opaque, fields)
    else:
        choices = completion.choices or (Choice(0, "", None),)
        found = [
            cut(completion.added | ended(stream, outcome, c.index, c.text, c.finish_reason), fields)
            for c in choices
        ]
    return found if len(found) > 1 else found[0]


def ended(
    stream: Stream, outcome: Outcome, index: int, text: str, reason: FinishReason | None
) -> dict[str, Any]:
    """Return a choice that has ended. The counts are those of all choices."""
    return {
        "index": index,
        "content": "" if is_silent(stream.request) else text,
        "stop": True,
        "model": stream.target.name,
        "tokens_predicted": outcome.usage.output_tokens,
        "tokens_evaluated": outcome.usage.input_tokens,
        "stop_type": STOP_TYPES[calls.reason(outcome, reason)],
        "stopping_word": "",
        "truncated": False,
    }


class LlamaCppEncoder:
    """An encoder that writes llama.cpp's pieces. The last one has "stop": true; none is [DONE]."""

    def __init__(self, stream: Stream, *, fields: list[str] | None) -> None:
        self._stream, self._fields = stream, fields
        self._silent = is_silent(stream.request)
        self._reasons: dict[int, FinishReason] = {}
        self._seen: set[int] = set()
        self._opaque: set[int] = set()
        """The choices that the upstream ends itself."""
        self._ended: set[int] = set()
        """The choices that it has ended."""
        self._added: AddedFields | None = None
        self._texts = calls.Templates(stream)

    def begin(self) -> bytes:
        return b": waiting for the model\n\n"

    def events(self, batch: Batch) -> bytes:
        frames = []
        for event in batch:
            if isinstance(event, Delta):
                self._seen.add(event.index)
                if not self._silent:
                    frames.append(self._texts.of(event.index, piece)(event.text))
            elif isinstance(event, Opaque):
                self._opaque.add(event.index)
                self._ended.update(event.ends)
                frames.append(self._as_it_is(event.data))
            elif isinstance(event, Finished):
                self._reasons[event.index] = event.reason
            elif isinstance(event, Added):
                self._added = self._added or AddedFields()
                self._added.add(event)
        return b"".join(frames)

    def template(self, index: int) -> tuple[bytes, ...] | None:
        self._seen.add(index)
        return None if self._silent else calls.parts_of(piece(index, calls.Template.TEXT))

    def _as_it_is(self, data: bytes) -> bytes:
        if self._fields and LAST(data):
            data = msgspec.json.encode(cut(data, self._fields))
        return b"data: " + calls.escaped(data) + b"\n\n"

    def last_frames(self, outcome: Outcome) -> bytes:
        if outcome.error is not None:
            return calls.frame(openai.error_body(outcome.error, self._stream.request_id))
        ended_upstream = self._ended | (self._opaque & self._reasons.keys())
        seen = self._seen | self._opaque | self._reasons.keys() or {0}
        return b"".join(self._last(index, outcome) for index in sorted(seen - ended_upstream))

    def _last(self, index: int, outcome: Outcome) -> bytes:
        top = self._added.take(index)[0] if self._added else {}
        reason = self._reasons.get(index)
        found = top | ended(self._stream, outcome, index, "", reason)
        return calls.frame(cut(found, self._fields))


INFILL_FACE: Final = plain_face("infill", openai.error_body, events_in)
FACE: Final = plain_face("llama.cpp", openai.error_body, events_in)
