"""What both faces do with a call: start it for the current request, and answer with its stream."""

from __future__ import annotations

import math
import re
import uuid
from collections.abc import Callable, Mapping
from typing import Any, Final
from urllib.parse import quote

import msgspec
from flask import Response

from auth import current_key
from completion import Completion, CompletionRequest, FinishReason
from config import TIMEOUT_FIELDS
from endpoints import request_fields, request_secrets
from endpoints.flask_app import current
from endpoints.responses import (
    DirectResponse,
    json_response,
)
from endpoints.services import (
    services,
)
from errors import InvalidRequest
from gateway.call import Call, Encoder, Outcome
from streams.stream import Stream

MOST_NAMES, MOST_OF_A_NAME = 20, 64
SECONDS = re.compile(r"[0-9]{1,9}(\.[0-9]{0,9})?")
STREAM_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


def start(found: request_fields.Parameters, wanted: CompletionRequest) -> Call:
    """Admit a call and start it, for the caller of the current request. Raises SluiceError."""
    request = current()
    sent = request.environ
    if found.byok_api_key is None:
        found.byok_api_key = header(sent, "HTTP_X_PROVIDER_API_KEY", "byok_api_key")
    chosen_id = found.stream_id or header(sent, "HTTP_X_STREAM_ID", "stream_id")
    request_secrets.refuse_secrets(
        {
            "stream_id": chosen_id or "",
            "model": found.model or "",
            "provider": found.provider or "",
            "fallbacks": "\n".join(found.fallbacks or ()),
            "a field's name": "\n".join((*wanted.extra, *wanted.openai_extra)),
        }
    )
    call = services().gateway.open(
        wanted,
        request_fields.to_route(found),
        key=current_key(),
        endpoint=str(request.url_rule),
        request_id=request.id,
        stream_id=chosen_id or str(uuid.uuid4()),
        strict=sent.get("HTTP_X_SLUICE_STRICT", "") == "1",
        continues=sent.get("HTTP_X_SLUICE_CONTINUE", "") == "1",
        within=time_limits(sent.get("HTTP_X_SLUICE_TIMEOUT", "")),
        client=request.client,
    )
    if services().tracing is not None:
        call.stream.traceparent = sent.get("HTTP_TRACEPARENT", "")
    request.call = call
    return call


def time_limits(text: str) -> dict[str, float]:
    """X-Sluice-Timeout: seconds for all of the call ("30"), or for some of its parts
    ("first_event=5, idle=2.5"). Raises InvalidRequest."""
    found: dict[str, float] = {}
    for part in text.split(",") if text.strip() else ():
        name, equals, value = part.rpartition("=")
        name = name.strip() if equals else "total"
        seconds = float(value) if SECONDS.fullmatch(value.strip()) else 0
        if name not in TIMEOUT_FIELDS or name in found or not 0 < seconds < math.inf:
            # What was sent isn't repeated: by mistake it may be a key.
            raise InvalidRequest(
                "X-Sluice-Timeout takes seconds above 0 for all of the call, or some of "
                f"{', '.join(f'{field}=SECONDS' for field in TIMEOUT_FIELDS)}.",
                param="X-Sluice-Timeout",
            )
        found[name] = seconds
    return found


def header(sent: Mapping[str, Any], name: str, field: str) -> str | None:
    """A header, by its WSGI name, that stands for a field of the body. Raises InvalidRequest as the
    field would."""
    value: str | None = sent.get(name)
    if value is not None:
        request_fields.check(field, value, request_fields.FIELDS[field])
    return value


def headers(call: Call) -> dict[str, str]:
    """The answer's headers that say what became of the request."""
    found = {}
    if call.stream.request.stream:
        found["X-Stream-ID"] = call.stream.id
    if call.stream.dropped:
        found["X-Sluice-Dropped"] = dropped_names(call.stream)
    return found


def dropped_names(stream: Stream) -> str:
    """The names of the hints that the target can't honour, fit for a header. Some are the
    caller's own, so what is odd in them is percent-encoded."""
    return ", ".join(quote(name[:MOST_OF_A_NAME], safe="") for name in stream.dropped[:MOST_NAMES])


def respond(
    call: Call,
    encoder: Callable[[Stream], Encoder],
    answer: Callable[[Stream, Completion, Outcome], dict[str, Any]],
) -> Response:
    """The answer to a call, in a face's format: a stream, or a body. Raises SluiceError."""
    if not call.stream.request.stream:
        completion, outcome = call.result()
        return json_response(answer(call.stream, completion, outcome), headers=headers(call))
    call.wait()
    try:
        response = DirectResponse(
            call.frames(encoder(call.stream)),
            headers=STREAM_HEADERS | headers(call),
            content_type="text/event-stream; charset=utf-8",
        )
    except BaseException:  # else it would stay active for ever
        call.close()
        raise
    # A generator that is never started skips its `finally`.
    response.call_on_close(call.close)
    return response


def stop(stream_id: str) -> Response:
    """Stop one of the caller's calls. Raises StreamNotFound."""
    services().gateway.streams.stop(current_key().id, stream_id)
    return json_response({"success": True})


def reason(outcome: Outcome, told: FinishReason | None) -> FinishReason:
    """A choice's finish reason; one that did not get to its end was stopped."""
    return told or ("cancelled" if outcome.reason == "stopped" else "stop")


def frame(data: Any, event: str | None = None) -> bytes:
    """One SSE frame."""
    head = b"event: " + event.encode() + b"\n" if event else b""
    return head + b"data: " + escaped(msgspec.json.encode(data)) + b"\n\n"


def escaped(text: bytes) -> bytes:
    """JSON without the line separators that common splitters take for a line's end."""
    if not text.isascii() and (b"\xe2\x80" in text or b"\xc2\x85" in text):
        for raw, escape in SEPARATORS:
            text = text.replace(raw, escape)
    return text


class Template:
    """A frame that differs from others like it in a text alone: all else is encoded once."""

    TEXT: Final = f"text {uuid.uuid4()}"
    """Stands for the text, in what a template is made of; nobody else's text is that."""

    def __init__(self, data: Any) -> None:
        self._parts = frame(data).split(msgspec.json.encode(self.TEXT))

    def filled(self, text: str) -> bytes:
        """The frame with that text."""
        encoded = msgspec.json.encode(text)
        if not text.isascii():
            encoded = escaped(encoded)
        return encoded.join(self._parts)


class Templates:
    """Of one stream's texts: a template a choice, and others where another target goes on."""

    def __init__(self, stream: Stream) -> None:
        self._stream, self._target = stream, stream.target
        self._of: dict[int, Callable[[str], bytes]] = {}

    def of(self, index: int, shape: Callable[[int, str], Any]) -> Callable[[str], bytes]:
        """What makes a frame of a text of that choice, until the target changes. shape: the data of
        a frame, by both."""
        if self._stream.target is not self._target:
            self._target, self._of = self._stream.target, {}
        filled = self._of.get(index)
        if filled is None:
            filled = self._of[index] = Template(shape(index, Template.TEXT)).filled
        return filled


SEPARATORS = (
    ("\u2028".encode(), b"\\u2028"),
    ("\u2029".encode(), b"\\u2029"),
    ("\u0085".encode(), b"\\u0085"),
)
DONE = b"data: [DONE]\n\n"
