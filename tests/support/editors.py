"""Editors' clients, as far as tests need them: what each one sends, and how it reads an answer.

- A reader fails where the client would fail, show nothing, or stop working.
- Written after the clients' behaviour in 2026-11; docs/guides/editors.md says how to set each one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import requests

from tests.support.pace import HANG_S
from tests.support.servers import Server

PREFIX, SUFFIX = "def add(a, b):\n    ", "\n\nprint(add(1, 2))\n"
RESPONSE_FIELDS = [
    *("content", "timings/prompt_n", "timings/prompt_ms", "timings/prompt_per_second"),
    *("timings/predicted_n", "timings/predicted_ms", "truncated", "tokens_cached"),
]


class EditorError(Exception):
    """What a client can't read."""


def post(server: Server, path: str, body: Any, **headers: str) -> requests.Response:
    sent = {"Authorization": f"Bearer {server.key}"} | {
        name.replace("_", "-"): value for name, value in headers.items()
    }
    url = server.url + path
    return requests.post(url, json=body, headers=sent, timeout=HANG_S, stream=body.get("stream"))


def good(answer: requests.Response) -> requests.Response:
    if answer.status_code != 200:
        raise EditorError(f"{answer.status_code}: {answer.text}")
    return answer


def event_source(answer: requests.Response) -> Iterator[str]:
    """Yield the data of each event, as a strict parser of server-sent events does."""
    if not answer.headers["Content-Type"].startswith("text/event-stream"):
        raise EditorError(answer.headers["Content-Type"])
    data: list[str] = []
    for line in good(answer).content.decode().split("\n"):
        if line.startswith("data:"):
            data.append(line[5:].removeprefix(" "))
        elif not line and data:
            yield "\n".join(data)
            data = []


def typed(value: Any, kind: type, name: str) -> Any:
    if type(value) is not kind:
        raise EditorError(f"{name} is {value!r}")
    return value


# Continue


def continue_events(answer: requests.Response) -> Iterator[Any]:
    """Yield the data of Continue's parser. A line ": ping" ends it, and an error fails."""
    for line in good(answer).content.decode().split("\n"):
        if line.startswith(("data:[DONE]", "data: [DONE]", ": ping")):
            return
        if line.startswith("data:"):
            data = json.loads(line[5:])
            if data.get("error"):
                raise EditorError(str(data["error"]))
            yield data


def continue_mistral(server: Server, model: str, **more: Any) -> str:
    body = {
        "model": model,
        "prompt": PREFIX,
        "suffix": SUFFIX,
        "max_tokens": 64,
        "temperature": 0.01,
        "frequency_penalty": 0,
        "presence_penalty": 0,
        "stop": ["\n\n", "def "],
        "stream": True,
    }
    headers = {"Accept": "application/json", "x_api_key": server.key}
    answer = post(server, "/v1/fim/completions", body | more, **headers)
    return "".join(
        typed(one["choices"][0]["delta"]["content"], str, "content")
        for one in continue_events(answer)
    )


def continue_deepseek(server: Server, model: str, **more: Any) -> str:
    body = {"model": model, "prompt": PREFIX, "suffix": SUFFIX, "max_tokens": 64, "stop": ["\n\n"]}
    answer = post(server, "/beta/completions", body | {"stream": True} | more)
    return "".join(typed(one["choices"][0]["text"], str, "text") for one in continue_events(answer))


def continue_llamacpp(server: Server, model: str, **more: Any) -> str:
    prompt = f"<|fim_prefix|>{PREFIX}<|fim_suffix|>{SUFFIX}<|fim_middle|>"
    body = {"model": model, "prompt": prompt, "stream": True, "n_predict": 64, "stop": ["\n\n"]}
    answer = post(server, "/completion", body | more)
    return "".join(one["content"] for one in continue_events(answer) if one.get("content"))


# Tabby


