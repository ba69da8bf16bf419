"""OpenAI's SDKs at paths whose answers they can't read, because of a wrong base_url."""

from __future__ import annotations

from typing import Final

from endpoints.flask_app import current
from errors import InvalidRequest

AGENTS: Final = ("OpenAI/", "AsyncOpenAI/", "AzureOpenAI/", "AsyncAzureOpenAI/")
"""The beginnings of the SDKs' User-Agent headers."""


def refuse(api: str) -> None:
    """Raise InvalidRequest for OpenAI's SDK, whose user would get an empty answer instead.

    Args:
        api: the API at the path of the current request.
    """
    if current().environ.get("HTTP_USER_AGENT", "").startswith(AGENTS):
        raise InvalidRequest(
            f"This is {api}, whose answers OpenAI's SDK can't read: set the SDK's base_url to this "
            "server's address followed by /v1."
        )
