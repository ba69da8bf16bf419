"""Resumable streams of LangChain: python langchain_resumable.py URL KEY. Prints JSON."""

import json
import sys

from langchain_openai import ChatOpenAI, OpenAI  # type: ignore[import-not-found]

asked = {
    "base_url": f"{sys.argv[1]}/v1",
    "api_key": sys.argv[2],
    "model": "fake/m",
    "max_retries": 0,
    "default_headers": {"X-Sluice-Resumable": "1"},
}
completion = "".join(OpenAI(**asked).stream("x"))
chat = "".join(chunk.content for chunk in ChatOpenAI(**asked).stream("x"))
print(json.dumps({"completion": completion, "chat": chat}))
