"""Let other greenlets run during work that may never have to wait.

Under gevent a greenlet that doesn't wait lets no other work: no other call, no stop, no clock.
"""

from __future__ import annotations

import time

WORK_S = 0.005
PAUSE_S = 0.0005


class Yielder:
    """Yields to other greenlets now and then, for one loop."""

    def __init__(self) -> None:
        self._yielded_at = time.monotonic()

    def yield_if_due(self, waited: float = 0.0) -> None:
        """Yield if the loop has worked for a while. Call it in each round of the loop.

        Args:
            waited: seconds that this round has waited, which let others work too.
        """
        now = time.monotonic()
        if waited > PAUSE_S * 4:
            self._yielded_at = now
        elif now - self._yielded_at > WORK_S:
            time.sleep(PAUSE_S)
            self._yielded_at = time.monotonic()
