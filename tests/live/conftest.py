"""Fixtures with a server that the tests of a module share."""

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
    """Return a server under gunicorn with gevent, whose providers are `fake` and `fakechat`."""
    return module_server
