"""Upstream calls over HTTP: a dialect's request is sent, and its response decoded."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Final

from completion import Batch, CompletionRequest, Finished, FinishReason
from errors import ITSELF, UpstreamError, is_sluice
from providers.base import Dialect, Signer, Target
from providers.decoding import bodies
from providers.finish import Finish
from providers.transport import exchange as exchanges
from providers.transport.exchange import Transport

if TYPE_CHECKING:
    from config import Timeouts

STREAMS: Final = ("text/event-stream", "application/vnd.amazon.eventstream")
"""The content types of streams."""


class HttpCall:
    """An UpstreamCall over HTTP: the request of the target's dialect, sent through a transport."""

    def __init__(
        self,
        transport: Transport,
        dialect: Dialect,
        request: CompletionRequest,
        target: Target,
        timeouts: Timeouts,
        signer: Signer | None = None,
    ) -> None:
        self._dialect = dialect
        self._request = request
        self._target = target
        self._signer = signer
        self._finish: Finish | None = None
        self._exchange = transport.exchange(
            dialect.call(request, target),
            timeouts,
            target.provider.ca_bundle,
            target.provider.proxy,
        )

    def events(self) -> Iterator[Batch]:
        if (
            self._signer is not None
        ):  # signed here, because a signature may expire while a call waits
            self._exchange.request = self._signer.sign(self._exchange.request, self._target)
        status = self._exchange.open()
        if not 200 <= status < 300:
            body = self._exchange.read_error()
            error = self._dialect.error(status, self._exchange.headers, body)
            if is_sluice(self._exchange.headers):
                error.reason = ITSELF
            if (proxy := self._exchange.plain_proxy) is not None:
                error.message += f" The response came through the proxy {proxy.name}."
            raise error
        if self._request.stream:
            self._refuse_compression()
            batches = self._dialect.events(self._exchange.chunks(), self._request)
            finish = self._finish = Finish(self._request.choices)
            try:
                yield from self._until_finished(batches, finish)
            except UpstreamError:
                if finish.shown and finish.reasons:  # else the call may be retried
                    yield finish.events()
                raise
            if finish.reasons:
                yield finish.events()
        else:
            yield self._whole()

    def _whole(self) -> Batch:
        """Return the events of a whole answer.

        Some hosts send a stream anyway. It is read only up to its last event, because the host may
        keep the connection open after that.
        """
        exchange = self._exchange
        if exchange.media_type not in STREAMS or exchange.compressed:
            return self._dialect.complete(exchange.read(), self._request)
        start, chunks = bodies.peek(exchange.bounded())
        if start in (b"{", b"["):
            return self._dialect.complete(b"".join(chunks), self._request)
        events, finish = self._dialect.events(chunks, self._request), Finish(self._request.choices)
        return bodies.collected(self._until_finished(events, finish)) + finish.events()

    def _until_finished(self, batches: Iterator[Batch], finish: Finish) -> Iterator[Batch]:
        """Yield the batches without their Finished events, which go to `finish`.

        Once all choices have finished, the body may end in any way, and comments no longer keep the
        call alive.
        """
        exchange, watchful = self._exchange, True
        for batch in batches:
            if not watchful:
                for event in batch:
                    if event.__class__ is Finished:
                        watchful = True
                        break
            if watchful:
                alive, batch = bool(batch), finish.take(batch)
                watchful = finish.watchful
                if finish.complete:
                    if not alive:
                        continue
                    exchange.complete = True
                    exchange.end_body_at(
                        time.monotonic() + exchanges.GRACE_S if finish.settled else math.inf
                    )
            yield batch

    def _refuse_compression(self) -> None:
        """Raise UpstreamError if the stream is compressed, which wasn't requested.

        It could expand without a bound, and the compressor could delay events.
        """
        if self._exchange.compressed:
            raise UpstreamError(
                "The upstream compressed its stream, although uncompressed data was requested."
            )

    @property
    def finished(self) -> Mapping[int, FinishReason]:
        return self._finish.final if self._finish is not None else {}

    def abort(self) -> None:
        self._exchange.abort()

    def end_if_finished(self) -> bool:
        return self._exchange.end_body()

    def wind_up(self) -> None:
        pass

    def close(self) -> None:
        self._exchange.close()
