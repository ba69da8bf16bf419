"""reasons.py: why a host can't be reached, in a word and in a clause."""

from __future__ import annotations

import errno
import socket
import ssl

import pytest

from providers.transport.reasons import reason_of


def certificate(message: str) -> ssl.SSLCertVerificationError:
    found = ssl.SSLCertVerificationError(1, "[SSL: CERTIFICATE_VERIFY_FAILED] some library text")
    found.verify_message = message
    return found


def handshake(reason: str) -> ssl.SSLError:
    found = ssl.SSLError(1, f"[SSL: {reason}] some library text")
    found.reason = reason
    return found


UNREADABLE = FileNotFoundError(errno.ENOENT, "No such file or directory", "/private/ca.pem")

CASES = [
    (socket.gaierror(socket.EAI_NONAME, "x"), "name_not_found", "its name was not found"),
    (socket.gaierror(socket.EAI_AGAIN, "x"), "name_not_found", "no name server answers"),
    (UnicodeError("label too long"), "name_not_found", "not a valid host name"),
    (ConnectionRefusedError(errno.ECONNREFUSED, "x"), "refused", "the connection was refused"),
    (ConnectionResetError(errno.ECONNRESET, "x"), "reset", "the connection was reset"),
    (TimeoutError(), "timed_out", "the connection timed out"),
    (OSError(errno.ENETUNREACH, "x"), "unreachable", "the network is unreachable"),
    (OSError(errno.EHOSTUNREACH, "x"), "unreachable", "there is no route to the host"),
    (OSError(errno.EMFILE, "x"), "failed", "too many open files"),
    (OSError(), "failed", "the connection failed"),
    (None, "failed", "the connection failed"),
    (certificate("certificate has expired"), "certificate", "rejected: certificate has expired"),
    (certificate("Hostname mismatch, not valid for 'a.b'."), "certificate", "for 'a.b'"),
    (certificate(""), "certificate", "it is invalid"),
    (UNREADABLE, "certificate", "the file of trusted certificates can't be read"),
    (handshake("WRONG_VERSION_NUMBER"), "tls", "wrong version number; does the port speak TLS?"),
    (handshake("TLSV1_ALERT_INTERNAL_ERROR"), "tls", "failed: tlsv1 alert internal error"),
    (ssl.SSLEOFError(8, "x"), "tls", "closed the connection during the TLS handshake"),
]


@pytest.mark.parametrize(("failure", "code", "text"), CASES)
def test_each_failure_has_a_word_and_a_clause(
    failure: BaseException | None, code: str, text: str
) -> None:
    found = reason_of(failure)
    assert found.code == code
    assert text in found.text
    assert not found.text.endswith(".")
    assert "library" not in found.text
    assert "/private" not in found.text
