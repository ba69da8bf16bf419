"""A client over a plain socket that sees the server's timing: when each frame came, in which write.

Rules that hold here: it reads as slowly, and leaves as rudely, as a test wants; nothing is retried.
"""

from __future__ import annotations

import contextlib
import json
import select
import socket
import ssl
import struct
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self

from tests.support.pace import HANG_S


@dataclass(frozen=True)
class Head:
    """at: when it was complete, by time.monotonic()."""

    at: float
    status: int
    headers: dict[str, str]


@dataclass(frozen=True)
class Frame:
    """One SSE frame. at: when it was complete. write: the number of the HTTP chunk, which is a
    write of the server, that completed it."""

    at: float
    write: int
    text: str

    @property
    def event(self) -> str | None:
        return self._field("event: ")

    @property
    def data(self) -> str | None:
        return self._field("data: ")

    @property
    def comment(self) -> str | None:
        return self._field(": ")

    @property
    def json(self) -> Any:
        return json.loads(self.data or "null")

    def _field(self, prefix: str) -> str | None:
        lines = [line for line in self.text.split("\n") if line.startswith(prefix)]
        return "\n".join(line.removeprefix(prefix) for line in lines) if lines else None


class RawClient:
    """HTTP over a plain socket, read as slowly, and left as rudely, as a test wants.

    timeout: seconds that any one read or write may take (TimeoutError). rcvbuf: bytes the kernel
    may take in while the test doesn't read. An answer that breaks off raises EOFError.
    """

    def __init__(
        self,
        port: int,
        *,
        key: str | None = None,
        timeout: float = HANG_S,
        rcvbuf: int | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.key = key
        self.sock = socket.socket()
        if rcvbuf is not None:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, rcvbuf)
        self.sock.settimeout(timeout)
        try:
            self.sock.connect(("127.0.0.1", port))
            if tls:
                self.sock = tls.wrap_socket(self.sock, server_hostname="127.0.0.1")
        except BaseException:
            self.sock.close()
            raise
        self._buffer = b""
        self._headers: Mapping[str, str] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def request(
        self,
        method: str,
        path: str,
        content: object = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Send a request, with the key if there is one. content: JSON; bytes go as they are."""
        fields = {"Host": "127.0.0.1"}
        if self.key:
            fields["Authorization"] = f"Bearer {self.key}"
        data = content if isinstance(content, bytes) else b""
        if content is not None:
            data = data or json.dumps(content).encode()
            fields |= {"Content-Type": "application/json", "Content-Length": str(len(data))}
        lines = [f"{name}: {value}" for name, value in (fields | dict(headers or {})).items()]
        text = "\r\n".join([f"{method} {path} HTTP/1.1", *lines, "", ""])
        self.send(text.encode("latin-1") + data)

    def read_head(self) -> Head:
        """The status and the headers, whose names are lower-case."""
        status, *lines = self._until(b"\r\n\r\n").decode("latin-1").split("\r\n")
        rows = (line.partition(": ") for line in lines)
        self._headers = {name.lower(): value for name, _, value in rows}
        self._frames = self._read_frames()
        return Head(time.monotonic(), int(status.split()[1]), dict(self._headers))

    def chunks(self) -> Iterator[bytes]:
        """The body as it comes: its HTTP chunks, or what each read brings."""
        if self._headers.get("transfer-encoding") == "chunked":
            while size := int(self._until(b"\r\n"), 16):
                yield self._exactly(size + 2)[:-2]
            self._until(b"\r\n")
        elif "content-length" in self._headers:
            yield self._exactly(int(self._headers["content-length"]))
        else:
            with contextlib.suppress(EOFError):
                while True:
                    yield self._exactly(len(self._buffer) or 1)

    def body(self) -> bytes:
        return b"".join(self.chunks())

    def json(self) -> Any:
        return json.loads(self.body())

    def frames(self) -> Iterator[Frame]:
        """The body's SSE frames; may be left and taken up again."""
        return self._frames

    def frame(self) -> Frame:
        """The next one."""
        return next(self._frames)

    def ended(self, timeout: float = HANG_S) -> bool:
        """Whether the server closes within that time; what it still sends is thrown away."""
        deadline = time.monotonic() + timeout
        try:
            while (left := deadline - time.monotonic()) > 0:
                self.sock.settimeout(left)
                if not self.sock.recv(65536):
                    return True
        except ConnectionError:
            return True
        except TimeoutError:
            pass
        return False

    def readable(self, timeout: float) -> bool:
        """Return True if a read would not wait. timeout: seconds to wait for that.

        `select.select` can't look at a descriptor above 1,023; a poll can.
        """
        poller = select.poll()
        poller.register(self.sock, select.POLLIN)
        return bool(poller.poll(1000 * timeout))

    def half_close(self) -> None:
        """Say that nothing more will be sent (FIN), but go on reading."""
        self.sock.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """Hang up with a RST."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def close(self) -> None:
        """Hang up with a FIN, which shutdown sends even where answers are left unread."""
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)
        self.sock.close()

    def _read_frames(self) -> Iterator[Frame]:
        text = b""
        for number, chunk in enumerate(self.chunks()):
            *whole, text = (text + chunk).split(b"\n\n")
            at = time.monotonic()
            yield from (Frame(at, number, part.decode()) for part in whole)
        if text:
            raise EOFError(f"a frame breaks off: {text!r}")

    def _until(self, mark: bytes) -> bytes:
        while mark not in self._buffer:
            self._fill()
        found, _, self._buffer = self._buffer.partition(mark)
        return found

    def _exactly(self, size: int) -> bytes:
        while len(self._buffer) < size:
            self._fill()
        found, self._buffer = self._buffer[:size], self._buffer[size:]
        return found

    def _fill(self) -> None:
        data = self.sock.recv(65536)
        if not data:
            raise EOFError(f"the server closed after {self._buffer!r}")
        self._buffer += data
