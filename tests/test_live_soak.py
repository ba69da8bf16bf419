"""A minute of the soak; `make soak` is ten minutes of it, with more clients."""

from __future__ import annotations

import pytest

from tests import soak
from tests.fake import FakeProvider

SECONDS, CLIENTS = 60.0, 80
WARM_S, GROWTH = 20.0, 0.15


@pytest.mark.timeout(SECONDS + 120)
def test_a_minute_of_everything_leaves_nothing_behind(fake: FakeProvider) -> None:
    report = soak.run(fake, seconds=SECONDS, clients=CLIENTS, warm=WARM_S, growth=GROWTH)
    assert report.failures == []
    assert report.rows == report.calls > SECONDS * CLIENTS / 10
    assert set(report.reasons) == {
        "completed",
        "stopped",
        "client_gone",
        "provider_error",
        "deadline",
    }
