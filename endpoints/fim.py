"""The fill-in-the-middle endpoints of Mistral and DeepSeek, as editors call them.

Source: Mistral API reference, "Fim"; DeepSeek API reference, "FIM completion" (read 2026-11).
"""

from __future__ import annotations

from functools import partial
from typing import Any, Final

from flask import Blueprint, Response

from auth import auth
from completion import Completion, CompletionRequest, FinishReason, Logprobs
from endpoints import calls, openai, request_fields, resumable
from endpoints.recorder import plain_face
from endpoints.services import services
from errors import InvalidRequest
from gateway.call import Outcome
from streams.stream import Stream

bp = Blueprint("fim", __name__)

SEED: Final = "random_seed"
FACE: Final = plain_face("mistral", openai.error_body)
BETA_FACE: Final = plain_face("deepseek", openai.error_body)


@bp.post("/v1/fim/completions")
@bp.post("/fim/completions")
@auth.login_required
def fim_completions() -> Response:
    found, wanted = parse(read_body())
    return resumable.serve(found, wanted, partial(FimEncoder, include_usage=False), answer, FACE)


@bp.get("/v1/fim/completions/<stream_id>")
@bp.get("/fim/completions/<stream_id>")
@auth.login_required
def follow_fim(stream_id: str) -> Response:
    return resumable.follow(stream_id, FACE)


@bp.post("/beta/completions")
@auth.login_required
def beta_completions() -> Response:
    return openai.complete(read_body(), BETA_FACE)


@bp.get("/beta/completions/<stream_id>")
@auth.login_required
def follow_beta(stream_id: str) -> Response:
    return resumable.follow(stream_id, BETA_FACE)


def read_body() -> dict[str, Any]:
    """Return the current request's body, with a model. Raises SluiceError.

    Editors send an empty model, or none, if their user has chosen none.
    """
    settings = services().settings
    data = request_fields.read_object(settings.max_body)
    if data.get("model") in (None, ""):
        if not settings.fim_model or data.get("provider") is not None:
            raise InvalidRequest(
                "model is missing, and the server has no SLUICE_FIM_MODEL to use instead.",
                param="model",
            )
        data["model"] = settings.fim_model
    return data


def parse(data: dict[str, Any]) -> tuple[request_fields.Parameters, CompletionRequest]:
    """Return the parameters and the request of a body in Mistral's format.

    A missing suffix is an empty one: some editors leave it out at the end of a file.

    Raises:
        InvalidRequest: a field is invalid.
    """
    check_text("prompt", data.get("prompt"))
    fields = {name: value for name, value in data.items() if value is not None}
    seed = fields.pop(SEED, None)
    if seed is not None:
        if fields.setdefault("seed", seed) != seed:
            raise InvalidRequest(f"{SEED} and seed have different values.", param=SEED)
        request_fields.check("seed", seed, request_fields.FIELDS["seed"], shown_as=SEED)
    fields.setdefault("suffix", "")
    found, wanted, _ = openai.parse(fields)
    return found, wanted


def check_text(name: str, value: Any) -> str:
    """Return a field's value, which must be a string. Raises InvalidRequest."""
    if value is None:
        raise InvalidRequest(f"{name} is missing; expected a string.", param=name)
    if not isinstance(value, str):
        got = request_fields.shown(name, value)
        raise InvalidRequest(f"{name}: got {got}; expected a string.", param=name)
    return value


def answer(stream: Stream, completion: Completion, outcome: Outcome) -> dict[str, Any]:
    """Return the body of a whole completion, in the shape of a chat completion."""
    found = openai.answer(stream, completion, outcome)
    choices = [as_chat(choice, "message") for choice in found["choices"]]
    return found | {"object": "chat.completion", "choices": choices}


def as_chat(choice: dict[str, Any], part: str) -> dict[str, Any]:
    """Return a choice in the shape of a chat's: its text is in `part`, a message or a delta."""
    rest = {name: value for name, value in choice.items() if name not in ("index", "text")}
    if rest["logprobs"] is None:
        del rest["logprobs"]
    message = {"role": "assistant", "content": choice["text"]}
    return {"index": choice["index"], part: message} | rest


def chunk_choice(
    index: int, text: str, reason: FinishReason | None, logprobs: Logprobs | None
) -> dict[str, Any]:
    return as_chat(openai.choice(index, text, reason, logprobs), "delta")


class FimEncoder(openai.OpenAIEncoder):
    """An encoder that writes chat chunks. The last one has the finish reason and the usage.

    Each chunk has a choice with a text, because some editors fail without.
    """

    KIND = "chat.completion.chunk"
    _choice = staticmethod(chunk_choice)

    def __init__(self, stream: Stream, *, include_usage: bool) -> None:
        super().__init__(stream, include_usage=include_usage)
        self._reasons: dict[int, FinishReason] = {}

    def _finish(self, index: int, reason: FinishReason) -> bytes:
        """Hold the finish of a choice, which is sent with the usage."""
        self._reasons[index] = reason
        return b""

    def last_frames(self, outcome: Outcome) -> bytes:
        if outcome.error is not None:
            return calls.frame(openai.error_body(outcome.error, self._stream.request_id))
        frames = [self._late_remarks()] if self._released else []
        *others, last = range(self._stream.request.choices)
        frames += [calls.frame(self._ending(index, outcome)) for index in others]
        usage = {"usage": openai.usage_of(outcome)}
        frames.append(calls.frame(self._ending(last, outcome) | usage))
        return b"".join([*frames, calls.DONE])

    def _ending(self, index: int, outcome: Outcome) -> dict[str, Any]:
        top, added = self._added.take(index) if self._added else ({}, {})
        more = {"continued": True} if self._stream.continued else {}
        reason = calls.reason(outcome, self._reasons.get(index))
        return top | self._shape([added | self._choice(index, "", reason, None) | more])
