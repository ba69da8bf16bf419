"""Reading a request's body: how much of it, for how long, and what a client hears when it fails."""

from __future__ import annotations

import math
import time
from contextlib import suppress
from io import BytesIO
from typing import IO, NoReturn

from werkzeug.exceptions import ClientDisconnected

from concurrency.yielding import Yielder
from endpoints.flask_app import Request
from errors import InvalidRequest, RequestTimeout, RequestTooLarge, SluiceError
from server.read_deadline import read_deadlines

READ_SIZE = 4 * 1024  # a body can come in chunks of a byte, 3 us each
DRAIN_BYTES = 16 * 1024 * 1024  # of a body that is too large, so that its sender hears why
DRAIN_S = 5.0
PATIENCES = 4
"""How often all of a body may take what a client may keep us waiting for a piece of it."""


def read_body(request: Request, limit: int) -> bytes:
    """All of the body, at most `limit` bytes; also when its length was not announced."""
    announced = request.announced
    if (announced or 0) > limit:
        too_large(request, limit)
    stream = request.incoming
    if announced is not None and isinstance(stream, BytesIO):  # it came along with the head
        return stream.read()
    try:
        return gathered(request, stream, limit)
    except TimeoutError:
        raise RequestTimeout("The body did not arrive in time.") from None
    except (OSError, ClientDisconnected) as error:
        if isinstance(error.__context__, TimeoutError):  # werkzeug's own server hides it
            raise RequestTimeout("The body did not arrive in time.") from None
        raise InvalidRequest("The body ended before its end.") from None
    except SluiceError:
        raise
    except Exception:  # noqa: BLE001 - the server's own, which quotes what is badly framed
        raise InvalidRequest("The body could not be read to its end.") from None


def gathered(request: Request, stream: IO[bytes], limit: int) -> bytes:
    """A body that arrives bit by bit. Raises what its stream does."""
    client, announced = request.client, request.announced or 0
    parts: list[bytes] = []
    room = limit
    left = limit - announced  # of the room, when what was announced has come
    yielder = Yielder()
    patience = (client and client.gettimeout()) or math.inf
    with read_deadlines.within(client, PATIENCES * patience):
        while chunk := stream.read(min(READ_SIZE, room + 1)):
            yielder.yield_if_due()
            room -= len(chunk)
            if room < 0:
                break
            parts.append(chunk)
            if room == left:
                break
    if room < 0:
        too_large(request, limit)
    return b"".join(parts)


def too_large(request: Request, limit: int) -> NoReturn:
    """Take the rest of the body, bounded, or some clients see a broken pipe and not the answer."""
    room, until = DRAIN_BYTES, time.monotonic() + DRAIN_S
    yielder = Yielder()
    # Whatever is wrong with the rest, it is too large.
    with suppress(Exception), read_deadlines.within(request.client, DRAIN_S):
        while room > 0 and time.monotonic() < until and (chunk := request.stream.read(READ_SIZE)):
            yielder.yield_if_due()
            room -= len(chunk)
    raise RequestTooLarge(f"The body is larger than {limit} bytes.")
