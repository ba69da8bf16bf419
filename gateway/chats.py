"""The targets of chats: those whose host takes OpenAI's chat format. Nothing is translated."""

from __future__ import annotations

from completion import CompletionRequest
from errors import UnsupportedParameter
from gateway.capabilities import Candidate, unsupported
from providers.base import Target


def fit_chat(request: CompletionRequest, target: Target, *, strict: bool) -> Candidate:
    """Return a chat's candidate. A host gets all fields but stream options that it doesn't take.

    Args:
        strict: True to refuse fields that would be dropped.

    Raises:
        UnsupportedParameter: the host doesn't take chats in OpenAI's format, or a field would be
            dropped and `strict` is True.
    """
    found, chat = target.for_chat, request.chat
    if found is None or chat is None:
        raise UnsupportedParameter(
            f"{target.name} can't chat here: its host doesn't take OpenAI's chat format for it, "
            "and chats aren't translated. Choose another model, or send the text as a completion.",
            param="model",
            details={"parameter": "messages", "target": target.name},
        )
    lacking = list(request.unused)
    if found.dialect == "local":
        from providers.local.chat import NOT_LACKING  # here, because most servers don't need it

        lacking += [name for name in chat.fields if name not in NOT_LACKING]
    elif not target.provider.stream_options:
        lacking += [f"stream_options.{name}" for name in chat.stream_options]
    dropped = tuple(sorted(lacking))
    if strict and dropped:
        unsupported(dropped[0], dropped[0], target)
    return Candidate(found, request, dropped)
