"""error_bodies.py: the status, code and message of errors of any shape."""

from __future__ import annotations

from typing import Any

import pytest

from providers.decoding.error_bodies import reported


@pytest.mark.parametrize(
    ("value", "status", "code"),
    [
        ({"error": {"message": "m", "code": 429}}, 429, "429"),
        ({"error": {"message": "m", "code": "503"}}, 503, "503"),
        ({"error": {"message": "m", "code": 200}}, None, "200"),
        ({"error": {"message": "m", "code": 1113}}, None, "1113"),
        ({"error": {"message": "m", "code": "rate_limit_exceeded"}}, None, "rate_limit_exceeded"),
        ({"error": {"message": "m", "type": "tokens"}}, None, "tokens"),
        ({"error": {"message": "m", "code": []}}, None, None),
        ({"message": "m", "code": 422}, 422, "422"),
        ({"error": "m", "message": "other"}, None, None),
        ("m", None, None),
    ],
)
def test_an_error_of_any_shape_is_read_for_status_code_and_message(
    value: Any, status: int | None, code: str | None
) -> None:
    error = reported(value)
    assert (error.upstream_status, error.upstream_code) == (status, code)
    assert error.upstream_message == "m"
    assert "m" not in error.message.split(), "the provider's message belongs only in the details"
