"""Reading of a request's body, limited in size and time."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import suppress
from io import BytesIO
from typing import IO, NoReturn

from werkzeug.exceptions import ClientDisconnected

from concurrency.yielding import Yielder
from endpoints.flask_app import Request
from errors import InvalidRequest, RequestTimeout, RequestTooLarge, SluiceError
from server.read_deadline import read_deadlines

READ_SIZE = 4 * 1024
"""Bytes per read of a body in chunks. Small, because a read can parse thousands of one-byte chunks
without yielding."""
LONG_READ_SIZE = 32 * 1024
"""Bytes per read of a body whose length was announced."""
DRAIN_BYTES = 16 * 1024 * 1024
"""How many bytes of a too large body are read, so that its sender sees the response."""
DRAIN_S = 5.0
PATIENCES = 4
"""The time limit for the whole body, as a multiple of the client's timeout for a single read."""


def read_body(
    request: Request, limit: int, arrived: Callable[[int], None] | None = None
) -> bytes | bytearray:
    """Return the whole body, whether its length was announced or not.

    Args:
        limit: the most bytes that the body may have.
        arrived: a callback for the bytes of a body whose length wasn't announced, as they arrive.
            It may raise SluiceError.

    Raises:
        InvalidRequest: the body is incomplete or badly framed.
        RequestTimeout: the client was too slow.
        RequestTooLarge: the body exceeds the limit.
    """
    announced = request.announced
    if (announced or 0) > limit:
        too_large(request, limit)
    stream = request.incoming
    if announced is not None and isinstance(stream, BytesIO):  # it arrived with the headers
        return stream.read()
    try:
        return gathered(request, stream, limit, arrived if announced is None else None)
    except TimeoutError:
        raise RequestTimeout("The body did not arrive in time.") from None
    except (OSError, ClientDisconnected) as error:
        if isinstance(error.__context__, TimeoutError):  # werkzeug's own server hides it
            raise RequestTimeout("The body did not arrive in time.") from None
        raise InvalidRequest("The body is incomplete.") from None
    except SluiceError:
        raise
    except Exception:  # noqa: BLE001 - the server's own errors, which quote badly framed bytes
        raise InvalidRequest("The body could not be read: its framing is invalid.") from None


def gathered(
    request: Request, stream: IO[bytes], limit: int, arrived: Callable[[int], None] | None
) -> bytearray:
    """Read a body piece by piece into one buffer. Joining pieces would double the memory.

    Raises RequestTooLarge, and what `stream` and `arrived` raise.
    """
    client, announced = request.client, request.announced or 0
    found = bytearray()
    room, size = limit, READ_SIZE if request.announced is None else LONG_READ_SIZE
    left = limit - announced  # the room that remains once the announced length has arrived
    yielder = Yielder()
    patience = (client and client.gettimeout()) or math.inf
    with read_deadlines.within(client, PATIENCES * patience):
        while chunk := stream.read(min(size, room + 1)):
            yielder.yield_if_due()
            room -= len(chunk)
            if room < 0:
                break
            if arrived is not None:
                arrived(len(chunk))
            found += chunk
            if room == left:
                break
    if room < 0:
        too_large(request, limit)
    return found


def too_large(request: Request, limit: int) -> NoReturn:
    """Read the rest of the body up to a bound, then raise RequestTooLarge.

    Some clients would otherwise see a broken pipe instead of the response.
    """
    room, until = DRAIN_BYTES, time.monotonic() + DRAIN_S
    yielder = Yielder()
    # Errors in the rest don't matter: the body is too large anyway.
    with suppress(Exception), read_deadlines.within(request.client, DRAIN_S):
        while room > 0 and time.monotonic() < until and (chunk := request.stream.read(READ_SIZE)):
            yielder.yield_if_due()
            room -= len(chunk)
    raise RequestTooLarge(f"The body is larger than {limit} bytes.")
