"""An upstream call that ends at stop sequences that its host doesn't get.

It wraps each call of a fan-out, below the emulation of echo.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from completion import Batch, CompletionRequest, FinishReason
from gateway.stop_automaton import StopAutomaton
from gateway.stop_sequences import Scanner
from providers.base import SingleCall


class StoppingCall:
    """An UpstreamCall that emulates stop sequences for another one."""

    def __init__(self, call: SingleCall, stops: StopAutomaton, request: CompletionRequest) -> None:
        """Wrap a call.

        Args:
            request: the request of that call.
        """
        self._call = call
        self._choices = request.choices
        self._scanner = Scanner(stops, request.choices, logprobs=request.logprobs is not None)
        self._streams = request.stream

    def events(self) -> Iterator[Batch]:
        """Yield the call's events up to its stop sequences.

        When all choices have ended, a stream is ended at once: its host would go on and bill.

        If the call fails, what is held back comes before the error, unless nothing was shown: the
        call can then be made again.
        """
        scanner = self._scanner
        try:
            for batch in self._call.events():
                yield scanner.take(batch)
                if self._streams and (last := scanner.ended(self._finished)) is not None:
                    self._call.abort()
                    if last:
                        yield last
                    return
        except Exception:
            if scanner.shown and (held := scanner.flush()):
                yield held
            raise
        if held := scanner.flush():
            yield held

    @property
    def _finished(self) -> Mapping[int, FinishReason]:
        return self._call.finished if self._choices > 1 else {}

    def abort(self) -> None:
        self._call.abort()

    def end_if_finished(self) -> bool:
        return self._call.end_if_finished()

    def wind_up(self) -> None:
        self._call.wind_up()

    def close(self) -> None:
        self._call.close()
