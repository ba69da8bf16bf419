"""Tests of signing in, in a real Chromium with a real server.

- Without Chromium these tests are skipped.
- Every test also checks that the console stayed empty, that nothing violated the content security
  policy, and that no request went to another host.
"""

from __future__ import annotations

import pytest
from playwright.sync_api import Page, expect

from tests.support.pages import sign_in
from tests.support.servers import Server

pytestmark = pytest.mark.thorough


def test_a_key_opens_the_pages_and_stays_out_of_lasting_storage(page: Page, server: Server) -> None:
    sign_in(page, server)
    expect(page.locator("#who")).to_contain_text(server.key[-4:])
    assert server.key not in page.url
    page.goto("/usage")
    expect(page.get_by_role("heading", name="Usage")).to_be_visible()
    assert page.evaluate("[localStorage.length, document.cookie]") == [0, ""]
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_label("Your Sluice key")).to_be_visible()
    assert page.evaluate("sessionStorage.length") == 0


def test_the_form_says_where_keys_come_from_and_what_they_look_like(page: Page) -> None:
    page.goto("/")
    field = page.get_by_label("Your Sluice key")
    expect(field).to_have_attribute("placeholder", "sk-sluice-…")
    for part in ("sk-sluice-", "make run", "./sluice keys create --name NAME", "ask them"):
        expect(page.locator("#key-source")).to_contain_text(part)


@pytest.mark.parametrize(
    ("key", "says"),
    [
        ("sk-sluice-wrong", "accept the key. It may be incomplete"),
        ("sk-ant-api03-abc", "This looks like a key of Anthropic."),
        ("sk-proj-abc", "This looks like a key of OpenAI."),
    ],
)
def test_a_wrong_key_gets_a_sentence_for_people(page: Page, key: str, says: str) -> None:
    page.goto("/")
    page.get_by_label("Your Sluice key").fill(key)
    page.keyboard.press("Enter")
    alert = page.get_by_role("alert")
    expect(alert).to_contain_text(says)
    expect(alert).to_contain_text("401 unauthorized")
    expect(alert).to_contain_text("Request")
    expect(page.get_by_label("Your Sluice key")).to_be_focused()
    assert page.evaluate("sessionStorage.length") == 0


@pytest.mark.parametrize("key", ["two words", "sk-sluice-ab…cd", "ключ"])
def test_a_text_that_is_no_key_is_not_sent(page: Page, key: str) -> None:
    page.goto("/")
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.get_by_label("Your Sluice key").fill(key)
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("key")
    assert not [url for url in asked if "/api/" in url]


def test_an_empty_field_keeps_the_focus(page: Page) -> None:
    page.goto("/")
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_label("Your Sluice key")).to_be_focused()


@pytest.mark.parametrize("around", ["Bearer {}", "export SLUICE_KEY={}", 'SLUICE_KEY="{}"', " {} "])
def test_a_key_may_be_pasted_with_what_stood_around_it(
    page: Page, server: Server, around: str
) -> None:
    page.goto("/")
    page.get_by_label("Your Sluice key").fill(around.format(server.key))
    page.keyboard.press("Enter")
    expect(page.locator("#app")).to_be_visible()


@pytest.mark.parametrize("path", ["/", "/usage", "/docs", "/admin"])
def test_a_second_tab_is_signed_in_by_the_first(page: Page, server: Server, path: str) -> None:
    sign_in(page, server)
    other = page.context.new_page()
    other.goto(path)
    expect(other.locator("#who")).to_contain_text(server.key[-4:])
    assert other.evaluate("[localStorage.length, document.cookie]") == [0, ""]


def test_a_tab_that_waits_for_a_key_is_signed_in_with_another_tab(
    page: Page, server: Server
) -> None:
    other = page.context.new_page()
    other.goto("/usage")
    expect(other.get_by_label("Your Sluice key")).to_be_visible()
    sign_in(page, server)
    expect(other.locator("#app")).to_be_visible()


def test_signing_out_signs_out_the_tabs_with_the_same_key(page: Page, server: Server) -> None:
    sign_in(page, server)
    other = page.context.new_page()
    sign_in(other, server, "/usage")
    page.get_by_role("button", name="Sign out").click()
    for tab in (page, other):
        expect(tab.get_by_label("Your Sluice key")).to_be_visible()
        assert tab.evaluate("sessionStorage.length") == 0


def test_a_closed_browser_window_forgets_the_key(page: Page, server: Server) -> None:
    sign_in(page, server)
    other = page.context.new_page()
    page.goto("about:blank")  # no tab of the site is left open
    other.goto("/")
    expect(other.get_by_label("Your Sluice key")).to_be_visible()
    page.goto("/")
