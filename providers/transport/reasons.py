"""The reasons why a host can't be reached, as codes and as texts for callers.

- A text never repeats the message of a network library, except a certificate's defect, which
  OpenSSL describes in fixed words.
- The functions are pure.
"""

from __future__ import annotations

import errno
import os
import socket
import ssl
from typing import Final, NamedTuple


class Reason(NamedTuple):
    code: str
    """A short word for programs."""
    text: str
    """A clause for people, which follows a colon."""


REFUSED: Final = Reason("refused", "the connection was refused")
RESET: Final = Reason("reset", "the connection was reset")
TIMED_OUT: Final = Reason("timed_out", "the connection timed out")
BAD_URL: Final = Reason("invalid_url", "its URL is invalid")
BAD_NAME: Final = Reason("name_not_found", "its name is not a valid host name")
NO_NAME: Final = Reason("name_not_found", "its name was not found")
NO_LOOKUP: Final = Reason(
    "name_not_found", "its name could not be looked up: no name server answers"
)
NO_NETWORK: Final = Reason("unreachable", "the network is unreachable")
NO_ROUTE: Final = Reason("unreachable", "there is no route to the host")
NO_HANDSHAKE: Final = Reason("tls", "the host closed the connection during the TLS handshake")

NUMBERS: Final = {
    errno.ECONNREFUSED: REFUSED,
    errno.ECONNRESET: RESET,
    errno.ECONNABORTED: RESET,
    errno.EPIPE: RESET,
    errno.ETIMEDOUT: TIMED_OUT,
    errno.ENETUNREACH: NO_NETWORK,
    errno.ENETDOWN: NO_NETWORK,
    errno.EHOSTUNREACH: NO_ROUTE,
    errno.EHOSTDOWN: NO_ROUTE,
}
LONGEST_DETAIL: Final = 100


def reason_of(failure: BaseException | None) -> Reason:
    """Return the reason for an exception that a connect or a TLS handshake raised."""
    match failure:
        case ssl.SSLCertVerificationError():
            detail = str(failure.verify_message or "").rstrip(".")[:LONGEST_DETAIL]
            return Reason(
                "certificate", f"its TLS certificate was rejected: {detail or 'it is invalid'}"
            )
        case ssl.SSLEOFError() | ssl.SSLZeroReturnError():
            return NO_HANDSHAKE
        case ssl.SSLError():
            return handshake_failed(failure)
        case socket.gaierror():
            return NO_LOOKUP if failure.errno == socket.EAI_AGAIN else NO_NAME
        case ConnectionRefusedError():
            return REFUSED
        case TimeoutError():
            return TIMED_OUT
        case FileNotFoundError() | PermissionError() if failure.filename:
            return Reason("certificate", "the file of trusted certificates can't be read")
        case OSError():
            return numbered(failure.errno)
        case ValueError():
            return BAD_NAME
    return Reason("failed", "the connection failed")


def handshake_failed(failure: ssl.SSLError) -> Reason:
    detail = str(failure.reason or "").replace("_", " ").lower()[:LONGEST_DETAIL]
    if not detail:
        return Reason("tls", "the TLS handshake failed")
    # A server that doesn't speak TLS at all is the usual reason for this error.
    hint = "; does the port speak TLS?" if "wrong version" in detail else ""
    return Reason("tls", f"the TLS handshake failed: {detail}{hint}")


def numbered(number: int | None) -> Reason:
    """Return the reason for the number of a system error."""
    if number in NUMBERS:
        return NUMBERS[number]
    # For example, this process has too many open files. The system's texts are fixed.
    text = os.strerror(number).lower() if number else "the connection failed"
    return Reason("failed", text)
