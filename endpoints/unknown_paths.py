"""The message of a 404 for a path that other servers have, and that an SDK may call here.

- No message contains "model" or "provider", which mislead the official client.
- The path isn't quoted, because it may contain these words, or a key.
- The module is pure.
"""

from __future__ import annotations

import re
from typing import Final

NOTHING: Final = "There is nothing at this path."
COMPLETIONS: Final = (
    "send the text as `prompt` to POST /v1/completions (OpenAI's API) or POST /api/v1/completions "
    "(Sluice's own API)"
)
BASE_URL: Final = "set the SDK's base_url to this server's address, followed by /v1"
ADDRESS_ONLY: Final = "set the client's base_url to this server's address, without /api/v1"

PREFIX: Final = re.compile(r"(/(openai|api|v1))*(?=/|$)")
"""The parts that base URLs have before OpenAI's own paths."""
TWICE: Final = re.compile(r"/v1(/openai)?/v1(/|$)")

UNSERVED: Final = {
    "responses": "OpenAI's Responses API",
    "messages": "Anthropic's Messages API",
    "complete": "Anthropic's old completions API",
    "embeddings": "embeddings",
    "rerank": "reranking",
    "moderations": "moderations",
    "images": "images",
    "videos": "videos",
    "audio": "audio",
    "realtime": "OpenAI's Realtime API",
    "assistants": "assistants",
    "threads": "assistants",
    "conversations": "conversations",
    "files": "files",
    "uploads": "files",
    "vector_stores": "vector stores",
    "batches": "batches",
    "fine_tuning": "fine-tuning",
    "engines": "OpenAI's old engines",
    "deployments": "Azure's deployments",
}
"""What is at other servers' paths, by the first part after the prefix."""
OTHER_APIS: Final = (
    (re.compile(r"/api/(generate|chat|tags|show|ps|embed)$"), "Ollama's API"),
    (re.compile(r"/v1(beta|alpha)[0-9]*/"), "the Gemini API"),
    (re.compile(r"/v2/(chat|generate|embed)$"), "Cohere's API"),
)
SERVED: Final = frozenset(("completions", "chat", "models"))
"""The first parts of OpenAI's paths that Sluice serves, under /v1."""
OPENAI_PATHS: Final = ("/v1/", "/fim/", "/beta/")
"""The beginnings of paths whose clients expect OpenAI's format of an error."""
LLAMACPP_PATHS: Final = ("infill", "completion", "completions")
TOKENIZER_PATHS: Final = ("tokenize", "detokenize", "tokenizer_info")
"""The first parts of llama.cpp's paths, whose clients expect that format too."""


def message(path: str) -> str:
    """Return the message for a path at which there is nothing."""
    path = path.rstrip("/")
    for pattern, api in OTHER_APIS:
        if pattern.match(path):
            return f"{NOTHING} Sluice doesn't serve {api}: {COMPLETIONS}."
    first = first_part(path)
    if first in UNSERVED:
        return f"{NOTHING} Sluice doesn't serve {UNSERVED[first]}. Complete a text: {COMPLETIONS}."
    if TWICE.search(path):
        return f"{NOTHING} It has /v1 twice: {BASE_URL} once."
    if path.startswith("/api/v1/api/v1/"):
        return f"{NOTHING} It has /api/v1 twice: {ADDRESS_ONLY}."
    if first in SERVED and not path.startswith(("/v1/", "/api/v1/")):
        return f"{NOTHING} OpenAI's API is under /v1: {BASE_URL}."
    return NOTHING


def is_openai(path: str) -> bool:
    """Return True if an error at this path should have OpenAI's format."""
    if path.startswith(OPENAI_PATHS):
        return True
    if path.removeprefix("/").partition("/")[0] in LLAMACPP_PATHS + TOKENIZER_PATHS:
        return True
    first = first_part(path)
    return not path.startswith("/api/") and (first in UNSERVED or first in SERVED)


def first_part(path: str) -> str:
    """Return the part of a path after the prefixes that base URLs have."""
    found = PREFIX.match(path)
    rest = path[found.end() :] if found else path
    return rest.removeprefix("/").partition("/")[0]
