"""A resumable stream as its connections see it: a log, and its followers.

- A follower never waits for another one, and the stream never waits for a follower.
- Whoever appends to the log calls `wake`. That is the recorder of the call. Followers don't know
  it, so a copy of another process's log can be followed too.
- The last frames are in the log before `close`, which comes after the call's settlement.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Final, Literal, TypeAlias

import msgspec

from completion import StreamKey
from concurrency.native import BriefLock
from concurrency.yielding import Yielder
from errors import (
    ClientGone,
    InvalidRequest,
    RateLimited,
    SluiceError,
    StreamTrimmed,
    limit_details,
)
from server.sockets import shut
from streams.disconnect import hung_up
from streams.replay_log import ReplayLog

MOST_FOLLOWERS: Final = 16
KEEP_ALIVE: Final = b":keep-alive\n"
"""A comment without a blank line. Some SDKs take a blank line for an event once there are ids."""
OPENED: Final = b":open\n"
LOST_ID: Final = 1 << 40
"""The id of the last frame of a stream whose process died: above any id that it may have sent."""
EMPTY_SIZE: Final = 2048
"""About the bytes of memory that a stream takes beside its log."""

State: TypeAlias = Literal["queued", "in_progress", "completed", "stopped", "failed", "interrupted"]


class About(msgspec.Struct, frozen=True):
    """The facts about a stream besides its frames."""

    request_id: str
    opened_at: float
    """A Unix time in seconds."""
    state: State
    provider: str
    model: str


class Ending(msgspec.Struct, frozen=True):
    """The end of a stream, after its settlement."""

    about: About
    result: tuple[bytes, ...]
    """The whole answer in JSON, or the error. Between its parts stands the text of choice 0."""
    text_kinds: frozenset[int] = frozenset()
    """The kinds of the log's entries that are the text of choice 0."""
    refusal: SluiceError | None = None
    """The error that ended the call before the first connection's status was sent."""
    ended_at: float = 0.0
    """A Unix time in seconds."""
    lost_frame: bytes = b""
    """The error that ends a stream whose process died. The stream may have had more frames than are
    known, so this one isn't in the log, and its id is LOST_ID."""


class Replay:
    """A resumable stream, active or ended."""

    def __init__(self, stream_key: StreamKey, face: str, about: Callable[[], About]) -> None:
        """Make a stream without frames.

        Args:
            face: the name of the face that the call was made on.
            about: returns what is known now, while the stream is active.
        """
        self.key, self.face = stream_key, face
        self.log = ReplayLog()
        self.ending: Ending | None = None
        self.released = False
        """True once the first connection may send its status line. A call that fails before never
        gets there, so its last frames don't make its response a stream."""
        self.awaited = False
        """True while the first connection waits for the whole answer, which takes all frames."""
        self.abandon: Callable[[], object] = lambda: None
        """Ends the call because nobody has followed it for too long."""
        self.keeps_alone = False
        """True if the call goes on without followers."""
        self.alone_since: float | None = time.monotonic()
        """The monotonic time since which there has been no follower; None if there are some."""
        self.encode_error: Callable[[SluiceError], tuple[bytes, bytes]] = lambda _: (b"", b"null")
        """Returns an error as a frame and as JSON, in the stream's face."""
        self.marks: set[Replay] | None = None
        """Takes this stream after each change, if it is written to Redis."""
        self._about = about
        self._lock = BriefLock()
        self.followers: tuple[Follower, ...] = ()

    @property
    def size(self) -> int:
        """The bytes of memory that the stream takes."""
        return (
            EMPTY_SIZE + self.log.size + (sum(map(len, self.ending.result)) if self.ending else 0)
        )

    @property
    def last(self) -> int:
        """The id of the newest frame."""
        lost = self.ending is not None and self.ending.lost_frame
        return LOST_ID if lost else self.log.last

    def about(self) -> About:
        ending = self.ending
        return ending.about if ending is not None else self._about()

    def follow(
        self, after: int, client: socket.socket | None, *, missed: bool, keepalive: float
    ) -> Follower:
        """Add a follower.

        Args:
            after: the number of the last frame that it has.
            client: its connection, if the server exposes it.
            missed: whether it missed frames, so that their texts are joined.
            keepalive: the seconds of silence after which it gets a comment.

        Raises:
            RateLimited: the stream has MOST_FOLLOWERS.
        """
        follower = Follower(self, after, client, missed=missed, keepalive=keepalive)
        with self._lock:
            full = len(self.followers) >= MOST_FOLLOWERS
            if not full:
                self.followers = (*self.followers, follower)
                self.alone_since = None
        if full:
            raise RateLimited(
                f"This stream already has {MOST_FOLLOWERS} followers, its maximum.",
                retry_after=1,
                details=limit_details("followers", MOST_FOLLOWERS, 1),
            )
        return follower

    def leave(self, follower: Follower) -> None:
        with self._lock:
            self.followers = (*[other for other in self.followers if other is not follower],)
            if not self.followers and self.alone_since is None:
                self.alone_since = time.monotonic()

    def followed_elsewhere(self, at: float) -> None:
        """Note that another process's client followed the stream at a monotonic time."""
        with self._lock:
            if self.alone_since is not None:
                self.alone_since = max(self.alone_since, at)

    def wake(self) -> None:
        """Wake the followers after a change, and mark the stream as changed."""
        marks = self.marks
        if marks is not None:
            marks.add(self)
        for follower in self.followers:
            follower.arrived.set()

    def release(self) -> None:
        self.released = True
        self.wake()

    def update(self, about: Callable[[], About]) -> None:
        """Replace the function that returns what is known while the stream is active."""
        self._about = about

    def cut(self) -> None:
        """Cut the followers' connections, so that they don't take this for the stream's end."""
        for follower in self.followers:
            follower.cut()

    def close(self, ending: Ending) -> None:
        """End the stream, whose last frames are in the log."""
        self.log.compact()
        self.ending = ending
        self._about = lambda: ending.about
        self.abandon = lambda: None
        self.wake()

    def result(self, ending: Ending) -> bytes:
        """Return the whole answer in JSON, or the error, of a stream that has ended."""
        if len(ending.result) == 1:
            return ending.result[0]
        kinds = ending.text_kinds
        text = b"".join([entry for kind, entry in self.log.runs() if kind in kinds])
        return text.join(ending.result)


