"""Resumable calls: how a caller requests one, its first connection, and the following ones.

- A call that isn't resumable costs nothing extra: nothing is looked up to decide that it isn't.
- Each connection, the first one too, is a follower. When it ends, the call goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any, Final

import msgspec
from flask import Response

from auth import current_key
from completion import Completion, CompletionRequest
from endpoints import calls, request_fields
from endpoints.flask_app import Request, current
from endpoints.recorder import ACCEPTED, Recorder, ReplayFace, ResumableEncoder
from endpoints.responses import DirectResponse, json_response
from endpoints.services import Services, services
from errors import (
    InvalidRequest,
    SluiceError,
    StreamNotFound,
    StreamTrimmed,
    Unavailable,
)
from gateway.call import Call, Outcome
from keys.key import Key
from quota.quota import instant
from streams.replay import Ending, Follower, Replay, beyond
from streams.stream import Stream

HEADER: Final = "X-Sluice-Resumable"
ENVIRON: Final = "HTTP_X_SLUICE_RESUMABLE"
MOST_CHOICES: Final = 8
TAKEN_ID: Final = "streams"
"""The id that no resumable stream may have: its path lists the active streams."""
SSE: Final = "text/event-stream"
LONGEST_NUMBER: Final = 15


def serve(
    found: request_fields.Parameters,
    wanted: CompletionRequest,
    encoder: Callable[[Stream], ResumableEncoder],
    answer: Callable[[Stream, Completion, Outcome], Any],
    face: ReplayFace,
) -> Response:
    """Start a call for the current request, and return its response in a face's format.

    Args:
        encoder: makes the face's encoder for a stream.
        answer: makes the face's JSON body of a whole completion.

    Raises:
        SluiceError: the call is refused, or failed before its response began.
    """
    request, key, parts = current(), current_key(), services()
    asked = found.resumable
    if asked is None:
        asked = key.resumable
        if asked is None:
            asked = parts.settings.resumable
        if ENVIRON in request.environ:
            asked = asked_by_header(request, default=asked)
    if not (asked or found.background):
        return calls.respond(calls.begin(request, key, parts, found, wanted), encoder, answer)
    reason = obstacle(wanted, key, parts)
    if reason is not None:
        if found.background:
            raise reason
        return not_resumable(
            calls.respond(calls.begin(request, key, parts, found, wanted), encoder, answer), reason
        )
    return Resumable(request, key, parts, face).begin(found, wanted, encoder, answer)


def asked_by_header(request: Request, *, default: bool) -> bool:
    """Return True if the header makes the call resumable.

    Args:
        default: what holds if the header is empty.

    Raises:
        InvalidRequest: the header is neither 1 nor 0.
    """
    text = request.environ[ENVIRON].strip()
    if text not in ("", "0", "1"):
        raise InvalidRequest(f"{HEADER}: expected 1 or 0.", param=HEADER)
    return default if not text else text == "1"


def obstacle(wanted: CompletionRequest, key: Key, parts: Services) -> SluiceError | None:
    """Return the reason why a call can't be resumable, or None."""
    if wanted.choices > MOST_CHOICES:
        return InvalidRequest(
            f"A resumable call can't have more than {MOST_CHOICES} choices.", param="n"
        )
    if not parts.gateway.replays.has_room(key.id):
        return Unavailable("There is no room to keep another resumable stream. Try again later.")
    return None


def not_resumable(response: DirectResponse, reason: SluiceError) -> DirectResponse:
    """Return a plain call's response with the reason why the call isn't resumable."""
    response.fields[HEADER] = "0"
    if response.fields["Content-Type"].startswith(SSE):
        comment = f": not resumable: {reason.message}\n\n".encode()
        body: Any = response.response
        response.response = chain([comment], body)
    return response


