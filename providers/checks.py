"""Checks of providers: does the host answer now, and does it accept the key?

- A check costs no tokens: it is a GET of the host's list of models, or of what the row names.
- The request has the headers that the dialect's calls have, and uses the row's proxy and
  certificates.
- No message contains a key, or the text of a host that rejected one.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from typing import Final, NamedTuple
from urllib.parse import quote, urljoin, urlsplit, urlunsplit

import msgspec

from completion import CompletionRequest
from config import Timeouts
from errors import ITSELF, UpstreamError, UpstreamTimeout, is_sluice
from keys.redaction import shown
from providers import registry
from providers.base import Target, UpstreamRequest
from providers.transport.abort import Aborted
from providers.transport.exchange import Exchange, Transport

PATHS: Final = {
    "openai": "models",
    "anthropic": "models?limit=1",
    "google": "models?pageSize=1",
    "cohere": "../v1/models?page_size=1",
    "bedrock": "async-invoke?maxResults=1",
    "infill": "/health",
}
"""The address to get, relative to base_url, by dialect. Bedrock's host has no list of models."""
PROBE: Final = CompletionRequest(prompts=("x",))
"""A request that is never sent: the check uses its headers."""
LATE_S: Final = 0.5
"""The extra time for a check that an abort can't end, such as a lookup of a name."""
LONGEST_TEXT: Final = 200


class Check(NamedTuple):
    """The result of a check."""

    provider: str
    ok: bool
    state: str
    """A word for programs: ok, or what is wrong."""
    message: str
    """The fault, or the time that the response took, in words that follow the provider's name."""
    seconds: float = 0.0
    replica: str = ""
    """The replica that was checked; empty if the provider has none."""


def check(transport: Transport, target: Target, limit: float, *, thorough: bool = False) -> Check:
    """Check a target's host. Raises nothing.

    Args:
        limit: seconds.
        thorough: find out whether the host looked at the key, with a second request.
    """
    found = check_host(transport, target, limit, thorough=thorough)
    return found._replace(replica=target.replica)


def check_host(transport: Transport, target: Target, limit: float, *, thorough: bool) -> Check:
    if target.dialect == "local":
        return Check(target.provider.name, ok=True, state="ok", message="ok (built in)")
    began = time.monotonic()
    found = attempt(transport, target, limit)
    seconds = time.monotonic() - began
    if found.state != "ok":
        return found._replace(seconds=seconds)
    remark = ""
    if thorough and target.credential is not None and seconds < limit:
        bare = msgspec.structs.replace(target, credential=None)
        if attempt(transport, bare, limit - seconds).state == "ok":
            remark = "; the key was not checked, because the host needs none for this"
    message = f"ok ({seconds * 1000:.0f} ms){remark}"
    return Check(found.provider, ok=True, state="ok", message=message, seconds=seconds)


def check_all(
    checks: Sequence[Callable[[], Check]], targets: Sequence[Target], limit: float
) -> list[Check]:
    """Run checks at the same time, and return their results in order.

    Args:
        targets: the checks' targets, for the checks that don't end in time.
        limit: seconds for each check.
    """
    results: dict[int, Check] = {}

    def run(number: int) -> None:
        results[number] = checks[number]()

    threads = [
        threading.Thread(target=run, args=(number,), daemon=True) for number in range(len(checks))
    ]
    for thread in threads:
        thread.start()
    until = time.monotonic() + limit + LATE_S
    for thread in threads:
        thread.join(max(0.0, until - time.monotonic()))
    return [
        results.get(number) or late(target.provider.name, limit)._replace(replica=target.replica)
        for number, target in enumerate(targets)
    ]


def attempt(transport: Transport, target: Target, limit: float) -> Check:
    """Send the request of a check once. The state is ok if the host served it."""
    result = partial(Check, target.provider.name)
    timeouts = Timeouts(connect=limit, first_event=limit, idle=limit, grace=0)
    try:
        request = signed(request_of(target), target)
        row = target.provider
        exchange = transport.exchange(request, timeouts, row.ca_bundle, row.proxy)
        timer = threading.Timer(limit, exchange.abort)
        timer.daemon = True
        timer.start()
        try:
            with closing(exchange):
                status = exchange.open()
                return judged(exchange, target, status)
        finally:
            timer.cancel()
    except Aborted:
        return late(target.provider.name, limit)
    except UpstreamTimeout as error:
        return result(ok=False, state="timed_out", message=clause(error))
    except UpstreamError as error:
        return result(ok=False, state=error.reason or "failed", message=clause(error))


