"""The recorder of a resumable call: it writes the call's frames to its log, in its face's format.

- It replaces the call's mailbox. The reader never waits for a client.
- Texts go to the log as JSON. The face's encoder writes all other frames.
- A comment goes before the next frame, without a blank line: some SDKs take a blank line for an
  event once there are ids.
- The call is settled first. Only then do the last frames follow, and the end.
- Nothing that runs under the lock waits.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, Final, NamedTuple, Protocol

import msgspec

from completion import PIECE, Added, Batch, Completion, Delta, Event, Finished, FinishReason, fold
from concurrency.yielding import paced
from endpoints.calls import escaped, frame
from endpoints.frame_events import events_in
from endpoints.responses import encoded_in_pieces
from errors import ClientGone, InternalError, SluiceError, StreamTrimmed
from gateway.call import Call, Encoder, Outcome
from streams.mailbox import End, Mailbox, Nudge
from streams.replay import About, Ending, Replay, State
from streams.replay_log import FRAME, FrameParts
from streams.replay_store import ReplayStore
from streams.stream import Stream

log = logging.getLogger("sluice.streams")

GROWTH: Final = 4096
"""The bytes of entries after which a log's size is checked again."""
LEAST_SHARED: Final = 256
"""The bytes of a text from which the whole answer shares it with the log."""
ACCEPTED: Final = 202
STATES: Final[dict[str, State]] = {
    "completed": "completed",
    "stopped": "stopped",
    "client_gone": "stopped",
    "shutdown": "interrupted",
}
CONTINUED: Final = b": the stream was interrupted; another attempt continues it from here\n"


class ResumableEncoder(Encoder, Protocol):
    """An encoder whose frames can be replayed."""

    def template(self, index: int) -> FrameParts | None:
        """Return the parts of the frame of a choice's text, or None if more than the text varies.

        The choice then counts as seen.
        """


class ReplayFace(NamedTuple):
    """A format of answers. A stream is followed on the face on which its call was made."""

    name: str
    error_body: Callable[[SluiceError, str], Any]
    """Makes the JSON body of an error from it and the request's id."""
    error_frame: Callable[[SluiceError, str], bytes]
    events: Callable[[bytes], Iterable[Event]] = events_in
    """Returns the events of a frame of the encoder."""


def plain_face(
    name: str,
    error_body: Callable[[SluiceError, str], Any],
    events: Callable[[bytes], Iterable[Event]] = events_in,
) -> ReplayFace:
    """Return a face whose streams have an error's body in an unnamed frame."""
    return ReplayFace(name, error_body, lambda error, sent: frame(error_body(error, sent)), events)


