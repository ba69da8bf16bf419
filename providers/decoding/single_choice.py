"""What dialects share that have one path, take a prompt as one user message, and answer it with
one choice in a stream whose last event says that it is the last.

Rules that hold here: pure; what is sent is what was asked for and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final

import msgspec

from completion import Batch, CompletionRequest, named
from errors import UpstreamError
from providers import openai
from providers.base import Target, decode_error
from providers.decoding import bodies, sse
from providers.openai_chunk import NOT_JSON, garbage, reported, sample

LACKS: Final = openai.CHAT_LACKS | {"n", "logprobs", "logit_bias", "openai_extra"}
"""Parameters that none of these dialects has."""

OURS: Final = frozenset({"model", "messages", "stream"})
"""What `extra` can't set, absent or not."""


def url(target: Target, path: str) -> str:
    """The address of a path under the host's base_url."""
    provider = target.provider
    address = provider.base_url.rstrip("/") + path
    return f"{address}?{provider.query}" if provider.query else address


def body(request: CompletionRequest, target: Target, names: Mapping[str, str]) -> dict[str, Any]:
    """What to send. names: our name of a parameter -> the dialect's.

    Raises ValueError unless there is exactly one prompt.
    """
    (prompt,) = request.prompts
    found: dict[str, Any] = {
        "model": target.model,
        "messages": [{"role": "user", "content": prompt}],
        **named(request, names, target.cannot),
    }
    if request.stream:
        found["stream"] = True
    for name, value in request.extra.items():
        if name not in OURS:
            found.setdefault(name, value)
    return found


def events(
    chunks: Iterable[bytes],
    read: Callable[[sse.Frame, Batch], bool],
    complete: Callable[[bytes], Batch],
) -> Iterator[Batch]:
    """Decode a streamed body; see base.Dialect.

    read: as in sse.batches. complete: decodes a whole body, for a host that sends one JSON object
    where a stream was asked for, be it an answer or an error.
    """
    start, chunks = bodies.peek(chunks)
    if start in (b"{", b"["):
        yield complete(bodies.join(chunks))
        return
    seen = bodies.Seen()
    answered = False
    frames = sse.batches(seen.watch(chunks), read)
    while True:
        try:
            batch = next(frames)
        except StopIteration as stop:
            ended: bool = stop.value
            break
        answered = True
        yield batch
    if not answered:
        raise garbage("The upstream ended the stream without an answer.", seen.start)
    if not ended:
        raise broken_off()


def broken_off() -> UpstreamError:
    """An answer whose last event never came."""
    return UpstreamError("The upstream's answer ended before its end.")


def failure(data: bytes, statuses: Mapping[str, int]) -> UpstreamError:
    """The error in some data, of whatever shape. statuses: the HTTP status that a code stands for
    when it comes with a status of 200."""
    try:
        found = reported(msgspec.json.decode(data))
    except NOT_JSON:
        found = reported(sample(data))
    found.upstream_status = found.upstream_status or statuses.get(found.upstream_code or "")
    return found


def refuse_error(data: bytes, statuses: Mapping[str, int]) -> None:
    """Raise the error in an object that is no answer: it has an error, or a message, such as
    {"detail": "..."}. Others mean nothing to us."""
    try:
        value = msgspec.json.decode(data)
    except NOT_JSON:
        return
    if isinstance(value, dict) and (value.get("error") or decode_error(value).message):
        raise failure(data, statuses)