def late(provider: str, limit: float) -> Check:
    return Check(provider, ok=False, state="timed_out", message=f"no answer within {limit:g} s")


def request_of(target: Target, path: str | None = None) -> UpstreamRequest:
    """Return a GET with the headers of the dialect's calls.

    Args:
        path: the address relative to base_url; None for that of a check.
    """
    headers = dict(registry.dialect(target.dialect).call(PROBE, target).headers)
    headers.pop("Content-Type", None)
    return UpstreamRequest("GET", url_of(target, path), headers, b"")


def url_of(target: Target, path: str | None = None) -> str:
    row = target.provider
    base = row.base_url.rstrip("/").replace("{model}", quote(target.model, safe=""))
    path = path or row.check or PATHS[target.dialect]
    address = base + path if path.startswith("/") else urljoin(f"{base}/", path)
    if not row.query:
        return address
    return f"{address}{'&' if '?' in address else '?'}{row.query}"


def signed(request: UpstreamRequest, target: Target) -> UpstreamRequest:
    signer = registry.signer(target.provider)
    return request if signer is None else signer.sign(request, target)


def judged(exchange: Exchange, target: Target, status: int) -> Check:
    """Return the result for a response."""
    row = target.provider
    result = partial(Check, row.name)
    if 200 <= status < 300:
        if exchange.media_type == "text/html":
            message = f"sent a web page instead of data: check base_url, {public_url(row.base_url)}"
            return result(ok=False, state="not_found", message=message)
        return result(ok=True, state="ok", message="ok")
    if is_sluice(exchange.headers) and not (status == 401 and target.credential):
        message = "is Sluice itself: set base_url to where the provider listens"
        return result(ok=False, state=ITSELF, message=message)
    error = registry.dialect(target.dialect).error(status, exchange.headers, exchange.read_error())
    return refused(target, status, error)


def refused(target: Target, status: int, error: UpstreamError) -> Check:
    """Return the result for a status other than 2xx."""
    row = target.provider
    result = partial(Check, row.name)
    status_code = error.upstream_status or status
    word = shown(error.upstream_code, target.credential)
    code = f"status {status_code}" + (f", {word[:LONGEST_TEXT]}" if word else "")
    if status_code in (401, 403):
        return result(ok=False, state="key_rejected", message=rejected(target, code))
    if status_code == 404 and "{model}" not in row.base_url:
        where = f"check base_url, {public_url(row.base_url)}"
        message = f"answers, but has nothing at {public_url(url_of(target))} ({code}): {where}"
        return result(ok=False, state="not_found", message=message)
    if status_code in (404, 405):
        return result(ok=True, state="unchecked", message=f"answers ({code}); the key is unchecked")
    if status_code == 429:
        return result(
            ok=True, state="rate_limited", message=f"answers, but limits the rate ({code})"
        )
    if 300 <= status_code < 400:
        message = f"redirects to another URL ({code}): set base_url to that one"
        return result(ok=False, state="redirected", message=message)
    text = shown(error.upstream_message, target.credential) or ""
    more = f": {text[:LONGEST_TEXT]}" if text and text.isprintable() else ""
    return result(ok=False, state="failed", message=f"answers with {code}{more}")


def rejected(target: Target, code: str) -> str:
    row = target.provider
    if row.sign:
        return f"rejected the AWS credentials ({code})"
    if row.api_key_env is None:
        return f"requires an API key ({code}): set api_key_env in its row"
    number = f" (key {target.key_number})" if target.key_number > 1 else ""
    return f"rejected the API key ({code}): check {row.api_key_env}{number}"


def clause(error: UpstreamError) -> str:
    """Return an error's message as a clause that may follow the provider's name."""
    return error.message.removeprefix("The upstream ").rstrip(".")


def public_url(url: str) -> str:
    """Return a URL without a user, a password and a query."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
