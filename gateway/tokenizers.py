"""Requests to the tokenizer of a model's host.

- Only the first model of an alias that may be called is asked: another one has other tokens. Only
  its other keys are tried, and its other replicas if one can't be reached.
- A request counts against the key's requests per minute. It costs nothing else and has no row in
  the ledger, because no model runs.
- An open circuit breaker is respected. Here, only a host that can't be reached counts as failing,
  and no answer as a success: a tokenizer may work although its model doesn't.
- Nothing is retried. A client may repeat a request as often as it likes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple, TypeVar

import msgspec

from completion import TokenList, TokenSource
from concurrency.yielding import Yielder
from config import Settings, Timeouts
from errors import SluiceError, UnsupportedParameter, UpstreamError, UpstreamTimeout
from gateway.added_fields import clean, may_hold_secret
from gateway.failures import paused_error
from gateway.permission import permitted_targets
from gateway.replicas import Replicas, moves_on
from keys.key import Key
from providers import tokenizers
from providers.base import Target
from providers.decoding.error_bodies import refused_call
from providers.tokenizers import Endpoint, TokenizerFormat
from providers.transport.exchange import Exchange, Transport
from quota.demand import Demand
from quota.quota import Quota
from routing.circuit_breaker import CircuitBreakers
from routing.retries import asked, classify, lost, unreachable
from routing.router import Route, Router
from routing.upstream_errors import public_error

NO_TOKENS: Final = Demand(input=0, most_input=0, output=0)
T = TypeVar("T")


class TokenizerCaller(NamedTuple):
    """The caller of a tokenizer, and the requested model."""

    route: Route
    key: Key
    within: Mapping[str, float]
    """The caller's own timeouts in seconds, by the names of the fields of Timeouts."""


class TokenizerQuery(NamedTuple):
    endpoint: Endpoint
    body: Mapping[str, Any] | None


class Tokenizers:
    """The tokenizers of all hosts, as one process uses them."""

    def __init__(
        self,
        router: Router,
        transport: Transport,
        breakers: CircuitBreakers,
        replicas: Replicas,
        quota: Quota,
        settings: Settings,
    ) -> None:
        self._router, self._transport = router, transport
        self._breakers, self._replicas, self._quota = breakers, replicas, quota
        self._timeouts, self._model = settings.timeouts, settings.tokenize_model

    def tokenize(self, source: TokenSource, caller: TokenizerCaller) -> TokenList:
        """Return the tokens of a text or of a chat's messages.

        Raises:
            UnsupportedParameter: the host has no tokenizer, or lacks what the source needs.
            SluiceError: the request is refused, or fails.
        """
        targets, form = self._targets("/tokenize", caller)
        if lacking := form.lacks(source):
            message = f"{targets[0].name} doesn't support {lacking} in /tokenize."
            raise UnsupportedParameter(message, param=lacking)
        return self._ask(
            targets, TokenizerQuery("/tokenize", form.body(source)), form.tokens, caller
        )

    def detokenize(self, ids: list[int], caller: TokenizerCaller) -> str:
        """Return the text of tokens. Raises as `tokenize`."""
        targets, form = self._targets("/detokenize", caller)
        return self._ask(targets, TokenizerQuery("/detokenize", {"tokens": ids}), form.text, caller)

    def info(self, caller: TokenizerCaller) -> dict[str, Any]:
        """Return the configuration of the tokenizer. Raises as `tokenize`."""
        targets, form = self._targets("/tokenizer_info", caller)
        if not form.has_info:
            raise no_endpoint(targets[0], "/tokenizer_info")
        query = TokenizerQuery("/tokenizer_info", None)
        found = self._ask(targets, query, tokenizers.info, caller)
        for credential in (target.credential for target in targets):
            if may_hold_secret(found, credential):
                found = clean(found, credential, Yielder(), in_text=True)
        return found

    def _targets(
        self, endpoint: Endpoint, caller: TokenizerCaller
    ) -> tuple[list[Target], TokenizerFormat]:
        """Return the first model's targets, one for each key of the provider, and their format."""
        route, key = caller.route, caller.key
        if route.model is None and route.provider is None and self._model:
            route = msgspec.structs.replace(route, model=self._model)
        targets = permitted_targets(self._router, route, key)
        first = targets[0]
        form = tokenizers.FORMATS.get(first.provider.tokenizer)
        if form is None:
            raise no_endpoint(first, endpoint)
        own = [target for target in targets if target.name == first.name]
        return self._replicas.shared(own), form

    def _ask(
        self,
        targets: list[Target],
        query: TokenizerQuery,
        read: Callable[[bytes], T],
        caller: TokenizerCaller,
    ) -> T:
        """Return the first target's answer, or another one's if the first can't be asked.

        A target that has reached a limit is left for another key or replica; a replica is left as
        calls leave it.
        """
        self._quota.settle(self._quota.admit(caller.key, NO_TOKENS), 0)
        failure: SluiceError | None = None
        losses = 0
        for target in targets:
            if seconds := self._breakers.left(target):
                limited = self._breakers.is_limited(target)
                failure = failure or paused_error(target, seconds, limited=limited)
                continue
            try:
                return read(self._send(target, query, caller.within))
            except UpstreamError as error:
                self._note_health(target, error, caller.within)
                failure = public_error(error, target)
                losses += lost(error)
                if classify(error).cools != "credential" and not moves_on(target, error, losses):
                    break
        assert failure is not None  # noqa: S101 - there is at least one target
        raise failure

    def _note_health(
        self, target: Target, error: UpstreamError, within: Mapping[str, float]
    ) -> None:
        if classify(error).cools == "credential":
            self._breakers.limited(target, asked(error))
        elif error.upstream_status is None and not (within and isinstance(error, UpstreamTimeout)):
            if target.replica and unreachable(error):
                self._replicas.lost(target)
            else:
                self._breakers.failed(target)

    def _send(self, target: Target, query: TokenizerQuery, within: Mapping[str, float]) -> bytes:
        row = target.provider
        timeouts = as_one_wait(self._timeouts.overridden(row.timeouts, within))
        request = tokenizers.request(target, query.endpoint, query.body)
        exchange = self._transport.exchange(request, timeouts, row.ca_bundle, row.proxy)
        try:
            status = exchange.open()
            if not 200 <= status < 300:
                raise refusal(target, query.endpoint, status, exchange)
            return read_all(exchange, timeouts)
        finally:
            exchange.close()


