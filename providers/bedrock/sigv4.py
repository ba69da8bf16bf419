"""SigV4: how a call to Amazon is signed, where it has no API key.

It needs botocore (requirements-bedrock.txt), whose own ways lead to the credentials: variables,
profiles, single sign-on, a container's or a machine's role. Rules that hold here: loaded only for a
row with sign = "sigv4"; botocore is the signer, never the client. It asks the network itself where
credentials come from there, and renews them when they age. Sign when the call is about to be sent:
a signature is good for some minutes.

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
from providers.base import Call, Target

SERVICE: Final = "bedrock"
REGION: Final = re.compile(r"\.([a-z]+(?:-[a-z]+)+-[0-9]+)\.")
"""A region among the labels of a host's name."""

logging.getLogger("botocore").setLevel(logging.WARNING)  # below it, session tokens are logged

_lock = threading.Lock()


def sign(call: Call, target: Target) -> Call:
    """The call with its signature. One that has a credential, a caller's own key, stays as it is.

    Raises UpstreamError where there are no credentials, or no region.
    """
    if target.credential is not None:
        return call
    try:
        credentials = _credentials()
        region = _region(call.url)
    except BotoCoreError as failure:  # its words name profiles and hosts, never keys
        raise UpstreamError(f"No AWS credentials can be had: {failure}") from failure
    if credentials is None:
        raise UpstreamError("This server has no AWS credentials.")
    if region is None:
        raise UpstreamError("This server has no AWS region.")
    request = AWSRequest(call.method, call.url, headers=call.headers, data=call.body)
    SigV4Auth(credentials, SERVICE, region).add_auth(request)
    return Call(call.method, call.url, dict(request.headers.items()), call.body)


def _credentials() -> Any:
    """As they are now: an access key, its secret and, for a role, a token. None: there are none."""
    with _lock:
        credentials = _session().get_credentials()
    return credentials and credentials.get_frozen_credentials()


def _region(url: str) -> str | None:
    """The region that the host's name tells; for another host, the one that is configured."""
    match = REGION.search(urlsplit(url).hostname or "")
    if match:
        return match[1]
    with _lock:
        found: str | None = _session().get_config_variable("region")
    return found


@cache
def _session() -> Session:
    return get_session()
