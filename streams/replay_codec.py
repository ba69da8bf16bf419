"""The entries of a resumable stream in Redis: a piece of its log, and what else followers need.

- The module is pure: no lock, no clock, no I/O.
- An entry's id in Redis is N-NONCE. N is the number of the last frame of the entry; NONCE is the
  call's own, so that another call with the stream's id is recognized.
- The last entry is the fence: it has the highest N that there is, so nothing can follow it.
- A key entry has all templates and the facts about the stream. A copy can begin at any key entry.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Final

import msgspec

from streams.replay import LOST_ID, About, Ending, Replay, State
from streams.replay_log import FrameParts, LogPiece, ReplayLog
from streams.replay_scripts import ENTRY

FENCE: Final = (1 << 64) - 1
ENTRY_BYTES: Final = 64 * 1024
"""About the most bytes of frames in an entry."""
END_BYTES: Final = 4
"""The bytes of a number in `ReplayEntry.ends`."""
LATEST: Final = 1e11
"""The Unix time in seconds from which a time counts as invalid."""


class InvalidEntry(Exception):
    """The error for an entry that can't be read: a later release or another program wrote it."""


class Facts(msgspec.Struct, array_like=True, frozen=True):
    """The facts about a stream besides its frames."""

    face: str
    owner: str
    """The name of the process that runs the call."""
    request_id: str
    opened_at: float
    state: State
    provider: str
    model: str
    error_frame: bytes
    """The frame of the error `interrupted`, which followers get if the owner dies."""
    error_body: bytes
    """The JSON of that error."""

    def about(self) -> About:
        return About(
            request_id=self.request_id,
            opened_at=self.opened_at,
            state=self.state,
            provider=self.provider,
            model=self.model,
        )


class Close(msgspec.Struct, array_like=True, frozen=True):
    """The end of a stream, in its fence."""

    result: tuple[bytes, ...]
    """As in Ending; empty if the whole answer is too large."""
    text_kinds: tuple[int, ...]
    ended_at: float
    orphaned: bool = False
    """True if the owner died. The error is then the last frame, whatever a copy has."""


class ReplayEntry(msgspec.Struct, array_like=True, frozen=True):
    """A piece of a log. A key entry has the other fields too."""

    first: int
    kinds: bytes
    base: int
    ends: bytes
    data: bytes
    templates: tuple[FrameParts, ...] = ()
    facts: Facts | None = None
    close: Close | None = None

    @property
    def last(self) -> int:
        """The number of the last frame."""
        return self.first + len(self.kinds) - 1


encode: Final = msgspec.msgpack.Encoder().encode
decode: Final = msgspec.msgpack.Decoder(ReplayEntry).decode


def read_entry(number: int, fields: Mapping[bytes, bytes]) -> ReplayEntry:
    """Return an entry from its fields in Redis.

    Args:
        number: that in its id.

    Raises:
        InvalidEntry: the fields contradict each other, or have another form.
    """
    try:
        entry = decode(fields[ENTRY])
    except (KeyError, msgspec.DecodeError):
        raise InvalidEntry from None
    if not (is_piece(entry) and has_times(entry)) or (number == FENCE and ending_of(entry) is None):
        raise InvalidEntry
    return entry


def is_piece(entry: ReplayEntry) -> bool:
    """Return True if the piece of the log in an entry is consistent."""
    count, ends = len(entry.kinds), entry.ends
    if len(ends) != count * END_BYTES or entry.base < 0:
        return False
    if not count:
        return not entry.data
    first = int.from_bytes(ends[:END_BYTES], sys.byteorder)
    last = int.from_bytes(ends[-END_BYTES:], sys.byteorder)
    return (
        entry.base <= first
        and last - entry.base == len(entry.data)
        and entry.first > 0
        and entry.last < LOST_ID
    )


def has_times(entry: ReplayEntry) -> bool:
    """Return True if the times in an entry can be shown."""
    opened_at = entry.facts.opened_at if entry.facts else 0.0
    ended_at = entry.close.ended_at if entry.close else 0.0
    return 0 <= opened_at < LATEST and 0 <= ended_at < LATEST


def facts_of(replay: Replay, owner: str, frame: bytes, body: bytes) -> Facts:
    """Return what is known of a stream now.

    Args:
        owner: the name of this process.
        frame: the frame of the error `interrupted`.
        body: its JSON.
    """
    about = replay.about()
    return Facts(
        replay.face,
        owner,
        about.request_id,
        about.opened_at,
        about.state,
        about.provider,
        about.model,
        frame,
        body,
    )


def key_entry(
    log: ReplayLog, piece: LogPiece, facts: Facts, ending: Ending | None, most: int
) -> bytes:
    """Return a key entry, which is the fence if the stream has ended.

    Args:
        most: the most bytes of the whole answer. A larger one is left out.
    """
    close = None
    if ending is not None:
        result = ending.result if sum(map(len, ending.result)) <= most else ()
        close = Close(result, tuple(ending.text_kinds), ending.ended_at)
    return encode((*piece, log.templates, facts, close))


def interrupted(facts: Facts, now: float) -> bytes:
    """Return the fence of a stream whose owner died. It has no frames.

    Args:
        now: the Unix time in seconds.
    """
    known = msgspec.structs.replace(facts, state="interrupted")
    close = Close((facts.error_body,), (), now, orphaned=True)
    return encode(ReplayEntry(0, b"", 0, b"", b"", facts=known, close=close))


def entry_id(number: int, nonce: bytes) -> bytes:
    return b"%d-%b" % (number, nonce)


def parsed_id(name: bytes) -> tuple[int, bytes]:
    """Return the number and the nonce of an entry's id."""
    number, _, nonce = name.partition(b"-")
    return int(number), nonce


def add_to(replay: Replay, entry: ReplayEntry) -> None:
    """Append what a copy of a stream lacks of an entry. Raises InvalidEntry."""
    if entry.templates:
        replay.log.set_templates(entry.templates)
    if entry.kinds:
        if max(entry.kinds) > replay.log.newest_kind:
            raise InvalidEntry
        replay.log.extend((entry.first, entry.kinds, entry.base, entry.ends, entry.data))


def ending_of(entry: ReplayEntry) -> Ending | None:
    """Return the end of a stream from its fence; None for any other entry."""
    if entry.close is None or entry.facts is None:
        return None
    close = entry.close
    about, kinds = entry.facts.about(), frozenset(close.text_kinds)
    lost = entry.facts.error_frame if close.orphaned else b""
    return Ending(about, close.result, kinds, None, close.ended_at, lost)
