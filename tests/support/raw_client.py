"""A client on a plain socket, which records when each frame arrives and in which write.

- Tests control when the client reads, and how it disconnects.
- Nothing is retried.
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
    at: float
    """The monotonic time at which the head was complete."""
    status: int
    headers: dict[str, str]
    """The headers. Their names are in lower case."""


@dataclass(frozen=True)
class Frame:
    at: float
    """The monotonic time at which the frame was complete."""
    write: int
    """The number of the HTTP chunk that completed the frame. Each chunk is one server write."""
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
    """An HTTP client on a plain socket.

    Args:
        key: The API key that requests carry.
        timeout: The most seconds for a read or a write, which else raises TimeoutError.
        rcvbuf: The bytes that the kernel buffers while the test doesn't read.
        tls: The context of a TLS connection. None for plain HTTP.

    Raises:
        EOFError: On reading, if the response is incomplete.
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
        """Send a request, with the key if there is one. Content that isn't bytes becomes JSON."""
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
        status, *lines = self._until(b"\r\n\r\n").decode("latin-1").split("\r\n")
        rows = (line.partition(": ") for line in lines)
        self._headers = {name.lower(): value for name, _, value in rows}
        self._frames = self._read_frames()
        return Head(time.monotonic(), int(status.split()[1]), dict(self._headers))

    def chunks(self) -> Iterator[bytes]:
        """Yield the body's HTTP chunks or, without chunked encoding, its parts as they arrive."""
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
        """Return the iterator of the body's SSE frames. All calls return one shared iterator."""
        return self._frames

    def frame(self) -> Frame:
        return next(self._frames)

    def ended(self, timeout: float = HANG_S) -> bool:
        """Return True if the server closes within `timeout` seconds. Discard all data."""
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
        """Return True if a read won't block, after waiting at most `timeout` seconds for data."""
        # select.select doesn't support file descriptors above 1023.
        poller = select.poll()
        poller.register(self.sock, select.POLLIN)
        return bool(poller.poll(1000 * timeout))

    def half_close(self) -> None:
        """Send a FIN, but keep reading."""
        self.sock.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """Disconnect with a RST."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def close(self) -> None:
        """Disconnect with a FIN. Without shutdown, unread data would turn it into a RST."""
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
            raise EOFError(f"incomplete frame: {text!r}")

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
