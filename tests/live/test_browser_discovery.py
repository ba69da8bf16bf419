"""Tests of the playground in a real Chromium with a host that lists its models."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, expect

from tests.live.test_model_discovery import ASKING, QUIET, row
from tests.support import calls
from tests.support import fake as fp
from tests.support.fake import FakeProvider
from tests.support.pages import choose, sign_in
from tests.support.servers import Server

NOBODY = "http://127.0.0.1:1/v1"

pytestmark = pytest.mark.thorough


@pytest.fixture(scope="module")
def module_server(fake_process: FakeProvider) -> Iterator[Server]:
    up = fake_process.base_url
    shared = f'[providers.shared]\nbase_url = ["{up}", "{NOBODY}"]\ncompletions = true\n'
    with Server(QUIET + row("up", up) + shared, env=ASKING) as server:
        yield server


def test_the_picker_shows_what_a_host_lists(page: Page, server: Server, fake: FakeProvider) -> None:
    fake.default(fp.answer({"data": [{"id": "coder:7b"}, {"id": "text-embedding-1"}]}))
    sign_in(page, server)
    page.get_by_role("combobox", name="Model", exact=True).fill("up/")
    options = page.locator("#models [role=option]")
    expect(options).to_have_count(1)
    expect(options).to_contain_text("up/coder:7b")


def test_the_playground_says_how_many_replicas_there_are_and_can_be_reached_but_not_where(
    page: Page, server: Server, fake: FakeProvider
) -> None:
    fake.default(fp.answer({"choices": [{"text": "b", "finish_reason": "stop"}]}))
    facts = page.locator("#model-facts")
    sign_in(page, server)
    choose(page, "shared/m")
    expect(facts).to_contain_text(re.compile(r"2 replicas$"))

    def is_found_out() -> bool:
        prompt = f"Prefix {next(numbers)}"
        assert calls.complete(server, model="shared/m", prompt=prompt)["data"] == "b"
        return "shared (replica 2)" in calls.get(server, "/ready").json.get("cooling", {})

    numbers = itertools.count()
    server.wait(is_found_out)
    page.reload()
    choose(page, "shared/m")
    expect(facts).to_contain_text("2 replicas, 1 reachable")
    assert "127.0.0.1:1/" not in page.content()
