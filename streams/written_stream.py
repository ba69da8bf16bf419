"""One resumable stream of this process on its way to Redis: what Redis has of it, and what is next.

- The module does no I/O, and one thread uses it.
- A stream's entries continue those that Redis has. If Redis has others than expected, the stream
  goes on from there.
"""

from __future__ import annotations

import secrets
from collections import deque
from typing import Any, Final

from errors import StreamInterrupted
from streams.replay import Replay
from streams.replay_codec import (
    ENTRY_BYTES,
    FENCE,
    encode,
    entry_id,
    facts_of,
    key_entry,
    parsed_id,
)
from streams.replay_scripts import DROPPED, LEAST_TTL_S, REFUSED, STREAM, AppendItem
from streams.replay_store import STREAM_BYTES

KEY_ENTRY_BYTES: Final = 256 * 1024
"""The bytes of entries after which there is another key entry. Redis drops entries up to one."""
CHECK_S: Final = 5.0
"""The interval at which a stream's last entry in Redis is checked."""
CHECKED_S: Final = 15.0
"""The time after its end for which a stream is checked."""
RENEWALS: Final = 4
"""How often an active stream's time to live is put off within it."""
NONCE_BITS: Final = 48
ENTRY_OVERHEAD, EMPTY_BYTES = 24, 1024
"""About the bytes that an entry takes in Redis beside its content, and those of an empty stream."""
FIRST_STEP, MOST_STEP = 16 << 10, 256 << 10
"""The bytes that are reserved for a new stream, and the most by which that grows at once."""
REPLACE, MISSING = b"*", b""
"""The expected last ids of a stream that isn't in Redis yet, and of one that no longer is."""
UNKNOWN: Final = -1
"""The newest template in Redis if the next entry must be a key entry."""


