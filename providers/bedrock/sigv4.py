"""SigV4: the signature of a request to Amazon that has no API key.

- It is loaded only for a row with sign = "sigv4", and needs botocore (requirements-bedrock.txt).
- botocore finds the credentials in its own ways: variables, profiles, single sign-on, the role of a
  container or a machine. It asks the network for them if necessary, and renews them.
- botocore is the signer, never the client.
- A request is signed just before it is sent, because a signature is valid for some minutes.

Source: AWS reference, "Signature Version 4 signing process"; botocore (read 2026-11).
"""

from __future__ import annotations

import logging
import re
import threading
from functools import cache
from typing import Any, Final
from urllib.parse import urlsplit

from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.exceptions import BotoCoreError
from botocore.session import Session, get_session

from errors import UpstreamError
from providers.base import Target, UpstreamRequest

SERVICE: Final = "bedrock"
REGION: Final = re.compile(r"\.([a-z]+(?:-[a-z]+)+-[0-9]+)\.")
"""A region among the labels of a host name."""

logging.getLogger("botocore").setLevel(logging.WARNING)  # lower levels log session tokens

_lock = threading.Lock()


def sign(request: UpstreamRequest, target: Target) -> UpstreamRequest:
    """Return the request with its signature; if the target has a credential, as it is.

    Raises UpstreamError if there are no AWS credentials, or no region.
    """
    if target.credential is not None:
        return request
    try:
        credentials = _credentials()
        region = _region(request.url)
    except BotoCoreError as failure:  # its message names profiles and hosts, never keys
        raise UpstreamError(f"No AWS credentials can be had: {failure}") from failure
    if credentials is None:
        raise UpstreamError("This server has no AWS credentials.")
    if region is None:
        raise UpstreamError("This server has no AWS region.")
    signed = AWSRequest(request.method, request.url, headers=request.headers, data=request.body)
    SigV4Auth(credentials, SERVICE, region).add_auth(signed)
    return UpstreamRequest(request.method, request.url, dict(signed.headers.items()), request.body)


def _credentials() -> Any:
    """Return the current access key, its secret and, for a role, a token; None without any."""
    with _lock:
        credentials = _session().get_credentials()
    return credentials and credentials.get_frozen_credentials()


def _region(url: str) -> str | None:
    """Return the region in the host name, or else the configured one."""
    match = REGION.search(urlsplit(url).hostname or "")
    if match:
        return match[1]
    with _lock:
        found: str | None = _session().get_config_variable("region")
    return found


@cache
def _session() -> Session:
    return get_session()
