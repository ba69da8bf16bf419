"""What each field means, for the OpenAPI document.

- A test compares these tables with the schemas: every field has a meaning, and no meaning is left
  over.
"""

from __future__ import annotations

from typing import Any, Final


def below(name: str, fields: dict[str, str]) -> dict[str, str]:
    return {f"{name}.{field}": text for field, text in fields.items()}


MODEL: Final = "The model: provider/model or an alias."
REQUEST: Final = {
    "prompt": "The text to complete.",
    "model": f"{MODEL} Without one, SLUICE_DEFAULT_MODEL counts.",
    "provider": "The provider. model is then that provider's own name for the model.",
    "fallbacks": "Models to try next, in this order, if the model fails.",
    "byok_api_key": "Your own key at the provider, for this call only. It replaces the server's.",
    "stream_id": "Your own id for the call, by which you can stop it. By default the request's id.",
    "stream": "true: send the completion event by event, as it arrives.",
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

SUM: Final = {
    "requests": "The number of calls that have ended.",
    "cost": "Their cost in USD. Calls without a known price count as 0.",
    "tokens": "Their tokens.",
    "unpriced_requests": "The number of calls without a known price, if there are any.",
}
COUNTS: Final = {
    "tokens.input": "Tokens of prompts.",
    "tokens.output": "Tokens of completions.",
    "tokens.total": "Both together.",
}
CHOICE: Final = {
    "text": "The text of the completion.",
    "index": "The choice's number, from 0. With several prompts: prompt's number * n + choice.",
    "finish_reason": "Why the completion ended.",
    "logprobs": "The log probabilities, if the request has logprobs.",
}
DETAILS: Final = {
    "source": "estimate: Sluice counted the tokens, because the provider didn't report them.",
    "cost_source": "provider: the provider reported the cost; Sluice didn't compute it.",
}
PRICED: Final = (
    "The cost in USD. null if the price is unknown, 0 if the call used your own provider key."
)
OPENAI_USAGE: Final = {
    "prompt_tokens": "Tokens of the prompt.",
    "completion_tokens": "Tokens of the completion.",
    "total_tokens": "Both together.",
    "cost": PRICED,
    "prompt_tokens_details": "Parts of prompt_tokens, if the provider reports them.",
    "prompt_tokens_details.cached_tokens": "Tokens that the provider read from its cache.",
    "prompt_tokens_details.cache_write_tokens": "Tokens that the provider wrote to its cache.",
    "completion_tokens_details": "Parts of completion_tokens, if the provider reports them.",
    "completion_tokens_details.reasoning_tokens": "Tokens of the model's reasoning.",
    **DETAILS,
}
OPENAI: Final = {
    "id": "The completion's id.",
    "object": "The kind of object.",
    "created": "When the call started, in seconds since 1970.",
    "model": "The model that served the call.",
    "choices": "The completions.",
    "usage": "Tokens and cost.",
    "byok_api_key": "true if your own provider key was used.",
}
NATIVE_FINISH: Final = "cancelled, if the call was stopped. finish_reason is then stop."


ANSWERS: Final[dict[str, dict[str, str]]] = {
    "Usage": {
        "tokens_prompt": "Tokens of the prompt.",
        "tokens_completion": "Tokens of the completion.",
        "tokens_total": "Both together.",
        "cost": PRICED,
        "latency": "The provider's part of the time, in milliseconds.",
        "cache_read_tokens": "Tokens of the prompt that the provider read from its cache.",
        "cache_write_tokens": "Tokens of the prompt that the provider wrote to its cache.",
        "reasoning_tokens": "Tokens of the model's reasoning.",
        **DETAILS,
    },
    "Completion": {
        "request_id": "The request's id, which the header X-Request-ID has too.",
        "created_at": "When the call started.",
        "duration_ms": "The time of the whole request, in milliseconds.",
        "provider": "The provider that served the call.",
        "model": "The provider's name for the model that served the call.",
        "success": "true. An error has false.",
        "message": "Empty. An error has its message here.",
        "data": "The text of the completion; with several choices, that of the first.",
        "finish_reason": "Why the completion ended. cancelled: it was stopped.",
        "usage": "Tokens and cost.",
        "choices": "All choices, if there is more in them than data and finish_reason.",
        **below("choices", CHOICE),
        "extra": "Fields of the provider's answer that Sluice doesn't know.",
        "byok_api_key": "true if your own provider key was used.",
        "warnings": "The hints that were left out, because the model doesn't take them.",
    },
    "OpenAICompletion": {
        **OPENAI,
        **below("choices", CHOICE | {"native_finish_reason": NATIVE_FINISH}),
        **below("usage", OPENAI_USAGE),
    },
    "FimCompletion": {
        **OPENAI,
        **below(
            "choices",
            {
                "index": CHOICE["index"],
                "message": "The completion, in the shape of a chat.",
                "message.role": "Who wrote it.",
                "message.content": "The text of the completion.",
                "finish_reason": CHOICE["finish_reason"],
                "logprobs": CHOICE["logprobs"],
                "native_finish_reason": NATIVE_FINISH,
            },
        ),
        **below("usage", OPENAI_USAGE),
    },
    "LlamaCppChoice": {
        "index": "The result's number, from 0.",
        "content": "The text of the completion.",
        "stop": "true if this is the end of the completion.",
        "tokens_predicted": "Tokens of the completion.",
        "tokens_evaluated": "Tokens of the prompt.",
    },
    "Stopped": {"success": "true: the call is stopped."},
    "ActiveStream": {
        "stream_id": "The id by which the call can be stopped.",
        "provider": "The provider that serves the call.",
        "model": "The provider's name for the model.",
        "started_at": "When the call started.",
        "input_tokens": "Tokens of the prompt; 0 until they are known.",
        "output_tokens": "Tokens of the completion so far.",
    },
    "Token": {
        "access_token": "The key that was sent.",
        "token_type": "How to send it: Authorization: Bearer.",
    },
    "Model": {
        "modelName": "The provider's name for the model.",
        "name": "The model's name for people.",
        "provider": "The model's provider.",
        "pricing": "What the model costs.",
        "pricing.input": "The price of the prompt's tokens in USD; null if unknown.",
        "pricing.output": "The price of the completion's tokens in USD; null if unknown.",
        "pricing.unit": "What the prices are for.",
        "specs": "What is known of the model.",
        "specs.context_window": "The most tokens of prompt and completion; null if unknown.",
        "capabilities": "Empty.",
        "byok": "true if calls may bring their own provider key.",
        "is_disabled": "true if the provider isn't enabled on this server.",
    },
    "Provider": {
        "name": "The provider's name, the first part of provider/model.",
        "enabled": "true if it can be called without your own provider key.",
        "text_completions": "Its known models.",
    },
    "OpenAIModel": {
        "id": "The name to send as model.",
        "object": "The kind of object.",
        "created": "0, because the time is unknown.",
        "owned_by": "The model's provider; sluice for an alias.",
    },
    "OpenAIModels": {"object": "The kind of object.", "data": "The models."},
    "Sums": SUM | COUNTS,
    "UsageReport": {
        "total_requests": SUM["requests"],
        "total_cost": SUM["cost"],
        "remaining_credits": "What is left of the key's budget, in USD; null without a budget.",
        "total_tokens": SUM["tokens"],
        **{f"total_{name}": text for name, text in COUNTS.items()},
        "endpoints": "The sums of each endpoint.",
        "providers": "The sums of each provider.",
        "models": "The sums of each model, by provider/model.",
        "daily_usage": "The sums of each day that has calls.",
        "daily_usage.date": "The day, in UTC.",
        **below("daily_usage", SUM | COUNTS),
        "refused": "The number of calls that were refused, by the reason.",
        "unpriced_requests": SUM["unpriced_requests"],
    },
    "UsageGroups": {
        "group_by": "What the groups are.",
        "data": "The sums of each group.",
        "data.name": "The group's name: a day, a model, a provider or an endpoint.",
        **below("data", SUM | COUNTS),
        "total": "The sums of all groups together.",
    },
    "Request": {
        "id": "The id of this row.",
        "request_id": "The request's id.",
        "stream_id": "The id by which the call could be stopped.",
        "started_at": "When the call started.",
        "ended_at": "When it ended; null while it is active.",
        "endpoint": "The path that was called.",
        "provider": "The provider that served the call.",
        "model": "The provider's name for the model.",
        "stream": "true if the completion was streamed.",
        "byok": "true if the caller's own provider key was used.",
        "status": "The HTTP status of the end; 499 if the client hung up, null while active.",
        "end_reason": "Why the call ended; null while it is active.",
        "error_code": "The error's code, if it failed.",
        "tokens": "The tokens of all attempts. While the call is active, an estimate.",
        **COUNTS,
        "tokens.cache_read": "Tokens that the provider read from its cache.",
        "tokens.cache_write": "Tokens that the provider wrote to its cache.",
        "tokens.reasoning": "Tokens of the model's reasoning.",
        "usage_source": "Who counted the tokens: provider, or estimate for Sluice.",
        "cost": "The cost in USD; null if the price is unknown.",
        "attempts": "The number of tries at a model, with retries and fallbacks.",
        "duration_ms": "The time of the whole call, in milliseconds.",
        "latency_ms": "The provider's part of the time, in milliseconds.",
        "first_event_ms": "The time to the first text, in milliseconds; null if there was none.",
        "tries": "Each attempt, if there was more than one.",
        "tries.provider": "The provider of the attempt.",
        "tries.model": "The provider's name for the model.",
        "tries.code": "The code of the error; null if the attempt succeeded.",
        "tries.status": "The provider's HTTP status; null if there was none.",
        "tries.tokens": "The attempt's tokens.",
        **below("tries", COUNTS),
        "tries.cost": "The attempt's cost in USD; null if the price is unknown.",
        "tries.duration_ms": "The attempt's time, in milliseconds.",
    },
    "Requests": {
        "data": "The calls, newest first.",
        "next_cursor": "The cursor of the next page; null on the last one.",
    },
    "Error": {
        "success": "false.",
        "request_id": "The request's id, which the log has too.",
        "error": "The error's code, as in code.",
        "code": "The error's code, for programs.",
        "message": "What went wrong, for people.",
        "status_code": "The HTTP status.",
        "details": "Facts for programs, if there are any.",
        "detail": "The message again.",
        "data": "Empty. A completion has its text here.",
    },
    "OpenAIError": {
        "error": "The error.",
        "error.message": "What went wrong, for people.",
        "error.type": "OpenAI's kind of error.",
        "error.param": "The field that is wrong; null if it isn't one field.",
        "error.code": "The error's code, for programs.",
        "error.request_id": "The request's id, which the log has too.",
        "error.details": "Facts for programs, if there are any.",
    },
    "Health": {"status": "ok: the process is alive."},
    "Ready": {
        "status": "ready, or why the server doesn't accept calls.",
        "cooling": "The failing models that are paused, with the seconds that are left.",
        "redis": "away, if the Redis that the processes share can't be reached.",
    },
    "Service": {
        "name": "The server's name.",
        "version": "Its version.",
        "docs": "Where its API is documented.",
    },
    "Tokenized": {
        "count": "The number of tokens.",
        "max_model_len": "The model's context length.",
        "tokens": "The ids of the tokens; with with_pieces, each with its text.",
        "tokens.id": "The token's id.",
        "tokens.piece": "Its text, or its bytes if they aren't UTF-8.",
        "token_strs": "Each token's string, if the request has return_token_strs.",
    },
    "Detokenized": {"prompt": "The text of the tokens."},
}
"""The meanings of the fields of each answer. A dot leads into a field."""
BODY: Final = REQUEST | below("additional_params", REQUEST) | below("stream_options", REQUEST)
EVERY: Final = {
    **ANSWERS,
    "CompletionRequest": BODY,
    "OpenAICompletionRequest": BODY,
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
