"""SigV4 signatures for requests to Amazon that have no API key.

- This module is imported only for a row with sign = "sigv4", and needs botocore
  (requirements-bedrock.txt).
- botocore finds the credentials: in variables, in profiles, through single sign-on, or from the
  role of a container or a machine. It may use the network to fetch and renew them.
- botocore only signs. It never sends the requests.
- A request is signed just before it is sent, because a signature is valid for only some minutes.

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
"""An AWS region among the labels of a host name."""

logging.getLogger("botocore").setLevel(logging.WARNING)  # INFO and DEBUG would log session tokens

_lock = threading.Lock()


def sign(request: UpstreamRequest, target: Target) -> UpstreamRequest:
    """Return the signed request. A request whose target has a credential is returned unchanged.

    Raises:
        UpstreamError: AWS credentials or a region are missing.
    """
    if target.credential is not None:
        return request
    try:
        credentials = _credentials()
        region = _region(request.url)
    except BotoCoreError as failure:  # its message names profiles and hosts, never keys
        raise UpstreamError(f"The AWS credentials could not be loaded: {failure}") from failure
    if credentials is None:
        raise UpstreamError("No AWS credentials are configured on this server.")
    if region is None:
        raise UpstreamError("No AWS region is configured on this server.")
    body = b"".join((request.body, *request.more))
    signed = AWSRequest(request.method, request.url, headers=request.headers, data=body)
    SigV4Auth(credentials, SERVICE, region).add_auth(signed)
    return UpstreamRequest(request.method, request.url, dict(signed.headers.items()), body)


def _credentials() -> Any:
    """Return the current access key, its secret and perhaps a session token, or None."""
    with _lock:
        credentials = _session().get_credentials()
    return credentials and credentials.get_frozen_credentials()


def _region(url: str) -> str | None:
    match = REGION.search(urlsplit(url).hostname or "")
    if match:
        return match[1]
    with _lock:
        found: str | None = _session().get_config_variable("region")
    return found


@cache
def _session() -> Session:
    return get_session()