def tabby_mistral(server: Server, model: str, **more: Any) -> str:
    body = {
        "prompt": PREFIX,
        "suffix": SUFFIX,
        "model": model,
        "temperature": 0.1,
        "max_tokens": 64,
        "stream": True,
        "random_seed": 1_764_460_800_000,
    }
    text: str = ""
    for data in event_source(post(server, "/v1/fim/completions", body | more)):
        choices = typed(json.loads(data)["choices"], list, "choices")
        if not choices:
            continue
        text += typed(choices[0]["delta"]["content"], str, "content")
        if choices[0].get("finish_reason") is not None:
            return text
    raise EditorError("no finish_reason before the end")


def tabby_openai(server: Server, model: str, **more: Any) -> str:
    body = {
        "model": model,
        "prompt": PREFIX,
        "suffix": SUFFIX,
        "max_tokens": 64,
        "temperature": 0.1,
        "stream": True,
        "presence_penalty": 0.0,
    }
    text: str = ""
    for data in event_source(post(server, "/v1/completions", body | more)):
        for choice in typed(json.loads(data)["choices"], list, "choices")[:1]:
            text += typed(choice["text"], str, "text")
            if choice.get("finish_reason") is not None:
                return text
    raise EditorError("no finish_reason before the end")


def tabby_llamacpp(server: Server, model: str, **more: Any) -> str:
    body = {
        "seed": 1_764_460_800_000,
        "prompt": f"<|fim_prefix|>{PREFIX}<|fim_suffix|>{SUFFIX}<|fim_middle|>",
        "n_predict": 64,
        "temperature": 0.1,
        "stream": True,
        "penalty_last_n": 0,
        "presence_penalty": 0.0,
    }
    text: str = ""
    for data in event_source(post(server, "/completion", body | {"model": model} | more)):
        one = json.loads(data)
        text += typed(one["content"], str, "content")
        if typed(one["stop"], bool, "stop"):
            return text
    raise EditorError("no stop")


# Zed


def zed_usage(found: Any) -> None:
    for name in ("prompt_tokens", "completion_tokens", "total_tokens"):
        typed(found[name], int, name)


def zed_codestral(server: Server, model: str, **more: Any) -> str:
    body = {
        "model": model,
        "prompt": PREFIX,
        "max_tokens": 64,
        "temperature": 0.2,
        "top_p": 1.0,
        "stream": False,
        "stop": None,
        "random_seed": None,
        "min_tokens": None,
    }
    found = good(post(server, "/v1/fim/completions", body | more)).json()
    for name in ("id", "object", "model"):
        typed(found[name], str, name)
    typed(found["created"], int, "created")
    zed_usage(found["usage"])
    choice = found["choices"][0]
    typed(choice["index"], int, "index")
    typed(choice["finish_reason"], str, "finish_reason")
    typed(choice["message"]["role"], str, "role")
    text: str = typed(choice["message"]["content"], str, "content")
    return text


def zed_openai(server: Server, model: str, **more: Any) -> str:
    prompt = f"<|fim_prefix|>{PREFIX}<|fim_suffix|>{SUFFIX}<|fim_middle|>"
    stop = ["<|endoftext|>", "<|file_sep|>", "<|fim_pad|>", "<|fim_prefix|>"]
    body = {"model": model, "prompt": prompt, "max_tokens": 64, "stop": stop}
    found = good(post(server, "/v1/completions", body | more)).json()
    for name in ("id", "object", "model"):
        typed(found[name], str, name)
    zed_usage(found["usage"])
    text: str = typed(found["choices"][0]["text"], str, "text")
    return text


# lsp-ai and minuet


def lsp_ai(server: Server, model: str, **more: Any) -> str:
    body = {
        "prompt": PREFIX,
        "suffix": SUFFIX,
        "model": model,
        "max_tokens": 64,
        "top_p": 0.95,
        "temperature": 0.1,
        "min_tokens": None,
        "random_seed": None,
        "stop": [],
    }
    answer = post(server, "/v1/fim/completions", body | more, Accept="application/json")
    message = good(answer).json()["choices"][0]["message"]
    typed(message["role"], str, "role")
    text: str = typed(message["content"], str, "content")
    return text


def minuet(server: Server, model: str, **more: Any) -> str:
    body = {
        "model": model,
        "prompt": PREFIX,
        "suffix": SUFFIX,
        "stream": True,
        "max_tokens": 64,
        "top_p": 0.9,
        "stop": ["\n\n"],
    }
    answer = post(server, "/v1/completions", body | more)
    lines = good(answer).content.decode().split("\n")
    found = (json.loads(line[6:]) for line in lines if line.startswith("data: {"))
    return "".join(one["choices"][0]["text"] for one in found)


