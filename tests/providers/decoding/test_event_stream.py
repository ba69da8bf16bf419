"""event_stream.py: any split yields equal frames, and any corruption is an error."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from errors import UpstreamError
from providers.decoding import event_stream
from providers.decoding.event_stream import MAX_FRAME, MAX_HEADERS, BinaryFrame
from tests.support import frames
from tests.support.frames import Byte, Long, Short, Timestamp, frame, sealed

VALUES: dict[str, Any] = {
    "true": True,
    "false": False,
    "byte": Byte(-1),
    "short": Short(-2),
    "integer": -3,
    "long": Long(-(1 << 40)),
    "bytes": b"\x00\xff",
    "text": "zażółć 🦊",
    "timestamp": Timestamp(1_760_000_000_000),
    "uuid": UUID(int=7),
}

names = st.text(min_size=1, max_size=8)
values = st.one_of(
    st.booleans(),
    st.integers(-(1 << 31), (1 << 31) - 1),
    st.integers(-128, 127).map(Byte),
    st.integers(-(1 << 15), (1 << 15) - 1).map(Short),
    st.integers(-(1 << 63), (1 << 63) - 1).map(Long),
    st.binary(max_size=8),
    st.text(max_size=8),
    st.uuids(),
)
headers = st.dictionaries(names, values, max_size=4)
messages = st.lists(st.tuples(headers, st.binary(max_size=40)), min_size=1, max_size=4)


def decoded(chunks: Iterable[bytes]) -> list[BinaryFrame]:
    return [each for batch in event_stream.decode(chunks) for each in batch]


def corruption(chunks: Iterable[bytes]) -> str:
    with pytest.raises(UpstreamError) as raised:
        decoded(chunks)
    return raised.value.message.removeprefix("The upstream's event stream is corrupt: ")


@given(messages, st.data())
def test_any_split_of_an_event_stream_gives_its_frames(
    sent: list[tuple[dict[str, Any], bytes]], data: Any
) -> None:
    stream = b"".join(frame(*message) for message in sent)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    chunks = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    assert decoded(chunks) == [BinaryFrame(*message) for message in sent]


@given(messages, st.data())
def test_a_bit_flipped_anywhere_is_an_error(
    sent: list[tuple[dict[str, Any], bytes]], data: Any
) -> None:
    stream = bytearray(b"".join(frame(*message) for message in sent))
    bit = data.draw(st.integers(0, len(stream) * 8 - 1))
    stream[bit // 8] ^= 1 << bit % 8
    found: list[BinaryFrame] = []
    with pytest.raises(UpstreamError):
        found.extend(chain.from_iterable(event_stream.decode([bytes(stream)])))
    intact = [end for end in frames.ends(b"".join(frame(*m) for m in sent)) if end * 8 <= bit]
    assert found == [BinaryFrame(*message) for message in sent[: len(intact)]]


def test_flipping_any_bit_of_a_frame_is_a_checksum_error() -> None:
    good = frame({":event-type": "x"}, b'{"a": 1}')
    for bit in range(len(good) * 8):
        bad = bytearray(good)
        bad[bit // 8] ^= 1 << bit % 8
        assert "checksum" in corruption([bytes(bad)])


def test_header_values_keep_their_types() -> None:
    (found,) = decoded([frame(VALUES, b"payload")])
    assert found == BinaryFrame(VALUES, b"payload")
    kinds = [bool, bool, int, int, int, int, bytes, str, int, UUID]
    assert [type(value) for value in found.headers.values()] == kinds


def test_headers_too_large_for_the_cache_are_read() -> None:
    sent = {f"name-{i}": "x" * 100 for i in range(10)}
    assert decoded([frame(sent)]) == [BinaryFrame(sent, b"")]


def test_an_unfinished_frame_is_discarded() -> None:
    good = frame({"a": 1}, b"x")
    for place in range(len(good)):
        assert decoded([good + good[:place]]) == [BinaryFrame({"a": 1}, b"x")]
    assert decoded([]) == []


def test_a_frame_comes_with_the_chunk_that_completes_it() -> None:
    good = frame({"a": 1}, b"x")
    asked = 0

    def chunks() -> Iterable[bytes]:
        nonlocal asked
        for chunk in (good[:20], good[20:] + good + good[:5], good[5:]):
            asked += 1
            yield chunk

    assert [(asked, len(batch)) for batch in event_stream.decode(chunks())] == [(2, 2), (3, 1)]


def test_frames_before_a_corrupt_frame_are_yielded_before_the_error() -> None:
    good = frame({"a": 1}, b"x")
    stream = event_stream.decode([good + b"\x00" * 12])
    assert next(stream) == [BinaryFrame({"a": 1}, b"x")]
    with pytest.raises(UpstreamError):
        next(stream)


@pytest.mark.parametrize("length", [0, 15, MAX_FRAME + 1, 0xFFFFFFFF])
def test_an_invalid_frame_length_is_rejected_before_the_payload_arrives(length: int) -> None:
    assert "invalid length" in corruption([sealed(b"", b"", length)[:12]])


def test_a_frame_of_the_largest_size_is_decoded() -> None:
    payload = b"x" * (MAX_FRAME - 16)
    (found,) = decoded([sealed(b"", payload)])
    assert len(found.payload) == len(payload)


def test_headers_above_their_size_limit_are_rejected() -> None:
    assert "invalid length" in corruption([sealed(b"x" * (MAX_HEADERS + 1), b"")[:12]])


@pytest.mark.parametrize(
    "block",
    [
        b"\x01",
        b"\x01a",
        b"\x05abc",
        b"\x01a\x0a",
        b"\x01a\xff",
        b"\x00\x00",
        b"\x01a\x02",
        b"\x01a\x04\x00",
        b"\x01a\x07\x00",
        b"\x01a\x07\x00\x05abc",
        b"\x01a\x06\x00\x05abc",
        b"\x01a\x07\x00\x01\xff",
        b"\x01\xff\x00",
        b"\x01a\x09" + b"x" * 15,
        frames.header("a", 1) * 2,
    ],
)
def test_malformed_frame_headers_raise_an_error(block: bytes) -> None:
    assert corruption([sealed(block, b"")]) == "a frame's headers are malformed."
