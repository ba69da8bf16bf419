"""lenient_json.py: the sample of a body that errors show."""

from __future__ import annotations

import pytest

from providers.decoding.lenient_json import sample


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", ""),
        (b" a \r\n\t b ", "a b"),
        (b"\x00\x1b[31m\xff", "\ufffd\ufffd[31m\ufffd"),
        ("é".encode() * 80, "é" * 80),
        (b"x" * 5000, "x" * 80 + "…"),
    ],
)
def test_a_sample_is_short_and_printable(data: bytes, text: str) -> None:
    assert sample(data) == text
