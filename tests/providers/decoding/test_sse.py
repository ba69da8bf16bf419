"""sse.py: the decoder is compared with a table of cases and with a slow reference decoder."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from errors import UpstreamError
from providers.decoding import sse

Events = list[tuple[str, bytes]]

CASES: dict[str, tuple[bytes, Events]] = {
    "nothing": (b"", []),
    "one": (b"data: a\n\n", [("message", b"a")]),
    "several": (b"data: a\n\ndata: b\n\n", [("message", b"a"), ("message", b"b")]),
    "crlf": (b"data: a\r\n\r\ndata: b\r\n\r\n", [("message", b"a"), ("message", b"b")]),
    "cr": (b"data: a\r\rdata: b\r\r", [("message", b"a"), ("message", b"b")]),
    "mixed line ends": (b"data: a\r\n\rdata: b\n\r\n", [("message", b"a"), ("message", b"b")]),
    "lf cr is two line ends": (b"data: a\n\rdata: b\n\n", [("message", b"a"), ("message", b"b")]),
    "many lines": (b"data: a\ndata:b\ndata:  c\n\n", [("message", b"a\nb\n c")]),
    "empty data": (b"data\n\ndata\ndata\n\ndata:", [("message", b""), ("message", b"\n")]),
    "one space only": (b"data:  a\n\ndata:\ta\n\n", [("message", b" a"), ("message", b"\ta")]),
    "no space": (b"data:a\n\n", [("message", b"a")]),
    "colons": (b"data: a: b:c\n\n", [("message", b"a: b:c")]),
    "named": (b"event: error\ndata: a\n\n", [("error", b"a")]),
    "name after data": (b"data: a\nevent:x\n\n", [("x", b"a")]),
    "the last of two names counts": (b"event: x\nevent: y\ndata: a\n\n", [("y", b"a")]),
    "an empty name means message": (b"event: x\nevent\ndata: a\n\n", [("message", b"a")]),
    "a name applies to one event": (
        b"event: x\ndata: a\n\ndata: b\n\n",
        [("x", b"a"), ("message", b"b")],
    ),
    "a name without data is dropped": (b"event: x\n\ndata: b\n\n", [("message", b"b")]),
    "a name in UTF-8": ("event: ü\ndata: a\n\n".encode(), [("ü", b"a")]),
    "a name that is not UTF-8": (b"event: \xff\ndata: a\n\n", [("\ufffd", b"a")]),
    "comments": (b": hello\n\n:\ndata: a\n: b\ndata: c\n\n", [("message", b"a\nc")]),
    "id, retry and unknown": (b"id: 1\nretry: 5\nfoo: x\nid\ndata: a\n\n", [("message", b"a")]),
    "fields that resemble data": (b"database: x\nDATA: y\n data: z\n\n", []),
    "blank lines": (
        b"\n\n\n\ndata: a\n\n\n\n\ndata: b\n\n",
        [("message", b"a"), ("message", b"b")],
    ),
    "odd blank lines": (b"\ndata: a\n\n\ndata: b\n\n", [("message", b"a"), ("message", b"b")]),
    "byte order mark": (b"\xef\xbb\xbfdata: a\n\n", [("message", b"a")]),
    "two byte order marks": (b"\xef\xbb\xbf\xef\xbb\xbfdata: a\n\n", []),
    "byte order mark in the middle": (
        b"data: a\n\n\xef\xbb\xbfdata: b\n\ndata: c\n\n",
        [("message", b"a"), ("message", b"c")],
    ),
    "half a byte order mark": (b"\xef\xbbdata: a\n\n", []),
    "only half a byte order mark": (b"\xef\xbb", []),
    "only a byte order mark": (b"\xef\xbb\xbf", []),
    "unfinished line": (b"data: a\n\ndata: b", [("message", b"a")]),
    "unfinished event": (b"data: a\n\ndata: b\n", [("message", b"a")]),
    "other separators": (
        "data: a\u2028b\u2029c\u0085d\x0be\x0cf\n\n".encode(),
        [("message", "a\u2028b\u2029c\u0085d\x0be\x0cf".encode())],
    ),
    "nul": (b"data: a\0b\n\n", [("message", b"a\0b")]),
    "data that is not UTF-8": (b"data: \xff\n\n", [("message", b"\xff")]),
}


def decoded(chunks: Iterable[bytes]) -> Events:
    return [(frame.event, frame.data) for frames in sse.decode(chunks) for frame in frames]


def splits(stream: bytes) -> Iterator[list[bytes]]:
    yield [stream]
    yield [stream[i : i + 1] for i in range(len(stream))]
    yield [part for i in range(len(stream)) for part in (b"", stream[i : i + 1])]
    for i in range(len(stream)):
        for j in range(i, len(stream)):
            yield [stream[:i], stream[i:j], stream[j:]]


def reference(stream: bytes) -> Events:
    """Decode a whole body exactly as the specification says."""
    events: Events = []
    data, name = b"", b""
    for line in lines_of(stream.removeprefix(b"\xef\xbb\xbf")):
        if line == b"":
            if data != b"":
                events.append((name.decode("utf-8", "replace") or "message", data[:-1]))
            data, name = b"", b""
            continue
        colon = line.find(b":") if b":" in line else len(line)
        field, value = line[:colon], line[colon + 1 :]
        if value[:1] == b" ":
            value = value[1:]
        if field == b"data":
            data += value + b"\n"
        if field == b"event":
            name = value
    return events


def lines_of(stream: bytes) -> list[bytes]:
    """Return the terminated lines, without their line ends."""
    lines, line, at = [], b"", 0
    while at < len(stream):
        byte = stream[at : at + 1]
        at += 1
        if byte not in (b"\r", b"\n"):
            line += byte
            continue
        if byte == b"\r" and stream[at : at + 1] == b"\n":
            at += 1
        lines.append(line)
        line = b""
    return lines


@pytest.mark.parametrize(("stream", "events"), CASES.values(), ids=CASES)
def test_decoder_yields_the_expected_events_however_bytes_are_split(
    stream: bytes, events: Events
) -> None:
    assert reference(stream) == events
    for chunks in splits(stream):
        assert decoded(chunks) == events, chunks


WORDS = st.sampled_from(
    [
        *(
            b"data: ",
            b"data",
            b"data:",
            b"event: ",
            b"event",
            b"id: 1",
            b"retry: 2",
            b":",
            b" ",
            b"a",
        ),
        *(b"\n", b"\r", b"\r\n", b"\n\n", b"\xef\xbb\xbf", b"\xe2\x80\xa8", b"\xc2\x85", b"\0"),
        *(b"data: {}\n\n", b"data: {}\r\n\r\n"),
    ]
)
STREAMS = st.lists(st.one_of(WORDS, st.binary(max_size=3)), max_size=40).map(b"".join)


@settings(deadline=None, max_examples=600, database=None)
@given(stream=STREAMS, cuts=st.lists(st.integers(0, 200), max_size=12))
def test_decoder_matches_the_reference_for_any_split_of_any_stream(
    stream: bytes, cuts: list[int]
) -> None:
    edges = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    chunks = [stream[a:b] for a, b in pairwise(edges)]
    assert decoded(chunks) == decoded([stream]) == reference(stream)


def test_decoder_yields_a_list_per_chunk_that_completes_an_event() -> None:
    chunks = [b"data: a\n\ndata: b\n\nda", b"ta: c", b"\n", b"\n: ping\n\n", b"data: d\n\n"]
    lists = [[frame.data for frame in frames] for frames in sse.decode(chunks)]
    assert lists == [[b"a", b"b"], [b"c"], [b"d"]]


def test_event_is_yielded_before_the_next_chunk_is_read() -> None:
    """Even a CR that might be half of a CRLF ends an event at once."""
    asked = []

    def chunks() -> Iterator[bytes]:
        for chunk in (b"data: a\r\r", b"\ndata: b\r\n\r", b"\ndata: c\n\n"):
            asked.append(chunk)
            yield chunk

    served = [(len(asked), frames[0].data) for frames in sse.decode(chunks())]
    assert served == [(1, b"a"), (2, b"b"), (3, b"c")]


def pieces(stream: bytes, size: int) -> list[bytes]:
    return [stream[i : i + size] for i in range(0, len(stream), size)]


@pytest.mark.parametrize("size", [1 << 30, 100_003])
@pytest.mark.parametrize("end", [b"", b"\n\n", b"\n", b"\nx: y\n\n"])
@pytest.mark.parametrize("field", [b"data: ", b": ", b"foo"])
def test_line_above_the_size_limit_raises_after_earlier_events(
    size: int, end: bytes, field: bytes
) -> None:
    """The split and the end of the line don't matter. Earlier events are not lost."""
    longest = field + b"x" * (sse.MAX_LINE - len(field))
    before = b"data: a\n\n"
    assert decoded(pieces(before + longest + end, size))[0] == ("message", b"a")
    lists = sse.decode(pieces(before + longest + b"x" + end, size))
    assert next(lists) == [sse.Frame(b"a")]
    with pytest.raises(UpstreamError, match="line larger than 4194304 bytes"):
        next(lists)


