"""The counts of a process's work on resumable streams in Redis, for the metrics."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class ReplayCounts:
    bytes: int = 0
    """The bytes that all processes have reserved, when this one last asked."""
    copies: int = 0
    """The open and ended copies of other processes' streams."""
    appends: int = 0
    """The entries that were appended."""
    append_seconds: float = 0.0
    """The time that the scripts took that append."""
    repeats: int = 0
    """How often a stream in Redis differed from what had been written."""
    given_up: int = 0
    """The streams that are no longer written to Redis, although they go on."""
    reads: int = 0
    """The reads of other processes' streams."""