class WrittenStream:
    """A stream of this process, as far as it is in Redis."""

    def __init__(self, replay: Replay, owner: str, ttl: float) -> None:
        """Begin with a stream of which nothing is in Redis.

        Args:
            owner: the name of this process.
            ttl: the seconds after which Redis drops the stream, unless that is put off.
        """
        self.replay = replay
        self.key = f"{STREAM}{'/'.join(replay.key)}".encode()
        self.more = False
        """True if the last item was too small for all that Redis lacks."""
        self.check_at = 0.0
        """The monotonic time at which the stream's last entry in Redis is checked."""
        self.done_at = float("inf")
        """The monotonic time from which the stream isn't checked any more."""
        self.size = EMPTY_BYTES
        """About the bytes that the stream takes in Redis."""
        self.ends = False
        """True if the last item is the fence."""
        self.reserved = self.wanted = 0
        """The bytes that are reserved for it in Redis, and those that the last item needs; 0 if it
        needs no other reservation."""
        self._owner, self._ttl = owner, max(ttl, LEAST_TTL_S)
        self._renew_at = 0.0
        self._errors = replay.encode_error(StreamInterrupted())
        self.nonce = b"%d" % (secrets.randbits(NONCE_BITS) + 1)

        # What Redis has.
        self._top, self._sent = REPLACE, 0
        """The id of the last entry, and its number."""
        self._kind = UNKNOWN
        """The newest template."""
        self._read_to = -1
        """The highest number that a copy may have from entries that Redis lost. Entries before it
        are key entries when they are written again: a copy doesn't read those that it needn't, and
        mustn't miss their templates."""
        self._key_entries: deque[list[Any]] = deque()
        """The ids of the key entries, each with the bytes up to the next one."""

        # The entry that was sent last.
        self._id, self._number, self._newest, self._bytes = b"", 0, 0, 0
        self._is_key = False
        self._dropped = 0
        """The number of key entries that go with what it lets Redis drop."""

    @property
    def fenced(self) -> bool:
        return self._sent == FENCE

    def next_item(self, now: float) -> AppendItem:
        """Return what the next script does for the stream."""
        self.check_at, self._id, self.more, self.wanted = now + CHECK_S, b"", False, 0
        if self._sent == FENCE:
            return self.key, self._top, b"", b"", b"", 0
        ttl = 0
        if now >= self._renew_at:
            ttl, self._renew_at = int(self._ttl * 1000), now + self._ttl / RENEWALS
        replay = self.replay
        log, ending = replay.log, replay.ending  # the end comes after the last frames
        piece = log.piece(self._sent, ENTRY_BYTES)
        count = len(piece[1])
        number = piece[0] + count - 1
        self.more = number < log.last
        ends = self.ends = ending is not None and not self.more
        if not (count or ends or self._top in (REPLACE, MISSING)):
            self.wanted = self.reserved if ttl else 0
            return self.key, self._top, b"", b"", b"", ttl
        newest = self._newest = log.newest_kind
        self._is_key = is_key = (
            newest != self._kind
            or self._sent == 0
            or ends
            or piece[0] <= self._read_to + 1
            or self._key_entries[-1][1] > KEY_ENTRY_BYTES
        )
        if is_key:
            facts = facts_of(replay, self._owner, *self._errors)
            entry = key_entry(log, piece, facts, ending if ends else None, STREAM_BYTES - self.size)
        else:
            entry = encode(piece)
        if ends:
            number, ttl = FENCE, int(self._ttl * 1000)
        self._number, self._bytes = number, len(entry) + ENTRY_OVERHEAD
        self._id = entry_id(number, self.nonce)
        size = self.size + self._bytes
        if ttl or size > self.reserved:  # the end has a TTL, too
            self.wanted = size if ends else reservation(size)
        lowest = self._lowest() if size > STREAM_BYTES else b""
        return self.key, self._top, self._id, entry, lowest, ttl

    def done(self, now: float) -> None:
        """Note that the item's work is done."""
        if not self._id:
            return
        self._top, self._sent, self._kind = self._id, self._number, self._newest
        self.size += self._bytes
        if self._is_key:
            self._key_entries.append([self._id, 0])
        self._key_entries[-1][1] += self._bytes
        for _ in range(self._dropped):
            self.size -= self._key_entries.popleft()[1]
        self._dropped = 0
        if self._sent == FENCE:
            self.done_at = now + CHECKED_S

    def differs(self, top: bytes, now: float) -> bool:
        """Go on from the stream's last entry in Redis, which isn't the expected one.

        Args:
            top: its id; empty if Redis doesn't have the stream.

        Returns:
            False if the stream in Redis is no longer this one, was ended by another process, had
            to make room for others, or can't be there.
        """
        if top and top == self._id:  # the script's result was lost
            self.done(now)
            self._kind = UNKNOWN  # the entry that Redis has may have had fewer templates
            return True
        if top in (REFUSED, DROPPED):
            return False
        self._dropped, self._kind, self._renew_at = 0, UNKNOWN, 0.0
        self._read_to = self.replay.log.last
        if not top:
            self._top, self._sent = MISSING, self.replay.log.first - 1
            self.size, self.reserved = EMPTY_BYTES, 0
            self._key_entries.clear()
            return True
        number, nonce = parsed_id(top)
        if nonce != self.nonce or number == FENCE:
            return False
        self._top, self._sent = top, number
        return True

    def _lowest(self) -> bytes:
        """Return the id of the oldest entry that stays when enough of the oldest are dropped."""
        left, self._dropped = self.size, 0
        entries = list(self._key_entries)
        while left > STREAM_BYTES and self._dropped < len(entries) - 1:
            left -= entries[self._dropped][1]
            self._dropped += 1
        return bytes(entries[self._dropped][0]) if self._dropped else b""


def reservation(size: int) -> int:
    """Return the bytes to reserve for a stream that takes `size` bytes, with room for more."""
    reserved = FIRST_STEP
    while reserved < size:
        reserved += min(reserved, MOST_STEP)
    return reserved
