"""A soak of one minute. `make soak` runs ten minutes with more clients."""

from __future__ import annotations

import pytest

from tests.support import soak
from tests.support.fake import FakeProvider

pytestmark = pytest.mark.thorough

SECONDS, CLIENTS = 60.0, 80
WARM_S, GROWTH = 20.0, 0.15


def test_soak_of_one_minute_has_no_failure_and_a_ledger_row_per_call(fake: FakeProvider) -> None:
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
