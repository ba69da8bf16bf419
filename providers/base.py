"""The vocabulary of providers: rows of data, targets, and the protocols of dialects and calls.

- It has only values and protocols: no I/O, no clock, no environment.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any, Protocol

import msgspec

from completion import (
    Batch,
    CompletionRequest,
)
from errors import UpstreamError
from keys.redaction import Secret


class Family(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Some of a host's models that differ from the rest."""

    models: tuple[str, ...]
    """Globs."""
    unless: tuple[str, ...] = ()
    """Globs of those that don't belong to it after all."""
    cannot: tuple[str, ...] = ()
    """Parameters that these models lack or refuse."""
    exclusive: tuple[str, ...] = ()
    """Parameters of which these models take one at a time."""
    limits: dict[str, float] = {}
    chat_names: dict[str, str] = {}

    def has(self, model: str) -> bool:
        return matches(model, self.models) and not matches(model, self.unless)


class Fim(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where a host fills in the middle: requests with a suffix go there."""

    path: str
    """After base_url."""
    models: tuple[str, ...] = ("*",)
    dialect: str = ""
    """Empty: the host's own."""
    cannot: tuple[str, ...] = ()
    names: dict[str, str] = {}


class Provider(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A row: what a host is. `sluice.toml` can add rows and override fields of built-in ones."""

    name: str
    dialect: str = "openai"
    base_url: str = ""
    """{NAME} in it is an environment variable; {model} the model, quoted."""
    query: str = ""
    """What follows the path's question mark, if anything."""
    api_key_env: str | None = None
    """The environment variable of its key; None: it needs none."""
    key_header: str = "Authorization"
    """Where the key goes: Authorization takes it as a bearer's, another header as it is."""
    sign: str = ""
    """How its calls are signed ("sigv4"), where that takes the place of a key in a header."""
    ca_bundle: str | None = None
    """A file of certificates to trust instead of the public ones."""
    completions: bool | tuple[str, ...] = False
    """Which models have the legacy /completions: all, none, or those that match a glob.
    The others are asked through /chat/completions, the prompt as one user message."""
    cannot: tuple[str, ...] = ()
    """Parameters (of CompletionRequest) that this host lacks although its dialect has them."""
    limits: dict[str, float] = {}
    """The greatest value of a parameter that it takes; of `stop`, how many."""
    chat_names: dict[str, str] = {}
    """What /chat/completions calls a parameter, where that isn't our name for it."""
    families: tuple[Family, ...] = ()
    """Models that differ from the rest."""
    fim: Fim | None = None
    """Where requests with a suffix go, where it isn't /completions."""
    stream_options: dict[str, Any] = msgspec.field(default_factory=lambda: {"include_usage": True})
    """Sent with a stream; empty: the host doesn't take them, and tells usage or not."""
    models: tuple[str, ...] = ()
    """Models worth listing; others work too."""
    price_id: str | None = None
    """Its name in genai-prices; None: the same as ours."""
    timeouts: dict[str, float] = {}
    """Its own instead of the server's: seconds of connect, first_event, idle, total."""
    free: bool = False
    """Nobody bills for it: a cost of 0 rather than an unknown one."""
    disconnect: str = ""
    """What becomes of a call whose client has gone: "cancel" closes its connection at once, "drain"
    reads on, within bounds; empty: what the settings say."""


class Target(msgspec.Struct, frozen=True, dict=True):
    """Where a request goes: a row, the upstream's own model id, and the credential to use. What
    follows from these is found once."""

    provider: Provider
    model: str
    credential: Secret | None = None
    byok: bool = False
    key_number: int = 1
    """Which of the operator's keys for the provider the credential is."""
    fim: Fim | None = None
    """Set where this call fills in the middle."""

    @cached_property
    def name(self) -> str:
        """The model's full name: provider/model."""
        return f"{self.provider.name}/{self.model}"

    @cached_property
    def dialect(self) -> str:
        """The name of the dialect that it speaks."""
        return (self.fim and self.fim.dialect) or self.provider.dialect

    @cached_property
    def legacy(self) -> bool:
        """Whether this model is asked in the manner of the legacy /completions."""
        has = self.provider.completions
        if self.fim or isinstance(has, bool):
            return bool(self.fim or has)
        return matches(self.model, has)

    @cached_property
    def cannot(self) -> frozenset[str]:
        """Parameters that the host or this model lacks."""
        own = self.fim.cannot if self.fim else self.provider.cannot
        return frozenset(own).union(*(family.cannot for family in self._families))

    @cached_property
    def exclusive(self) -> tuple[str, ...]:
        """Parameters of which this model takes one at a time."""
        return tuple(name for family in self._families for name in family.exclusive)

    @cached_property
    def limits(self) -> dict[str, float]:
        """The greatest value of a parameter; of `stop`, how many."""
        found = dict(self.provider.limits)
        for family in self._families:
            found |= family.limits
        return found

    @cached_property
    def names(self) -> Mapping[str, str]:
        """What the host calls a parameter, where that isn't our name for it."""
        if self.fim:
            return self.fim.names
        if self.legacy:
            return {}
        found = dict(self.provider.chat_names)
        for family in self._families:
            found |= family.chat_names
        return found

    @cached_property
    def _families(self) -> list[Family]:
        return [family for family in self.provider.families if family.has(self.model)]


def matches(model: str, globs: Iterable[str]) -> bool:
    """Whether a model's name is like one of the globs."""
    return any(fnmatchcase(model, glob) for glob in globs)


class UpstreamRequest(msgspec.Struct, frozen=True):
    """The HTTP request that a dialect wants sent. Its headers may hold a credential: never log
    them."""

    method: str
    url: str
    headers: dict[str, str]
    body: bytes


class Signer(Protocol):
    """A signer of requests that are about to be sent. It may use the clock and the network."""

    def sign(self, request: UpstreamRequest, target: Target) -> UpstreamRequest:
        """Return the request with its signature. If the target has a credential, a caller's own
        key, the request stays as it is. Raises SluiceError."""


class Dialect(Protocol):
    """A wire format, as pure functions: bytes in, events out."""

    def unsupported(self, target: Target) -> frozenset[str]:
        """Return the parameters of CompletionRequest that the target lacks, including
        `target.cannot`. Besides field names there are "token_ids" (prompts of token ids),
        "echo_logprobs" (both together) and "prompt_list" (more than one prompt in a call)."""

    def call(self, request: CompletionRequest, target: Target) -> UpstreamRequest:
        """Return the HTTP request to send; `request.stream` chooses the mode."""

    def events(self, chunks: Iterable[bytes], request: CompletionRequest) -> Iterator[Batch]:
        """Decode a streamed body: yield a batch for each chunk that completes one event or more.

        Raises UpstreamError for an error in the stream, for data that doesn't have the format, and
        for a body that ends without its terminal event.
        """

    def complete(self, body: bytes, request: CompletionRequest) -> Batch:
        """Decode a whole JSON body. Raises UpstreamError as `events` does."""

    def error(self, status: int, headers: Mapping[str, str], body: bytes) -> UpstreamError:
        """Return the error for a response other than 2xx, by status and code. Header names are in
        lower case."""


class UpstreamCall(Protocol):
    """What does the I/O of one call to one target."""

    def events(self) -> Iterator[Batch]:
        """Make the call and yield the events of its answer. Raises SluiceError."""

    def abort(self) -> None:
        """End the call at once, in any phase; `events` then ends or raises promptly. Any thread may
        call this, more than once, and before `events`."""

    def wind_up(self) -> None:
        """Begin nothing new, and finish what has begun, because the client has gone."""

    def close(self) -> None:
        """Release what the call holds. The thread that ran `events` calls this."""
