"""error_bodies.py: the status, code and message of errors of any shape."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from providers.decoding.error_bodies import refused_call, reported


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


def openai_error(message: str, **more: Any) -> dict[str, Any]:
    return {"error": {"message": message, "type": "invalid_request_error", **more}}


@pytest.mark.parametrize(
    ("status", "value", "parameter"),
    [
        # llama.cpp
        (501, {"error": {"code": 501, "message": "Infill is not supported by this model",
                         "type": "not_supported_error"}}, "suffix"),
        (400, openai_error("Unsupported param: best_of"), "best_of"),
        (400, openai_error("Only no echo is supported"), "echo"),
        # Ollama
        (400, openai_error("llama3.2:latest does not support insert"), "suffix"),
        # vLLM
        (400, {"object": "error", "message": "suffix is not currently supported",
               "type": "BadRequestError", "param": None, "code": 400}, "suffix"),
        # OpenAI
        (400, openai_error("Unsupported parameter: 'logprobs' is not supported with this model.",
                           param="logprobs", code="unsupported_parameter"), "logprobs"),
        (400, openai_error("Unsupported value.", param="temperature", code="unsupported_value"),
         "temperature"),
        # Bedrock, and hosts without an OpenAI error
        (400, {"message": "This model doesn't support the stopSequences field."}, "stop"),
        (422, {"detail": "logprobs are not supported"}, "logprobs"),
        (501, {}, ""),
        # errors of other kinds
        (400, openai_error("n must be at most 4", param="n"), None),
        (400, openai_error("The prompt is too long"), None),
        (400, openai_error("This model is not supported"), None),
        (500, openai_error("echo is not supported"), None),
        (404, openai_error("No such model: it does not support suffix"), None),
    ],
)  # fmt: skip
def test_a_host_that_lacks_a_parameter_is_recognized(
    status: int, value: Any, parameter: str | None
) -> None:
    error = refused_call(status, {}, msgspec.json.encode(value))
    assert error.unsupported == parameter
    assert error.upstream_status == status
