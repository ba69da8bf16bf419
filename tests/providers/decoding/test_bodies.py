"""bodies.py: the start and the end of a body, at any split."""

from __future__ import annotations

from providers.decoding import bodies


def test_excerpt_keeps_a_bounded_start_and_end_of_a_body_however_it_is_split() -> None:
    data = bytes(range(256)) * 400
    for size in (1000, 7, len(data)):
        excerpt = bodies.Excerpt(end=True)
        chunks = [data[i : i + size] for i in range(0, len(data), size)]
        assert b"".join(excerpt.watch(chunks)) == data
        assert (excerpt.start, excerpt.end) == (data[: bodies.START], data[-bodies.END :])


def test_beginning_and_peek_return_the_start_of_a_body() -> None:
    assert bodies.beginning(iter([b"a" * 300, b"b" * 300])) == b"a" * 300 + b"b" * 100
    assert bodies.beginning([b"a"]) == b"a"
    first, chunks = bodies.peek([b"", b" \n", b" x", b"y"])
    assert (first, b"".join(chunks)) == (b"x", b" \n xy")
    first, chunks = bodies.peek([b" "])
    assert (first, b"".join(chunks)) == (b"", b" ")
