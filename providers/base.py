"""The vocabulary of providers: rows of data, targets, and the protocols of dialects and calls.

- This module has only values and protocols: no I/O, no clock, no environment.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any, Final, Literal, Protocol
from urllib.parse import quote, urljoin

import msgspec

from completion import (
    Batch,
    CompletionRequest,
    FinishReason,
)
from errors import UpstreamError
from keys.redaction import Secret


class Family(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A group of a host's models that need other settings than the host's other models."""

    models: tuple[str, ...]
    """Globs of the models' names."""
    unless: tuple[str, ...] = ()
    """Globs of models that match `models` but don't belong to the family."""
    cannot: tuple[str, ...] = ()
    """Parameters that these models lack or reject."""
    exclusive: tuple[str, ...] = ()
    """Parameters that these models don't accept together: a request may set only one of them."""
    limits: dict[str, float] = {}
    chat_names: dict[str, str] = {}

    def has(self, model: str) -> bool:
        return matches(model, self.models) and not matches(model, self.unless)


class Fim(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A rule for requests with a suffix (fill-in-the-middle), for some of a host's models."""

    models: tuple[str, ...] = ("*",)
    """Globs of the models' names."""
    kind: Literal["", "native", "template", "none"] = ""
    """"native" if the host takes a suffix, "template" if Sluice writes the text and the suffix into
    one prompt, "none" if the models can't fill in. Empty means "template" if `template` is set,
    else "native"."""

    path: str = ""
    """The path of the host's endpoint for fill-in-the-middle. Empty means that its /completions
    takes a suffix."""
    dialect: str = ""
    """The endpoint's dialect. Empty means the provider's dialect."""
    cannot: tuple[str, ...] = ()
    names: dict[str, str] = {}
    only: tuple[str, ...] = ()
    """The only fields unknown to Sluice that the endpoint accepts. Empty means all."""

    template: str = ""
    """The name of a family in fim_templates.py, or a prompt with {prefix}, {suffix} and optionally
    {files}. Empty means the family that the model's name tells."""
    stop: tuple[str, ...] = ()
    """The strings that end the text, in addition to a family's own."""
    file: str = ""
    """The layout of another file, with {path} and {text}; only with a prompt in `template`."""

    @property
    def by_template(self) -> bool:
        return self.kind == "template" or (not self.kind and bool(self.template))


class Replica(msgspec.Struct, frozen=True, kw_only=True):
    """One of several servers that serve a row's models."""

    url: str
    weight: float = 1.0
    """The replica's share of the calls, relative to the other replicas' weights."""
    name: str = ""
    """The host and port, and the path where several replicas have the same host and port."""


class Provider(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A row that describes a provider's host.

    `sluice.toml` can add rows, and override fields of the built-in rows.
    """

    name: str
    dialect: str = "openai"
    base_url: str = ""
    """The URL that paths are appended to. {NAME} stands for an environment variable, {model} for
    the URL-quoted model. It is the first replica's if the row has replicas."""
    replicas: tuple[Replica, ...] = ()
    """The servers that share the row's calls: at least two, or none. In sluice.toml they are a list
    in base_url."""
    check: str = ""
    """The path of a GET that costs nothing, for checks of the host and of the key. Empty means the
    dialect's list of models."""
    query: str = ""
    """The query string of every URL, without the question mark."""
    api_key_env: str | None = None
    """The environment variable that holds the API key. None if the host needs no key."""
    key_header: str = "Authorization"
    """The header that carries the key: as a bearer token in Authorization, bare in any other."""
    sign: str = ""
    """The signer ("sigv4") of a host that wants signed requests instead of a key in a header."""
    ca_bundle: str | None = None
    """A file of certificates to trust instead of the server's, which are the public ones unless
    SLUICE_CA_BUNDLE is set."""
    proxy: str | None = None
    """The URL of a forward proxy; {NAME} stands for an environment variable. Empty or "off" means
    no proxy, and None means the server's. It may contain a password."""
    completions: bool | tuple[str, ...] = False
    """The models that have the legacy /completions: all, none, or those that match a glob. For
    other models, the prompt is sent to /chat/completions as one user message."""
    cannot: tuple[str, ...] = ()
    """Parameters (of CompletionRequest) that this host lacks although its dialect has them."""
    limits: dict[str, float] = {}
    """The greatest value that the host accepts for a parameter; for `stop`, the greatest number of
    strings."""
    chat_names: dict[str, str] = {}
    """The names of parameters in /chat/completions that differ from Sluice's names."""
    families: tuple[Family, ...] = ()
    chat_url: str | None = None
    """The address at which the host takes chats in OpenAI's format: a URL, or relative to base_url,
    such as "../v1/chat/completions". Empty if it has none. None means "chat/completions" if the
    dialect is openai, else none."""
    chat_models: tuple[str, ...] = ("*",)
    """Globs of the models that chat_url has."""
    chat_key_header: str = ""
    """The header that carries the key to chat_url. Empty means that of key_header."""
    fim: tuple[Fim, ...] = ()
    """How requests with a suffix are served. The first rule that fits the model counts. Without
    one, a legacy /completions gets the suffix unless `cannot` names it."""
    tokenizer: Literal["", "vllm", "llamacpp"] = ""
    """The format of the host's /tokenize and /detokenize, which are beside /v1. Empty if it has
    none."""
    stream_options: dict[str, Any] = msgspec.field(default_factory=lambda: {"include_usage": True})
    """The stream_options of a streaming request. Empty if the host doesn't accept the field."""
    models: tuple[str, ...] = ()
    """Models to list. Other models work too."""
    discover: bool = True
    """True if the host is asked for its models, to list them. Other models work too."""
    price_id: str | None = None
    """The provider's name in genai-prices. None if that is `name`."""
    timeouts: dict[str, float] = {}
    """Seconds of connect, first_event, idle and total that override the server's settings."""
    free: bool = False
    """True if calls cost nothing: their cost is 0 instead of unknown."""
    trust_cost: bool = False
    """True if the cost that the host reports counts rather than the price list. Otherwise it counts
    only if the model's price is unknown."""
    disconnect: str = ""
    """The policy for a call whose client has gone: "cancel" closes the connection at once, "drain"
    reads on within bounds. Empty means the server's setting."""

    def __repr__(self) -> str:
        values = {name: getattr(self, name) for name in self.__struct_fields__}
        values["proxy"] = values["proxy"] and Secret(values["proxy"])
        return f"Provider({', '.join(f'{name}={value!r}' for name, value in values.items())})"


class Target(msgspec.Struct, frozen=True, dict=True):
    """A destination of a request: a row, the upstream's id of the model, and the credential.

    Properties that follow from these are computed once, because the router reuses targets.
    """

    provider: Provider
    model: str
    credential: Secret | None = None
    byok: bool = False
    key_number: int = 1
    """The number of the credential among the operator's keys for the provider, from 1."""
    fim: Fim | None = None
    """The rule that applies if the request has a suffix, else None."""
    replica: str = ""
    """The name of the replica, whose URL is then the provider's base_url. Empty if the row has
    none, or none has been chosen yet."""
    weight: float = 1.0
    """The replica's weight."""
    chat: bool = False
    """True if requests go to the row's chat_url, with the caller's own body."""

    @cached_property
    def for_chat(self) -> Target | None:
        """The target of chats; None if there is none. The embedded model needs no URL."""
        if not self.chat_url and self.provider.dialect != "local":
            return None
        return msgspec.structs.replace(self, chat=True)

    @cached_property
    def chat_url(self) -> str:
        """The URL for chats; empty if the model has none."""
        row, path = self.provider, self.provider.chat_url
        if path is None:
            path = "chat/completions" if row.dialect == "openai" else ""
        if not path or not matches(self.model, row.chat_models):
            return ""
        url = urljoin(row.base_url.rstrip("/") + "/", path)
        url = url.replace("{model}", quote(self.model, safe=""))
        return f"{url}?{row.query}" if row.query else url

    @cached_property
    def replicas(self) -> tuple[Target, ...]:
        """A target for each of the row's replicas; () if it has none."""
        row = self.provider
        return tuple(
            msgspec.structs.replace(
                self,
                provider=msgspec.structs.replace(row, base_url=found.url, replicas=()),
                replica=found.name,
                weight=found.weight,
            )
            for found in row.replicas
        )

    @cached_property
    def name(self) -> str:
        """The model's full name: provider/model."""
        return f"{self.provider.name}/{self.model}"

    @cached_property
    def dialect(self) -> str:
        if self.chat and self.provider.dialect != "local":
            return "chat"
        return (self.fim and self.fim.dialect) or self.provider.dialect

    @cached_property
    def legacy(self) -> bool:
        """Return True if requests have the shape of the legacy /completions, not of a chat."""
        if self.chat:
            return False
        has = self.provider.completions
        if self.at_fim_endpoint or isinstance(has, bool):
            return self.at_fim_endpoint or bool(has)
        return matches(self.model, has)

    @cached_property
    def at_fim_endpoint(self) -> bool:
        """Return True if requests go to the host's endpoint for fill-in-the-middle."""
        return self.fim is not None and bool(self.fim.path)

    @cached_property
    def cannot(self) -> frozenset[str]:
        fim = self.fim
        own = fim.cannot if fim and fim.path else self.provider.cannot
        found = frozenset(own).union(*(family.cannot for family in self._families))
        if fim is None or fim.path:
            return found
        # With a template, an echo must be the caller's prompt, and the prompt must be text.
        needs_text = ("echo", "token_ids") if fim.by_template else ()
        return (found - {"suffix"}).union(fim.cannot, needs_text)

    @cached_property
    def exclusive(self) -> tuple[str, ...]:
        return tuple(name for family in self._families for name in family.exclusive)

    @cached_property
    def limits(self) -> dict[str, float]:
        """The greatest value of each limited parameter; for `stop`, the greatest number of
        strings."""
        found = dict(self.provider.limits)
        for family in self._families:
            found |= family.limits
        return found

    @cached_property
    def names(self) -> Mapping[str, str]:
        if self.fim and self.fim.path:
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
    return any(fnmatchcase(model, glob) for glob in globs)


class UpstreamRequest(msgspec.Struct, frozen=True):
    """An HTTP request built by a dialect. Never log its headers: they may hold a credential."""

    method: str
    url: str
    headers: dict[str, str]
    body: bytes
    more: tuple[memoryview, ...] = ()
    """The rest of a long body, in slices that aren't copied."""


class Signer(Protocol):
    """A signer of requests. It may use the clock and the network."""

    def sign(self, request: UpstreamRequest, target: Target) -> UpstreamRequest:
        """Return the signed request.

        A request whose target has a credential (a BYOK key) is returned unsigned.

        Raises:
            SluiceError: There are no credentials to sign with.
        """


class Dialect(Protocol):
    """A wire format, as pure functions: bytes in, events out.

    - Every sign of life counts. A chunk of a stream that completes a frame or a comment yields a
      batch, which is empty if there is no event in it: a ping, a role, a comment. A chunk that
      completes nothing yields nothing.
    - Reasoning is a Thought event. Only its size matters.
    - A Finished event is yielded as soon as the provider reports the finish reason. More text and
      other reasons for the same choice may follow: the transport holds a Finished event until the
      end of the response, and the last reason counts.
    - A body that ends after each choice has finished is complete, whatever is missing after that.
    """

    def unsupported(self, target: Target) -> frozenset[str]:
        """Return the parameters of CompletionRequest that the target lacks.

        They include `target.cannot`. Besides names of fields there are "token_ids" (prompts of
        token ids), "echo_logprobs" (echo together with logprobs), "prompt_list" (more than one
        prompt in a request), "choice_list" (more than one choice in a response) and "blank_stop"
        (a stop sequence of white space only).
        """

    def call(self, request: CompletionRequest, target: Target) -> UpstreamRequest:
        """Return the HTTP request to send. It asks for a stream if `request.stream` is True."""

    def body(self, request: CompletionRequest, target: Target) -> dict[str, Any]:
        """Return the JSON body of that request. The request must have one prompt where the target
        takes one.

        Raises:
            InvalidRequest: A field of `request.extra` contradicts a field that the body has.
        """

    def events(self, chunks: Iterable[bytes], request: CompletionRequest) -> Iterator[Batch]:
        """Decode a streamed body. Yield a batch for each chunk that completes a frame or a comment.

        Text may follow a Finished, and a choice may have several of them: the last one counts.

        Raises:
            UpstreamError: The stream reports an error, has malformed data, or ends before each
                choice has finished.
        """

    def complete(self, body: bytes, request: CompletionRequest) -> Batch:
        """Decode a whole body: JSON, or a stream from a host that always streams.

        Raises:
            UpstreamError: The body reports an error or is malformed. The error has the usage that
                the body reported.
        """

    def error(self, status: int, headers: Mapping[str, str], body: bytes) -> UpstreamError:
        """Return the error for a response whose status isn't 2xx.

        The status and the error code decide, not the message. Names of headers are in lower case.
        """


INSTANCE_HEADER: Final = "X-Sluice-Instance"
"""The header of a list of models in which a Sluice names itself, and each Sluice whose models it
lists. A request for a list names the Sluice that sends it."""


class ListedModel(msgspec.Struct, frozen=True):
    """A model in a host's list; None means that the list doesn't say."""

    id: str
    name: str | None = None
    """A title for people."""
    context_window: int | None = None
    """The size of the context window in tokens."""
    created: int | None = None
    """The time of the model's creation, in seconds since 1970."""
    prices: tuple[int, int] | None = None
    """The prices of input and output, in nano-dollars per million tokens."""


class ModelPage(msgspec.Struct, frozen=True):
    """A page of a host's list of models."""

    models: tuple[ListedModel, ...]
    """The models that complete text, each once."""
    next: str | None = None
    """The cursor of the next page. None if this is the last one."""


class ModelList(Protocol):
    """A host's list of models, as pure functions."""

    def path(self, cursor: str | None) -> str:
        """Return the address of a page, relative to base_url. None is the first page's cursor."""

    def read(self, body: bytes) -> ModelPage:
        """Decode a page. Raises UpstreamError if it isn't a list."""


class UpstreamCall(Protocol):
    """The I/O of one attempt at one target."""

    def events(self) -> Iterator[Batch]:
        """Send the request and yield the events of the response. Raises SluiceError.

        An empty batch is a sign of life. A choice has one Finished event, after all of its text.
        """

    def abort(self) -> None:
        """End the attempt at once, in any phase; `events` then ends or raises promptly.

        Any thread may call this, repeatedly, and even before `events`.
        """

    def end_if_finished(self) -> bool:
        """End the response as if the host had ended it, if each of its choices has finished.

        `events` then yields what the response still holds, and ends. Any thread may call this.

        Returns:
            False if the response isn't finished, or has already been ended.
        """
        return False

    def wind_up(self) -> None:
        """Start no new request, but finish the requests in flight: the client has gone."""

    def close(self) -> None:
        """Release the resources. Only the thread that ran `events` may call this."""


class SingleCall(UpstreamCall, Protocol):
    """An UpstreamCall that is one request."""

    @property
    def finished(self) -> Mapping[int, FinishReason]:
        """The choices that the host has finished although others go on, with the reasons so far.

        A choice isn't among them if more text may follow its reason. Its Finished event may still
        be to come.
        """