@pytest.mark.parametrize("size", [1 << 30, 100_003])
@pytest.mark.parametrize("end", [b"\n\n", b"\n"])
def test_event_above_the_size_limit_raises(size: int, end: bytes) -> None:
    line = b"data: " + b"x" * ((1 << 19) - 1)
    largest = b"\n".join([line] * 8)
    assert [len(data) for _, data in decoded(pieces(largest + b"\n\n", size))] == [(4 << 20) - 1]
    with pytest.raises(UpstreamError, match="event larger than 4194304 bytes"):
        decoded(pieces(largest + b"\ndata" + end, size))


def test_a_large_event_in_small_pieces_takes_linear_time() -> None:
    """No earlier piece is scanned or copied again for a new piece, which would take minutes."""
    line = b"data: " + b"x" * 1000 + b"\n"
    stream = line * 4000 + b"\n"
    ((_, data),) = decoded(pieces(stream, 64))
    assert data.count(b"\n") == 3999
    ((_, data),) = decoded(pieces(b"data: " + b"y" * (sse.MAX_LINE - 6) + b"\n\n", 16))
    assert len(data) == sse.MAX_LINE - 6


def test_keep_alive_comments_and_blank_lines_yield_no_event() -> None:
    chunks = [b": ping\n"] * 1000 + [b"\n"] * 1000 + [b"data: a\n\n"]
    assert decoded(chunks) == [("message", b"a")]


