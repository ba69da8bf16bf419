"""Ids: of requests, streams, answers and rows.

Rules that hold here: an id names something and opens nothing, so it is unique and need not be a
secret: a system call for each (10 us) is saved. The random module seeds itself anew in a fork.
"""

from __future__ import annotations

import random


def hexadecimal(digits: int) -> str:
    """That many hexadecimal digits of chance."""
    return f"{random.getrandbits(4 * digits):0{digits}x}"


def new_uuid() -> str:
    """A UUID of version 4. Source: RFC 9562, section 5.4 (read 2026-11)."""
    chance = hexadecimal(32)
    variant = "89ab"[int(chance[16], 16) & 3]
    return f"{chance[:8]}-{chance[8:12]}-4{chance[13:16]}-{variant}{chance[17:20]}-{chance[20:]}"