def as_one_wait(timeouts: Timeouts) -> Timeouts:
    """Return timeouts for an answer that comes at once: all of it counts as the first event."""
    wait = min(timeouts.first_event, timeouts.total)
    return Timeouts(min(timeouts.connect, wait), wait, wait, wait, grace=0)


def read_all(exchange: Exchange, timeouts: Timeouts) -> bytes:
    """Return the whole body, which must arrive in time. Raises UpstreamError."""
    until = time.monotonic() + timeouts.total
    parts = []
    for chunk in exchange.bounded():
        parts.append(chunk)
        if time.monotonic() > until:
            raise UpstreamTimeout("total", timeouts.total)
    return b"".join(parts)


def refusal(target: Target, endpoint: Endpoint, status: int, exchange: Exchange) -> SluiceError:
    """Return the error for a response whose status isn't 2xx."""
    body = exchange.read_error()
    if tokenizers.is_absent(endpoint, status, body):
        return no_endpoint(target, endpoint, f"it answered with status {status}")
    error = refused_call(status, exchange.headers, body)
    if (proxy := exchange.plain_proxy) is not None:
        error.message += f" The response came through the proxy {proxy.name}."
    return error


def no_endpoint(target: Target, endpoint: Endpoint, why: str = "") -> UnsupportedParameter:
    """Return the error for a host that lacks an endpoint.

    Args:
        why: how the host showed that it lacks the endpoint; empty if the row says so.
    """
    row = target.provider
    hint = " Sluice doesn't guess tokens."
    if row.dialect == "local":
        pass
    elif not row.tokenizer:
        hint += (
            f' If its host has one, set tokenizer = "vllm" or "llamacpp" in [providers.{row.name}] '
            "of sluice.toml."
        )
    elif endpoint == "/tokenizer_info" and row.tokenizer == "vllm":
        hint = " vLLM has it only with --enable-tokenizer-info-endpoint."
    elif endpoint == "/tokenizer_info":
        hint = " llama.cpp's server has none."
    return UnsupportedParameter(
        f"{target.name} has no {endpoint}{f': {why}' if why else ''}.{hint}", param="model"
    )