LLAMA = b'{"code":500,"message":"context is full"}'
BARE = b'{"error":{"code":503}}'
ERRORS: dict[str, tuple[bytes, Events]] = {
    "field": (b"error: " + LLAMA + b"\n\n", [("error", LLAMA)]),
    "field without a space": (b"error:" + LLAMA + b"\r\n\r\n", [("error", LLAMA)]),
    "field after an event": (
        b"data: a\n\nerror: " + LLAMA + b"\n\ndata: b\n\n",
        [("message", b"a"), ("error", LLAMA), ("message", b"b")],
    ),
    "field beside data": (b"error: " + LLAMA + b"\ndata: [DONE]\n\n", [("error", LLAMA)]),
    "field of lines": (b"error: a\nerror: b\n\n", [("error", b"a\nb")]),
    "field without a blank line": (b"data: a\n\nerror: oh", [("message", b"a"), ("error", b"oh")]),
    "empty field": (b"error\nerror:\n\ndata: a\n\n", [("message", b"a")]),
    "event without a blank line": (b'event: error\ndata: {"a":1}\n', [("error", b'{"a":1}')]),
    "event of another name": (b"event: exception\ndata: oh\n\n", [("error", b"oh")]),
    "JSON": (b"data: a\n\n" + BARE + b"\n\n", [("message", b"a"), ("error", BARE)]),
    "JSON without a line end": (b"data: a\n\n" + BARE, [("message", b"a"), ("error", BARE)]),
    "JSON in a list": (b"[" + BARE + b"]", [("error", b"[" + BARE + b"]")]),
    "JSON in lines": (b'{\n "error": {\n }, "x": 1,\n "error": 1}\n', [
        ("error", b'{\n "error": {\n }, "x": 1,\n "error": 1}'),
    ]),
    "JSON without an error": (b'{"a":1}\n\ndata: b\n\n', [("message", b"b")]),
    "unfinished data": (b"data: a\n\ndata: b", [("message", b"a")]),
}  # fmt: skip


@pytest.mark.parametrize(("stream", "events"), ERRORS.values(), ids=ERRORS)
def test_an_error_in_any_field_or_in_none_becomes_an_error_event(
    stream: bytes, events: Events
) -> None:
    for chunks in splits(stream):
        assert decoded(chunks) == events, chunks


def test_stray_json_is_kept_only_up_to_a_limit() -> None:
    large = b'{"error":"' + b"x" * sse.MAX_STRAY + b'"}\n\n'
    assert decoded([large, b"data: a\n\n"]) == [("message", b"a")]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"data: {}", True),
        (b"\n\n event:x", True),
        (b": ping", True),
        (b"error: {}", True),
        (b"\xef\xbb\xbfdata: {}", True),
        (b'{"data": 1}', False),
        (b"[1]", False),
        (b"<html>", False),
        (b"", False),
        (b"database", False),
    ],
)
def test_a_body_of_server_sent_events_is_recognized_by_its_start(
    body: bytes, expected: bool
) -> None:
    assert sse.is_stream(body) is expected
