"""Tests of the playground in a real Chromium with a host that lists its models."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, expect

from tests.live.test_model_discovery import ASKING, QUIET, row
from tests.support import fake as fp
from tests.support.fake import FakeProvider
from tests.support.pages import sign_in
from tests.support.servers import Server

pytestmark = pytest.mark.thorough


@pytest.fixture(scope="module")
def module_server(fake_process: FakeProvider) -> Iterator[Server]:
    with Server(QUIET + row("up", fake_process.base_url), env=ASKING) as server:
        yield server


def test_the_picker_shows_what_a_host_lists(page: Page, server: Server, fake: FakeProvider) -> None:
    fake.default(fp.answer({"data": [{"id": "coder:7b"}, {"id": "text-embedding-1"}]}))
    sign_in(page, server)
    page.get_by_role("combobox", name="Model", exact=True).fill("up/")
    options = page.locator("#models [role=option]")
    expect(options).to_have_count(1)
    expect(options).to_contain_text("up/coder:7b")