class Follower:
    """One connection to a stream."""

    def __init__(
        self,
        replay: Replay,
        after: int,
        client: socket.socket | None,
        *,
        missed: bool,
        keepalive: float,
    ) -> None:
        self.replay = replay
        self.arrived = threading.Event()
        self._after = after
        self._missed = missed
        self._client, self._gone = client, False
        self._keepalive, self._silent = keepalive, False
        self._last_write = time.monotonic()

    def wait_until_begun(self) -> None:
        """Wait until the status line can be sent. Raises SluiceError if the call fails before."""
        replay = self.replay
        self._wait_until(lambda: replay.released or replay.ending is not None)
        if replay.ending is not None and replay.ending.refusal is not None:
            raise replay.ending.refusal

    def wait_until_ended(self) -> Ending:
        """Wait until the stream has ended. Raises ClientGone if the client leaves before."""
        replay = self.replay
        found: list[Ending] = []

        def ended() -> bool:
            if replay.ending is not None:
                found.append(replay.ending)
            return bool(found)

        self._wait_until(ended)
        return found[0]

    def _wait_until(self, happened: Callable[[], bool]) -> None:
        while True:
            self.arrived.clear()
            if happened():
                return
            if self._gone:
                raise ClientGone
            self.arrived.wait()

    def frames(self, error: Callable[[SluiceError], bytes]) -> Iterator[bytes]:
        """Yield the frames until the stream ends. Each yield is one write to the client.

        Args:
            error: encodes an error as a frame.
        """
        replay, log, yielder = self.replay, self.replay.log, Yielder()
        position = self._after
        try:
            if log.last <= position and replay.ending is None:
                yield OPENED
            while True:
                if log.last > position:
                    data, position = log.read(position, joined=self._missed)
                    yield data
                    self._last_write = time.monotonic()
                    if log.last > position:
                        yielder.yield_if_due()
                    continue
                self._missed = False
                self.arrived.clear()
                ended = replay.ending is not None  # read before the log, whose end comes first
                if log.last > position:
                    continue
                if ended or self._gone:
                    break
                if self._silent:
                    self._silent = False
                    yield KEEP_ALIVE
                self.arrived.wait()
            if not self._gone:
                yield from self._last_frame(position, error)
        except StreamTrimmed as failure:
            yield error(failure)
        finally:
            self.close()

    def _last_frame(self, position: int, error: Callable[[SluiceError], bytes]) -> Iterator[bytes]:
        """Yield what follows after the log of a stream that has ended."""
        replay, log = self.replay, self.replay.log
        if replay.ending is not None and replay.ending.lost_frame:
            if position < LOST_ID:
                yield b"id: %d\n%b" % (LOST_ID, replay.ending.lost_frame)
        elif log.last < position:
            # An interrupted stream's error is its last frame, for a client that has more, too.
            interrupted = replay.about().state == "interrupted"
            yield log.read(log.last - 1)[0] if interrupted else error(beyond(log.last))

    def look(self, now: float) -> None:
        """Check the connection, and whether it needs a keep-alive comment."""
        if self._client is not None and hung_up(self._client):
            self.cut()
        elif now - self._last_write >= self._keepalive:
            self._last_write, self._silent = now, True
            self.arrived.set()

    def cut(self) -> None:
        """End the connection without the response's last chunk."""
        self._gone = True
        self.replay.leave(self)
        if self._client is not None:
            shut(self._client)  # this wakes a writer that is blocked in send
        self.arrived.set()

    def close(self) -> None:
        self.replay.leave(self)


def beyond(last: int) -> InvalidRequest:
    """Return the error for a client that claims to have more than the stream has."""
    return InvalidRequest(
        f"The stream has ended, and its last event is {last}.", param="starting_after"
    )
