"""A server for the tests of a module that asks for one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.fake import FakeProvider
from tests.support.servers import UNTROUBLED, Server, fake_rows


@pytest.fixture(scope="module")
def module_server(fake_process: FakeProvider) -> Iterator[Server]:
    with Server(fake_rows(fake_process.base_url), env=UNTROUBLED) as server:
        yield server


@pytest.fixture
def server(module_server: Server, fake: FakeProvider) -> Server:
    """Return a Sluice under gunicorn with gevent; its rows `fake` and `fakechat` lead to `fake`."""
    return module_server
