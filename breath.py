"""A rest now and then for work that may never have to wait. Under gevent who doesn't wait lets
nobody else work: not the other calls, not a stop, not the clock.
"""

from __future__ import annotations

import time

WORK_S = 0.005
REST_S = 0.0005


class Breath:
    """Of one loop: `take` in each round."""

    def __init__(self) -> None:
        self._rested = time.monotonic()

    def take(self, waited: float = 0.0) -> None:
        """Rest, when the last rest is a while ago. waited: seconds that this round has waited."""
        now = time.monotonic()
        if waited > REST_S * 4:
            self._rested = now
        elif now - self._rested > WORK_S:
            time.sleep(REST_S)
            self._rested = time.monotonic()