class Resumable:
    """The resumable calls of one request's key, on one face."""

    def __init__(self, request: Request, key: Key, parts: Services, face: ReplayFace) -> None:
        self._request, self._key, self._parts, self._face = request, key, parts, face
        self._store = parts.gateway.replays
        self._only_here = ""
        """Why a new stream can't be followed at other processes; empty if it can."""

    def begin(
        self,
        found: request_fields.Parameters,
        wanted: CompletionRequest,
        encoder: Callable[[Stream], ResumableEncoder],
        answer: Callable[[Stream, Completion, Outcome], Any],
    ) -> Response:
        """Start a call, and return the response to its first connection. Raises SluiceError."""
        background = bool(found.background)
        status = None if wanted.stream else ACCEPTED if background else 200
        self._check_id(found.stream_id, self._request.environ.get("HTTP_X_STREAM_ID"))
        if self._parts.shared_replays is not None:
            self._only_here = self._parts.shared_replays.obstacle(self._key.id)
        replays: list[Replay] = []

        def record(call: Call) -> None:
            recorder = Recorder(
                call,
                self._face,
                encoder,
                answer,
                store=self._store,
                run=self._parts.gateway.start,
                status=status,
            )
            recorder.replay.keeps_alone = background
            recorder.replay.awaited = status == 200
            replays.append(recorder.replay)

        request = streamed(wanted)
        call = calls.begin(self._request, self._key, self._parts, found, request, record)
        [replay] = replays
        if status == ACCEPTED:
            return self._accepted(replay)
        return self._first(replay, call, streamed=status is None)

    @staticmethod
    def _check_id(in_body: str | None, in_header: str | None) -> None:
        """Raise SluiceError if a new stream can't have the id that the client chose, if any."""
        if TAKEN_ID in (in_body, in_header):
            raise InvalidRequest(
                f"A resumable stream can't have the id {TAKEN_ID!r}.", param="stream_id"
            )

    def _first(self, replay: Replay, call: Call, *, streamed: bool) -> Response:
        """Return the response to a call's first connection. Raises SluiceError."""
        follower = self._follower(replay, 0, missed=False)
        try:
            if streamed:
                follower.wait_until_begun()
                return self._stream(follower, calls.headers(call))
            ending = follower.wait_until_ended()
        except BaseException:
            replay.awaited = False
            follower.close()
            raise
        try:
            return self._whole(replay, ending, calls.headers(call))
        finally:
            follower.close()

    def _accepted(self, replay: Replay) -> Response:
        path = self._request.root_path + self._request.path.rstrip("/")
        location = {"Location": f"{path}/{replay.key[1]}"}
        return json_response(self.state(replay), ACCEPTED, self._headers(replay) | location)

    def _whole(self, replay: Replay, ending: Ending, headers: dict[str, str]) -> Response:
        if ending.refusal is not None:
            raise ending.refusal
        body = replay.result(ending)
        length = {"Content-Length": str(len(body))}
        return DirectResponse((body,), headers=length | self._headers(replay) | headers)

    def follow(self, stream_id: str) -> Response:
        """Return the response to a connection that follows a stream, or asks for its state.

        Raises SluiceError.
        """
        stream_key = (self._key.id, stream_id)
        replay = self._store.find(stream_key)
        if replay is None and self._parts.shared_replays is not None:
            replay = self._parts.shared_replays.find(stream_key)
        if replay is None or replay.face != self._face.name:
            raise no_stream()
        if not wants_stream(self._request):
            return json_response(self.state(replay), headers=self._headers(replay))
        after = position(self._request)
        ended = replay.ending is not None  # read before the log, whose end comes first
        if ended and after > replay.last and replay.about().state == "interrupted":
            after = replay.last - 1  # what the client has beyond is lost, so it gets the error
        if ended and after >= replay.last:
            if after > replay.last:
                raise beyond(replay.last)
            return DirectResponse((), 204, self._headers(replay))
        if after + 1 < replay.log.first:
            raise StreamTrimmed(replay.log.first)
        return self._stream(self._follower(replay, after, missed=True), {})

    def state(self, replay: Replay) -> dict[str, Any]:
        """Return a stream's state, and its result if it has ended, as JSON."""
        ending, about = replay.ending, replay.about()
        found = {
            "stream_id": replay.key[1],
            "request_id": about.request_id,
            "status": about.state,
            "provider": about.provider,
            "model": about.model,
            "created_at": instant(about.opened_at),
            "last_event_id": replay.last,
            "expires_at": self._expiry(ending),
        }
        if ending is not None:
            found["result"] = msgspec.Raw(self._result(replay, ending))
        return found

    def _result(self, replay: Replay, ending: Ending) -> bytes:
        """Return the whole answer in JSON, or the error."""
        first = replay.log.first
        if not ending.result or (len(ending.result) > 1 and first > 1):  # of a copy
            return msgspec.json.encode(
                self._face.error_body(StreamTrimmed(first), ending.about.request_id)
            )
        return replay.result(ending)

    def _expiry(self, ending: Ending | None) -> str | None:
        if ending is None:
            return None
        at = ending.ended_at + self._parts.settings.replay
        return instant(at)

    def _headers(self, replay: Replay) -> dict[str, str]:
        return {"X-Stream-ID": replay.key[1], HEADER: "0" if self._only_here else "1"}

    def _follower(self, replay: Replay, after: int, *, missed: bool) -> Follower:
        keepalive = self._parts.settings.keepalive
        return replay.follow(after, self._request.client, missed=missed, keepalive=keepalive)

    def _stream(self, follower: Follower, headers: dict[str, str]) -> Response:
        request_id = self._request.id
        frames: Iterator[bytes]
        frames = follower.frames(lambda error: self._face.error_frame(error, request_id))
        if self._only_here:
            frames = chain([b": this process only: %b\n" % self._only_here.encode()], frames)
        response = DirectResponse(
            frames,
            headers=calls.STREAM_HEADERS | headers | self._headers(follower.replay),
            content_type=f"{SSE}; charset=utf-8",
        )
        # Needed because a generator that was never started skips its `finally`.
        response.call_on_close(follower.close)
        return response


def follow(stream_id: str, face: ReplayFace) -> Response:
    """Return the response to a GET of a stream on a face. Raises SluiceError."""
    return Resumable(current(), current_key(), services(), face).follow(stream_id)


def streamed(wanted: CompletionRequest) -> CompletionRequest:
    """Return a request that is streamed by the provider, whatever its caller wants."""
    if wanted.chat is not None:
        wanted.chat.fields["stream"] = msgspec.Raw(b"true")
    return msgspec.structs.replace(wanted, stream=True)


def no_stream() -> StreamNotFound:
    return StreamNotFound(
        "No resumable stream has this id at this path. It may have expired already."
    )


def wants_stream(request: Request) -> bool:
    """Return True if a GET asks for events. Raises InvalidRequest."""
    text = request.args.get("stream")
    if text is not None:
        if text.lower() not in ("true", "false", "1", "0"):
            raise InvalidRequest("stream: expected true or false.", param="stream")
        return text.lower() in ("true", "1")
    return SSE in request.environ.get("HTTP_ACCEPT", "").lower()


def position(request: Request) -> int:
    """Return the number of the last event that a client has. Raises InvalidRequest."""
    text, name = request.args.get("starting_after"), "starting_after"
    if text is None:
        text, name = request.environ.get("HTTP_LAST_EVENT_ID", ""), "Last-Event-ID"
    text = text.strip()
    if not text:
        return 0
    if not (text.isascii() and text.isdecimal() and len(text) <= LONGEST_NUMBER):
        raise InvalidRequest(f"{name}: expected the id of an event, such as 17.", param=name)
    return int(text)
