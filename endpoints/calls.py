"""Calls as both faces handle them: start a call, then respond with its stream or completion."""

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
from completion import PIECE, Completion, CompletionRequest, FinishReason
from config import TIMEOUT_FIELDS
from endpoints import request_fields, request_secrets
from endpoints.flask_app import Request, current
from endpoints.responses import (
    DirectResponse,
    encoded_in_pieces,
    json_response,
)
from endpoints.services import (
    Services,
    services,
)
from errors import InvalidRequest
from gateway.call import Call, Encoder, Outcome
from keys.key import Key
from streams.stream import Stream

MAX_NAMES, MAX_NAME_LENGTH, MAX_NAMES_SIZE = 20, 64, 1024
"""The most names in X-Sluice-Dropped, the most characters of each, and the most bytes of all: many
proxies refuse responses with more than 4 KB of headers."""
SECONDS = re.compile(r"[0-9]{1,9}(\.[0-9]{0,9})?")
STREAM_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


def start(
    found: request_fields.Parameters,
    wanted: CompletionRequest,
    record: Callable[[Call], None] | None = None,
) -> Call:
    """Admit and start a call for the caller of the current request.

    Args:
        record: a callback that makes the call resumable.

    Raises:
        SluiceError: the call is refused.
    """
    return begin(current(), current_key(), services(), found, wanted, record)


def begin(
    request: Request,
    key: Key,
    parts: Services,
    found: request_fields.Parameters,
    wanted: CompletionRequest,
    record: Callable[[Call], None] | None = None,
) -> Call:
    """Admit and start a request's call, as `start` does."""
    sent = request.environ
    if found.byok_api_key is None and "HTTP_X_PROVIDER_API_KEY" in sent:
        found.byok_api_key = header(sent, "HTTP_X_PROVIDER_API_KEY", "byok_api_key")
    chosen_id = found.stream_id or header(sent, "HTTP_X_STREAM_ID", "stream_id")
    request_secrets.refuse_secrets(
        {
            "stream_id": chosen_id or "",
            "model": found.model or "",
            "provider": found.provider or "",
            "fallbacks": "\n".join(found.fallbacks or ()),
            "a field name": "\n".join(passed_on_names(wanted)),
        }
    )
    call = parts.gateway.open(
        wanted,
        request_fields.to_route(found),
        key=key,
        endpoint=str(request.url_rule),
        request_id=request.id,
        stream_id=chosen_id or default_id(request.id, sent),
        strict=sent.get("HTTP_X_SLUICE_STRICT", "") == "1",
        continues=sent.get("HTTP_X_SLUICE_CONTINUE", "") == "1",
        within=time_limits(sent.get("HTTP_X_SLUICE_TIMEOUT", "")),
        client=request.client if record is None else None,
        affinity=sent.get("HTTP_X_SLUICE_AFFINITY"),
        record=record,
    )
    if parts.tracing is not None:
        call.stream.traceparent = sent.get("HTTP_TRACEPARENT", "")
    request.call = call
    return call


def passed_on_names(wanted: CompletionRequest) -> list[str]:
    """Return the names of the fields that a provider may get unchanged."""
    names = [*wanted.extra, *wanted.openai_extra, *wanted.unused, *wanted.infill]
    return names if wanted.chat is None else [*names, *wanted.chat.fields]


def default_id(request_id: str, sent: Mapping[str, Any]) -> str:
    """Return the stream id of a call whose client chose none: the request's id.

    If the client chose that too, the id is a new one, because several active calls may share a
    client's request id, but not a stream id.

    Args:
        sent: the WSGI environ.
    """
    return request_id if sent.get("HTTP_X_REQUEST_ID") != request_id else str(uuid.uuid4())


def time_limits(text: str) -> dict[str, float]:
    """Parse X-Sluice-Timeout into seconds per field of Timeouts. Raises InvalidRequest.

    The header limits the whole call ("30"), some of its phases ("first_event=5, idle=2.5"), or
    both.
    """
    found: dict[str, float] = {}
    for part in text.split(",") if text.strip() else ():
        name, equals, value = part.rpartition("=")
        name = name.strip() if equals else "total"
        seconds = float(value) if SECONDS.fullmatch(value.strip()) else 0
        if name not in TIMEOUT_FIELDS or name in found or not 0 < seconds < math.inf:
            # The message doesn't quote the value, which may be a key that was sent by mistake.
            raise InvalidRequest(
                "X-Sluice-Timeout: expected a positive number of seconds for the whole call, or "
                f"any of {', '.join(f'{field}=SECONDS' for field in TIMEOUT_FIELDS)}.",
                param="X-Sluice-Timeout",
            )
        found[name] = seconds
    return found


