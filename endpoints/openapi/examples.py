"""Examples of request and response bodies in the OpenAPI document.

- Tests validate each example against its schema.
"""

from __future__ import annotations

from typing import Any

from endpoints.openapi.errors import REQUEST_ID, Face

CURSOR = "MDE5NmQ3YTFjMGRlNGY1YTZiN2M4ZDllMGYxYTJi"
MODEL = {
    "modelName": "gpt-4o-mini",
    "name": "GPT-4o mini",
    "provider": "openai",
    "pricing": {"input": 0.15, "output": 0.6, "unit": "per_million_tokens"},
    "specs": {"context_window": 128000},
    "capabilities": [],
    "byok": True,
    "is_disabled": False,
}
SUMS = {"requests": 2, "cost": 0.0016, "tokens": {"input": 16, "output": 36, "total": 52}}
REQUEST = {
    "id": "0196d7a1c0de4f5a6b7c8d9e0f1a2b",
    "request_id": REQUEST_ID,
    "stream_id": "my-stream",
    "started_at": "2026-04-07T12:00:00.123Z",
    "ended_at": "2026-04-07T12:00:00.573Z",
    "endpoint": "/api/v1/completions",
    "provider": "openai",
    "model": "gpt-4o-mini",
    "stream": True,
    "byok": False,
    "status": 200,
    "end_reason": "completed",
    "error_code": None,
    "tokens": {"input": 8, "output": 18, "total": 26},
    "usage_source": "provider",
    "cost": 0.0008,
    "attempts": 1,
    "duration_ms": 450.2,
    "latency_ms": 448.9,
    "first_event_ms": 120.4,
}
OPENAI_MODEL = {"id": "local/pydoc", "object": "model", "created": 0, "owned_by": "local"}

BODIES: dict[Face, dict[str, dict[str, Any]]] = {
    "native": {
        "short": {"prompt": "Write a haiku about semicolons.", "model": "local/pydoc"},
        "stream": {
            "prompt": "Write a haiku about semicolons.",
            "model": "local/pydoc",
            "stream": True,
            "stream_id": "my-stream",
            "max_tokens": 40,
            "temperature": 0.7,
            "additional_params": {"stop": ["\n\n"]},
        },
    },
    "openai": {
        "short": {"prompt": "Write a haiku about semicolons.", "model": "local/pydoc"},
        "stream": {
            "prompt": ["Write a haiku about semicolons."],
            "model": "local/pydoc",
            "stream": True,
            "stream_options": {"include_usage": True},
            "max_tokens": 40,
            "stop": ["\n\n"],
        },
    },
}
STREAMS: dict[Face, str] = {
    "native": (
        "event: usage_start\n"
        'data: {"type":"usage_start","request_id":"550e8400","stream_id":"my-stream",'
        '"provider":"openai","model":"gpt-4o-mini","input_tokens":8}\n\n'
        'data: {"type":"content","data":"Hello","provider":"openai","choices":[{"text":"Hello",'
        '"delta":{"content":"Hello"},"index":0,"finish_reason":null}]}\n\n'
        'data: {"type":"finish","provider":"openai","finish_reason":"stop","choices":[{"text":"",'
        '"delta":{},"index":0,"finish_reason":"stop"}]}\n\n'
        "event: usage_final\n"
        'data: {"type":"usage_final","input_tokens":8,"output_tokens":1,"cost_usd":1.8e-06,'
        '"latency_ms":469.3,"attempts":1}\n\n'
        "data: [DONE]\n\n"
    ),
    "openai": (
        'data: {"id":"cmpl-1","object":"text_completion","created":1775563200,'
        '"model":"openai/gpt-4o-mini","choices":[{"text":"Hello","index":0,"logprobs":null,'
        '"finish_reason":null}]}\n\n'
        'data: {"id":"cmpl-1","object":"text_completion","created":1775563200,'
        '"model":"openai/gpt-4o-mini","choices":[{"text":"","index":0,"logprobs":null,'
        '"finish_reason":"stop"}]}\n\n'
        "data: [DONE]\n\n"
    ),
}
CSV = (
    "model,requests,cost_usd,input_tokens,output_tokens,total_tokens,unpriced_requests\r\n"
    "openai/gpt-4o-mini,2,0.0016,16,36,52,0\r\n"
)
METRICS = "# TYPE sluice_streams_active gauge\nsluice_streams_active 0.0\n"

ANSWERS: dict[str, Any] = {
    "Completion": {
        "request_id": REQUEST_ID,
        "created_at": "2026-04-07T12:00:00Z",
        "duration_ms": 450.2,
        "provider": "openai",
        "model": "gpt-4o-mini",
        "success": True,
        "message": "",
        "data": "Semicolons fall\n...",
        "finish_reason": "stop",
        "usage": {
            "tokens_prompt": 8,
            "tokens_completion": 18,
            "tokens_total": 26,
            "cost": 0.0008,
            "latency": 450.2,
        },
    },
    "OpenAICompletion": {
        "id": "cmpl-550e8400-e29b-41d4-a716-446655440000",
        "object": "text_completion",
        "created": 1775563200,
        "model": "openai/gpt-4o-mini",
        "choices": [
            {
                "text": "Semicolons fall\n...",
                "index": 0,
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {
            "prompt_tokens": 8,
            "completion_tokens": 18,
            "total_tokens": 26,
            "cost": 0.0008,
        },
    },
    "Stopped": {"success": True},
    "ActiveStream": {
        "stream_id": "my-stream",
        "provider": "openai",
        "model": "gpt-4o-mini",
        "started_at": "2026-04-07T12:00:00Z",
        "input_tokens": 8,
        "output_tokens": 3,
        "resumable": False,
    },
    "Token": {"access_token": "KEY", "token_type": "bearer"},
    "Model": MODEL,
    "Provider": {"name": "openai", "enabled": True, "text_completions": [MODEL]},
    "OpenAIModel": OPENAI_MODEL,
    "OpenAIModels": {"object": "list", "data": [OPENAI_MODEL]},
    "UsageReport": {
        "total_requests": 2,
        "total_cost": 0.0016,
        "remaining_credits": 9.9984,
        "total_tokens": SUMS["tokens"],
        "endpoints": {"/api/v1/completions": SUMS},
        "providers": {"openai": SUMS},
        "models": {"openai/gpt-4o-mini": SUMS},
        "daily_usage": [{"date": "2026-04-07"} | SUMS],
        "refused": {"rate_limited:requests": 4},
    },
    "UsageGroups": {
        "group_by": "model",
        "data": [{"name": "openai/gpt-4o-mini"} | SUMS],
        "total": SUMS,
    },
    "Requests": {"data": [REQUEST], "next_cursor": CURSOR},
    "Health": {"status": "ok"},
    "Ready": {"status": "ready"},
    "Service": {"name": "sluice", "version": "1.0.0", "docs": "docs/reference/api.md"},
}
