"""Responses whose headers are known to be valid, without the checks that werkzeug makes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import msgspec
from flask import Response
from werkzeug.datastructures import Headers

from completion import cut
from concurrency.yielding import Yielder


class DirectResponse(Response):
    """A response of bytes whose headers are valid and complete.

    werkzeug checks headers when they are set, and adds missing ones when they are sent.
    docs/decisions/0012-the-worker.md has the gain and the private name (`_on_close`).
    """

    def __init__(
        self,
        body: Iterable[bytes],
        status: int = 200,
        headers: Mapping[str, str] | None = None,
        content_type: str = "application/json",
    ) -> None:
        """Make a response.

        Args:
            body: the parts of the body.
            headers: headers with valid values.
        """
        self.fields = {"Content-Type": content_type, **(headers or {})}
        self.headers = Headers()  # headers that others add
        self.status_code = status
        self.response = body
        self.direct_passthrough = False
        self._on_close = []

    def __call__(self, environ: Any, start_response: Any) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] == "HEAD":
            self.response = ()
        start_response(self.status, [*self.fields.items(), *self.headers])
        return self

    def __iter__(self) -> Iterator[bytes]:
        body: Any = self.response
        return iter(body)


def json_response(
    data: Any, status: int = 200, headers: dict[str, str] | None = None
) -> DirectResponse:
    body = msgspec.json.encode(data)
    return DirectResponse((body,), status, {"Content-Length": str(len(body)), **(headers or {})})


def encoded_in_pieces(data: Any, yielder: Yielder | None = None) -> Any:
    """Return a tree of dicts and lists in which each text is already encoded as JSON.

    Other greenlets may run between the pieces of a long text. A text of which every character needs
    an escape takes about ten times as long to encode as another one.
    """
    yielder = yielder or Yielder()
    if isinstance(data, str):
        pieces = []
        for piece in cut(data):
            pieces.append(msgspec.json.encode(piece)[1:-1])
            yielder.yield_if_due()
        return msgspec.Raw(b'"' + b"".join(pieces) + b'"')
    if isinstance(data, dict):
        return {name: encoded_in_pieces(value, yielder) for name, value in data.items()}
    if isinstance(data, list):
        return [encoded_in_pieces(value, yielder) for value in data]
    return data