def header(sent: Mapping[str, Any], name: str, field: str) -> str | None:
    """Return a header that can replace a field of the body; None if it is missing.

    Args:
        sent: the WSGI environ.
        name: the header's WSGI name.
        field: the body's field; the header's value is checked like that field's.

    Raises:
        InvalidRequest: the value is invalid.
    """
    value: str | None = sent.get(name)
    if value is not None:
        request_fields.check(field, value, request_fields.FIELDS[field])
    return value


def headers(call: Call) -> dict[str, str]:
    """Return the headers that name a stream and the parameters that were dropped for its target."""
    found = {}
    if call.stream.request.stream:
        found["X-Stream-ID"] = call.stream.id
    if call.stream.dropped:
        found["X-Sluice-Dropped"] = dropped_names(call.stream)
    return found


def dropped_names(stream: Stream) -> str:
    """Return the names of the parameters that were dropped for the target, safe for a header.

    A caller can invent names, so they are percent-encoded and cut to a bounded length.
    """
    kept, size = [], 0
    for name in stream.dropped[:MAX_NAMES]:
        kept.append(quote(name[:MAX_NAME_LENGTH], safe=""))
        size += len(kept[-1]) + 2
        if size > MAX_NAMES_SIZE:
            del kept[-1]
            break
    return ", ".join(kept)


def respond(
    call: Call,
    encoder: Callable[[Stream], Encoder],
    answer: Callable[[Stream, Completion, Outcome], Any],
) -> DirectResponse:
    """Return the response to a call, streamed or whole, in a face's format.

    Args:
        encoder: makes the face's encoder for a stream.
        answer: makes the face's JSON body of a whole completion.

    Raises:
        SluiceError: a streamed call failed before its first event, or a whole one at any time.
    """
    if not call.stream.request.stream:
        completion, outcome = call.result()
        data = answer(call.stream, completion, outcome)
        if sum([len(choice.text) for choice in completion.choices]) > PIECE:
            data = encoded_in_pieces(data)
        return json_response(data, headers=headers(call))
    call.wait()
    try:
        response = DirectResponse(
            call.frames(encoder(call.stream)),
            headers=STREAM_HEADERS | headers(call),
            content_type="text/event-stream; charset=utf-8",
        )
    except BaseException:  # an unclosed call would stay active forever
        call.close()
        raise
    # Needed because a generator that was never started skips its `finally`.
    response.call_on_close(call.close)
    return response


def stop(call_id: str) -> Response:
    """Stop the caller's call with this stream id, else those with this request id.

    Raises StreamNotFound or Unavailable.
    """
    services().gateway.streams.stop(current_key().id, call_id)
    return json_response({"success": True})


def reason(outcome: Outcome, provided: FinishReason | None) -> FinishReason:
    """Return a choice's finish reason: the provider's, or one derived from the outcome."""
    return provided or ("cancelled" if outcome.reason == "stopped" else "stop")


def frame(data: Any, event: str | None = None) -> bytes:
    """Return one SSE frame with JSON data."""
    head = b"event: " + event.encode() + b"\n" if event else b""
    return head + b"data: " + escaped(msgspec.json.encode(data)) + b"\n\n"


def escaped(text: bytes) -> bytes:
    """Return JSON with Unicode line separators escaped, because some clients split lines there."""
    if not text.isascii() and (b"\xe2\x80" in text or b"\xc2\x85" in text):
        for raw, escape in SEPARATORS:
            text = text.replace(raw, escape)
    return text


class Template:
    """A frame in which only the text varies, so that everything else is encoded once."""

    TEXT: Final = f"text {uuid.uuid4()}"
    """A placeholder for the text; random, so that it never occurs elsewhere in the data."""

    def __init__(self, data: Any) -> None:
        self._parts = frame(data).split(msgspec.json.encode(self.TEXT))

    def filled(self, text: str) -> bytes:
        encoded = msgspec.json.encode(text)
        if not text.isascii():
            encoded = escaped(encoded)
        return encoded.join(self._parts)


def parts_of(data: Any) -> tuple[bytes, ...]:
    """Return the parts of a frame between which Template.TEXT stands, without its quotes."""
    return tuple(frame(data).split(Template.TEXT.encode()))


class Templates:
    """The templates of one stream: one per choice, discarded when another target takes over."""

    def __init__(self, stream: Stream) -> None:
        self._stream, self._target = stream, stream.target
        self._of: dict[int, Callable[[str], bytes]] = {}

    def of(self, index: int, shape: Callable[[int, str], Any]) -> Callable[[str], bytes]:
        """Return a function that makes a choice's frame from a text; valid for the current target.

        Args:
            index: the choice's index.
            shape: makes a frame's data from the choice's index and a text.
        """
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
