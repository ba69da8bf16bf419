"""The meaning of each field, for the OpenAPI document.

- A test compares these tables with the schemas: every field has a meaning, and no meaning is left
  over.
"""

from __future__ import annotations

from typing import Any, Final

from endpoints.openapi import following, keys, operator_texts
from endpoints.openapi.meanings_of_answers import ANSWERS, CHAT_CHOICE, below

MODEL: Final = "The model: provider/model or an alias."
REQUEST: Final = {
    "prompt": "The text to complete.",
    "model": f"{MODEL} Without one, SLUICE_DEFAULT_MODEL counts.",
    "provider": "The provider. model is then that provider's own name for the model.",
    "fallbacks": "Models to try next, in this order, if the model fails.",
    "byok_api_key": "Your own key at the provider, for this call only. It replaces the server's.",
    "stream_id": "Your own id for the call, by which you can stop it. By default the request's id.",
    "stream": "true: send the completion event by event, as it arrives.",
    "resumable": "true: the stream outlives its connection, and can be followed again.",
    "background": "true: as resumable, and without stream the answer is a 202 at once.",
    "temperature": "How random the choice of tokens is. At 0 the likeliest token is taken.",
    "max_tokens": "The most tokens that the completion may have. By default the provider decides.",
    "top_p": "Take only the likeliest tokens that together have this probability. 1 takes all.",
    "frequency_penalty": "Above 0: a token becomes less likely each time that it occurs.",
    "presence_penalty": "Above 0: a token that has occurred at all becomes less likely.",
    "additional_params": "All other parameters.",
    "stop": "Texts that end the completion where they would begin. They aren't part of it.",
    "seed": "With the same seed and request, some models repeat their completion.",
    "n": "How many completions to return for each prompt.",
    "best_of": "How many completions the provider makes, to return the n best of them.",
    "logprobs": "Return the log probabilities of the chosen tokens, and of as many alternatives.",
    "echo": "true: return the prompt before the completion.",
    "suffix": "The text that follows the completion. The model fills in the middle.",
    "logit_bias": "Makes tokens likelier (above 0) or less likely (below 0), by their ids.",
    "user": "An id of your end user, which the provider gets.",
    "stream_options": "What a stream reports besides the text.",
    "include_usage": "true: the last chunk of the stream has the usage.",
    "continuous_usage_stats": "true, with include_usage: each chunk has the usage so far.",
}
"""The meanings of the fields of a completion's body."""

EDITORS: Final = {
    "random_seed": "Mistral's name for seed.",
    "n_predict": "llama.cpp's name for max_tokens.",
    "max_tokens": "The most tokens that the completion may have. Below 0: no limit.",
    "n_cmpl": "llama.cpp's name for n: how many completions to return.",
    "response_fields": "Return only these fields of the answer.",
    "input_prefix": "The text before the gap.",
    "input_suffix": "The text after the gap.",
    "input_extra": "Other files, as context for the model.",
    "input_extra.text": "The file's text.",
    "input_extra.filename": "The file's name.",
    "prompt": "A text that follows input_prefix, before the gap.",
}
"""The meanings of the fields that only bodies of editors have, or that differ there."""

TOKENIZERS: Final = {
    "prompt": "The text to split into tokens.",
    "messages": "The messages of a chat, to be written with the model's template and split.",
    "content": "The text to split into tokens, in llama.cpp's format.",
    "tokens": "The ids of the tokens to write as a text.",
    "add_special_tokens": "Add the model's special tokens, such as the one that begins a text.",
    "return_token_strs": "Return each token's string too.",
    "add_generation_prompt": "End with what begins the model's reply.",
    "continue_final_message": "Leave the last message open, so that the model continues it.",
    "chat_template": "A template to use instead of the model's own.",
    "chat_template_kwargs": "Values for the template.",
    "mm_processor_kwargs": "Options for the host's processor of images, audio and video.",
    "tools": "The tools that the template describes.",
    "add_special": "llama.cpp's name for add_special_tokens.",
    "parse_special": "false: read the text of special tokens as plain text.",
    "with_pieces": "Return each token's text with its id.",
}
"""The meanings of the fields of bodies of the tokenizer endpoints."""

CHAT: Final = {
    "messages": "The conversation so far, in OpenAI's format. It is sent unchanged.",
    "messages.role": "Who speaks: system, developer, user, assistant or tool.",
}
"""The meanings of the fields that only bodies of chats have."""

BODY: Final = REQUEST | below("additional_params", REQUEST) | below("stream_options", REQUEST)
EVERY: Final = {
    **ANSWERS,
    **keys.meanings(),
    **operator_texts.meanings(),
    "StreamState": following.MEANINGS,
    "CompletionRequest": BODY,
    "OpenAICompletionRequest": BODY,
    "Chat": ANSWERS["Completion"] | below("choices", CHAT_CHOICE),
    "ChatRequest": BODY | CHAT,
    "OpenAIChatRequest": BODY | CHAT,
    "FimRequest": BODY | {"model": MODEL, "random_seed": EDITORS["random_seed"]},
    "BetaRequest": BODY | {"model": MODEL},
    "LlamaCppRequest": BODY | EDITORS | {"model": MODEL, "prompt": REQUEST["prompt"]},
    "InfillRequest": BODY | EDITORS | {"model": MODEL},
    "TokenizeRequest": REQUEST | TOKENIZERS | {"model": MODEL},
    "DetokenizeRequest": REQUEST | TOKENIZERS | {"model": MODEL},
}
"""The meanings of the fields of each schema. Meanings of bodies are shared, so a schema may have
fewer fields."""


def explained(schema: dict[str, Any], meanings: dict[str, str], path: str = "") -> dict[str, Any]:
    """Return a schema with a description for each field that has a meaning.

    Args:
        schema: a schema; it isn't changed.
        meanings: the meanings by the fields' paths below the schema.
        path: the path of the schema, with a dot at its end.
    """
    found = dict(schema)
    for name in ("anyOf", "oneOf"):
        if name in found:
            found[name] = [explained(part, meanings, path) for part in found[name]]
    if isinstance(found.get("items"), dict):
        found["items"] = explained(found["items"], meanings, path)
    if "properties" in found:
        found["properties"] = {
            name: explained(field, meanings, f"{path}{name}.")
            | described(meanings.get(path + name, ""), field)
            for name, field in found["properties"].items()
        }
    return found


def described(meaning: str, field: dict[str, Any]) -> dict[str, Any]:
    """Return a field's description: its meaning, then what its schema already says."""
    text = " ".join(filter(None, (meaning, field.get("description"))))
    return {"description": text} if text else {}