class Recorder(Mailbox):
    """The sink of one call's events, and its end."""

    keeps_answer = True

    def __init__(
        self,
        call: Call,
        face: ReplayFace,
        encoder: Callable[[Stream], ResumableEncoder],
        answer: Callable[[Stream, Completion, Outcome], Any],
        *,
        store: ReplayStore,
        run: Callable[[Callable[[], object]], None],
        status: int | None,
    ) -> None:
        """Make the call resumable.

        Args:
            encoder: makes the face's encoder for a stream.
            answer: makes the face's JSON body of a whole completion.
            run: runs work in another thread.
            status: the status of the first connection's response if the call doesn't fail; None if
                it is a stream's.
        """
        super().__init__()
        stream = call.stream
        self._call, self._stream, self._face, self._answer = call, stream, face, answer
        self._store, self._run, self._status = store, run, status
        self._encoder = encoder(stream)
        self.replay = Replay((stream.key_id, stream.id), face.name, partial(about, stream))
        self.replay.abandon = partial(stream.end, "client_gone")
        self.replay.encode_error = partial(encoded, face, stream.request_id)
        self._log = self.replay.log
        self._begun = False
        """True once the first event has been recorded."""
        self._remarks = b""
        self._plain = True
        """True until fields of the provider must go into the frames."""
        self._target = stream.target
        self._kinds: dict[int, int | None] = {}
        """The kind of the entries of each choice's texts, at the current target."""
        self._indexes: dict[int, int] = {}
        """The choice of each kind of entries."""
        self._reasons: dict[int, FinishReason] = {}
        self._unchecked = 0
        store.add(self.replay)
        stream.record(self, self._on_end)

    def put(self, batch: Batch, weight: int) -> bool:
        """Write a batch to the log. Return False if the call has ended. Never wait."""
        with self._lock:
            if self._end is not None:
                return False
            self._record(batch)
            self._unchecked += weight
            if self._unchecked > GROWTH:
                self._unchecked = 0
                self._store.grown(self.replay)
        self.replay.wake()
        return True

    def nudge(self, nudge: Nudge) -> None:
        if nudge is Nudge.CONTINUED:
            self._remarks += CONTINUED
        elif nudge is Nudge.RELEASE:
            with self._lock:
                if self._end is not None or self._begun:
                    return
                self._append(self._encoder.begin())
            self.replay.release()

    def restart(self) -> None:
        """Do nothing: a resumable call is a stream, so nothing is ever taken back."""

    def end(self, end: End) -> bool:
        with self._lock:
            if self._end is not None:
                return False
            self._end = end
            return True

    @property
    def full(self) -> bool:
        return False

    def _record(self, batch: Batch) -> None:
        """Append a batch to the log."""
        if not self._begun:
            self._begun = self.replay.released = True
            self._append(self._encoder.events([]))
        if self._stream.target is not self._target:
            self._target, self._kinds = self._stream.target, {}
        for event in batch:
            if isinstance(event, Delta):
                if event.logprobs is None and self._plain and not self._remarks:
                    kind = self._kinds.get(event.index) or self._kind_of(event.index)
                    if kind:
                        text = msgspec.json.encode(event.text)
                        self._log.append(kind, (text if text.isascii() else escaped(text))[1:-1])
                        continue
            elif isinstance(event, Finished):
                self._reasons[event.index] = event.reason
            elif isinstance(event, Added):
                self._plain = False
            self._append(self._encoder.events([event]))

    def _kind_of(self, index: int) -> int | None:
        if index not in self._kinds:
            parts = self._encoder.template(index)
            kind = self._kinds[index] = None if parts is None else self._log.add_template(parts)
            if kind is not None:
                self._indexes[kind] = index
        return self._kinds[index]

    def _append(self, data: bytes) -> None:
        """Append encoded frames to the log, each with the comments before it."""
        for block in data.split(b"\n\n") if data else ():
            if block.startswith(b":"):
                self._remarks += block + b"\n"
            elif block:
                remarks, self._remarks = self._remarks, b""
                self._log.append(FRAME, remarks + block + b"\n\n")

    def _on_end(self, end: End) -> None:
        self._run(partial(self._finish, end))

    def _finish(self, end: End) -> None:
        """Settle the call, and close its log. Raises nothing."""
        replay, error = self.replay, end.error
        refusal = self._refusal(error)
        try:
            outcome = shown(self._call.settle_as(end, self._status_of(end, refusal)))
            frames = self._encoder.last_frames(outcome)
            result, kinds = self._result(outcome, frames)
        except Exception:
            log.exception(
                "the end of a call is lost", extra={"request_id": self._stream.request_id}
            )
            error = InternalError()
            refusal, result, kinds = self._refusal(error), (self._failure(error),), frozenset()
            frames = self._face.error_frame(error, self._stream.request_id)
        self._append(frames)
        state = "failed" if error is not None else "completed"
        known = msgspec.structs.replace(about(self._stream), state=STATES.get(end.reason, state))
        replay.close(Ending(known, result, kinds, refusal, time.time()))
        self._store.ended(replay)
        self._stream.on_end = None  # nothing of a call must outlive it, except its log

    def _refusal(self, error: SluiceError | None) -> SluiceError | None:
        """Return the error that the first connection gets as its response, if it gets one."""
        return None if self._status is None and self.replay.released else error

    def _status_of(self, end: End, refusal: SluiceError | None) -> int:
        """Return the HTTP status of the first connection's response, for the ledger."""
        if end.reason == "client_gone":
            return ClientGone.status
        if self._status == ACCEPTED or refusal is None:
            return self._status or 200
        return refusal.status

    def _failure(self, error: SluiceError) -> bytes:
        return msgspec.json.encode(self._face.error_body(error, self._stream.request_id))

    def _result(
        self, outcome: Outcome, last_frames: bytes
    ) -> tuple[tuple[bytes, ...], frozenset[int]]:
        """Return the whole answer in JSON: its parts, and the kinds of the text between them."""
        if outcome.error is not None:
            return (self._failure(outcome.error),), frozenset()
        if self._log.first > 1:
            return (self._failure(StreamTrimmed(self._log.first)),), frozenset()
        completion = fold(self._events(last_frames))
        data = self._answer(self._stream, completion, outcome)
        if sum([len(choice.text) for choice in completion.choices]) > PIECE:
            data = encoded_in_pieces(data)
        body = escaped(msgspec.json.encode(data))  # as the texts in the log are
        kinds = frozenset(kind for kind, index in self._indexes.items() if index == 0)
        text = b"".join([entry for kind, entry in self._log.runs() if kind in kinds])
        return (tuple(body.split(text)), kinds) if len(text) >= LEAST_SHARED else ((body,), kinds)

    def _events(self, last_frames: bytes) -> Iterator[Event]:
        """Yield the events of the log's entries, and the provider's fields in the last frames."""
        for kind, entry in paced(self._log.runs()):
            if kind == FRAME:
                yield from self._face.events(entry)
            else:
                yield Delta(self._indexes[kind], msgspec.json.decode(b'"' + entry + b'"'))
        for block in last_frames.split(b"\n\n"):
            yield from (event for event in self._face.events(block) if isinstance(event, Added))
        for index, reason in self._reasons.items():
            yield Finished(index, reason)


def encoded(face: ReplayFace, request_id: str, error: SluiceError) -> tuple[bytes, bytes]:
    """Return an error as a frame and as JSON, in a face's format."""
    body = msgspec.json.encode(face.error_body(error, request_id))
    return face.error_frame(error, request_id), body


def shown(outcome: Outcome) -> Outcome:
    """Return an outcome as clients see it. A call that nobody followed was stopped."""
    if outcome.reason == "client_gone":
        return msgspec.structs.replace(outcome, reason="stopped")
    return outcome


def about(stream: Stream) -> About:
    return About(
        request_id=stream.request_id,
        opened_at=stream.opened_at,
        state="in_progress" if stream.attempts else "queued",
        provider=stream.target.provider.name,
        model=stream.target.model,
    )
