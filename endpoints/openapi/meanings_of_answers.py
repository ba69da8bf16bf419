"""The meanings of the fields of an answer, for the OpenAPI document."""

from __future__ import annotations

from typing import Final


def below(name: str, fields: dict[str, str]) -> dict[str, str]:
    return {f"{name}.{field}": text for field, text in fields.items()}


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
CHAT_CHOICE: Final = {
    "index": CHOICE["index"],
    "message": "The reply, as the provider gave it: with its tool calls, reasoning, audio.",
    "finish_reason": CHOICE["finish_reason"],
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
    "OpenAIChat": {
        **OPENAI,
        **below("choices", CHAT_CHOICE),
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
        "resumable": "true if other connections can follow the call.",
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
        "pricing.source": "provider: the prices come from the provider's own list.",
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
        "replicas": "The servers that share its calls, if there are several.",
        "replicas.total": "How many there are.",
        "replicas.reachable": "How many of them can be reached.",
    },
    "OpenAIModel": {
        "id": "The name to send as model.",
        "object": "The kind of object.",
        "created": "When the model was made, in seconds since 1970; 0 if that is unknown.",
        "owned_by": "The model's provider; sluice for an alias.",
        "context_length": "The most tokens of prompt and completion, if known.",
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