# llama.vim and llama.vscode


def llama_vim_body(**more: Any) -> dict[str, Any]:
    return {
        "id_slot": 0,
        "input_prefix": PREFIX,
        "input_suffix": SUFFIX,
        "input_extra": [{"text": "x = 1\n", "time": [1, 2], "filename": "x.py"}],
        "prompt": "    retu",
        "n_predict": 128,
        "stop": [],
        "n_indent": 4,
        "top_k": 40,
        "top_p": 0.9,
        "samplers": ["top_k", "top_p", "infill"],
        "stream": False,
        "cache_prompt": True,
        "t_max_prompt_ms": 500,
        "t_max_predict_ms": 1000,
        "response_fields": RESPONSE_FIELDS,
    } | more


def llama_vim(server: Server, model: str, **more: Any) -> str:
    """Fill in. llama.vim looks for the text `"content":"` before it decodes the answer."""
    raw = good(post(server, "/infill", llama_vim_body(model=model) | more)).text
    if not re.match(r"\s*\{", raw) or '"content":"' not in raw or "\n" in raw:
        raise EditorError(raw)
    found = json.loads(raw)
    text: str = typed(found["content"], str, "content")
    found.get("timings/predicted_n", 0)
    return text


def llama_vim_warm_up(server: Server, model: str) -> str:
    quiet = {"input_prefix": "", "input_suffix": "", "prompt": "", "n_predict": 0}
    quiet |= {"samplers": [], "t_max_prompt_ms": 1, "t_max_predict_ms": 1, "temperature": 0.0}
    body = llama_vim_body(model=model, response_fields=[""]) | quiet
    for name in ("n_indent", "top_k", "top_p", "stop"):
        del body[name]
    return good(post(server, "/infill", body)).text


def llama_vscode_body(**more: Any) -> dict[str, Any]:
    body = llama_vim_body(n_cmpl=3, top_p=0.99)
    del body["response_fields"], body["stop"]
    return body | more


def llama_vscode(server: Server, model: str, **more: Any) -> list[str]:
    """Return the suggestions: those of an array of results, or of one result."""
    found = good(post(server, "/infill", llama_vscode_body(model=model) | more)).json()
    results = found if isinstance(found, list) else [found]
    return [typed(one["content"], str, "content") for one in results]


def llama_vscode_warm_up(server: Server) -> Any:
    """Warm up. This request names no model."""
    body = llama_vscode_body(n_predict=0, samplers=[], t_max_predict_ms=1)
    for name in ("n_cmpl", "n_indent", "top_k", "top_p", "stream"):
        del body[name]
    return good(post(server, "/infill", body)).json()


def llama_vscode_health(server: Server) -> str:
    found = requests.get(f"{server.url}/health", timeout=HANG_S).json()
    return str(typed(found["status"], str, "status"))


def llama_vscode_models(server: Server) -> list[str]:
    """Return the ids of the models. Raises EditorError if they look like llama.cpp's own."""
    headers = {"Authorization": f"Bearer {server.key}"}
    found = requests.get(f"{server.url}/v1/models", headers=headers, timeout=HANG_S).json()
    models = found.get("models", found.get("data"))
    if any(m["owned_by"].lower() == "llamacpp" or isinstance(m.get("meta"), dict) for m in models):
        raise EditorError("the client would ask for /props")
    return [m["id"] for m in models]


TEXT_CLIENTS = {
    client.__name__: client
    for client in (
        *(continue_mistral, continue_deepseek, continue_llamacpp, tabby_mistral, tabby_openai),
        *(tabby_llamacpp, zed_codestral, zed_openai, lsp_ai, minuet, llama_vim),
    )
}
"""The clients that return one text."""
GAP_CLIENTS = {
    name: client
    for name, client in TEXT_CLIENTS.items()
    if name not in ("continue_llamacpp", "tabby_llamacpp", "zed_openai")
}
"""Those that send a prefix and a suffix. The others build the prompt themselves."""
