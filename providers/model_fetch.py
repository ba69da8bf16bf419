"""Requests for a host's list of models.

- The request has the headers that the dialect's calls have, and uses the row's proxy and
  certificates.
- Its time, its size, its pages and the number of models are bounded.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from contextlib import closing
from typing import Final, NamedTuple

from config import Timeouts
from errors import OWN_REALM, UpstreamError
from providers import model_entries, registry
from providers.base import INSTANCE_HEADER, ListedModel, ModelList, Target
from providers.checks import request_of, signed
from providers.transport.abort import Aborted
from providers.transport.exchange import Transport

LIMIT_S: Final = 10.0
"""The time for all pages of a list."""
CONNECT_S: Final = 5.0
MAX_BYTES: Final = 4 * 1024 * 1024
"""The greatest size of all pages of a list. Decoding a page delays all else in this process."""
MOST_PAGES: Final = 50
MOST_MODELS: Final = 2000
MOST_INSTANCES: Final = 32


class Listing(NamedTuple):
    """A host's models."""

    models: tuple[ListedModel, ...] = ()
    instances: frozenset[str] = frozenset()
    """The names of the instances of Sluice that the list has gone through."""
    complete: bool = True
    """False if the host has more models than were read."""


class FoundItself(UpstreamError):
    """The error for an address of this Sluice, or of another one that wants a key of its own."""


def fetch(
    transport: Transport, target: Target, instance: str = "", limit: float = LIMIT_S
) -> Listing:
    """Return the models of a target's host.

    Args:
        instance: this Sluice's name in INSTANCE_HEADER.
        limit: seconds.

    Raises:
        SluiceError: The host can't be reached, refuses the request, or sends something else.
        FoundItself: The host is this Sluice, or one that wants a key.
    """
    form = registry.model_list(target.provider)
    assert form is not None  # noqa: S101 - else the caller made a mistake
    return Fetch(transport, target, form, instance, limit).run()


class Fetch:
    """The requests for the pages of one list."""

    def __init__(
        self, transport: Transport, target: Target, form: ModelList, instance: str, limit: float
    ) -> None:
        self._transport, self._target, self._form = transport, target, form
        self._instance, self._ends = instance, time.monotonic() + limit
        self._room = MAX_BYTES
        self._instances: frozenset[str] = frozenset()

    def run(self) -> Listing:
        found: list[ListedModel] = []
        cursor: str | None = None
        seen: set[str] = set()
        while True:
            page = self._form.read(self._get(self._form.path(cursor)))
            found += page.models
            cursor = page.next
            if cursor is None or cursor in seen:
                break
            seen.add(cursor)
            if len(found) >= MOST_MODELS or len(seen) >= MOST_PAGES:
                break
        models = model_entries.distinct(found)
        complete = cursor is None and len(models) <= MOST_MODELS
        return Listing(models[:MOST_MODELS], self._instances, complete)

    def _get(self, path: str) -> bytes:
        """Return the body of a page. Raises what `fetch` raises."""
        left = self._ends - time.monotonic()
        if left <= 0:
            raise UpstreamError("The upstream's list of models took too long.")
        row = self._target.provider
        timeouts = Timeouts(connect=min(CONNECT_S, left), first_event=left, idle=left, grace=0)
        request = request_of(self._target, path)
        if self._instance:
            request.headers[INSTANCE_HEADER] = self._instance
        request = signed(request, self._target)
        exchange = self._transport.exchange(request, timeouts, row.ca_bundle, row.proxy)
        timer = threading.Timer(left, exchange.abort)  # ends a body that trickles on
        timer.daemon = True
        timer.start()
        try:
            with closing(exchange):
                status = exchange.open()
                self._note(exchange.headers)
                if not 200 <= status < 300:
                    dialect = registry.dialect(self._target.dialect)
                    raise dialect.error(status, exchange.headers, exchange.read_error())
                body = exchange.read(self._room)
                self._room -= len(body)
                return body
        except Aborted:
            raise UpstreamError("The upstream's list of models took too long.") from None
        finally:
            timer.cancel()

    def _note(self, headers: Mapping[str, str]) -> None:
        """Remember the instances of Sluice that a response names. Raises FoundItself."""
        names = headers.get(INSTANCE_HEADER.lower(), "").replace(",", " ").split()
        self._instances |= frozenset(names[:MOST_INSTANCES])
        challenge = headers.get("www-authenticate", "")
        locked = OWN_REALM in challenge and self._target.credential is None
        if locked or (self._instance and self._instance in names):
            raise FoundItself("The upstream is Sluice itself.")
