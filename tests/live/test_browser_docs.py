"""Tests of the API page in a real Chromium with a real server.

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


@pytest.mark.parametrize("theme", ["light", "dark"], indirect=True)
def test_the_api_page_wears_the_header_and_the_colours_of_the_site(page: Page) -> None:
    page.goto("/docs")
    expect(page.get_by_role("link", name="API", exact=True)).to_have_attribute(
        "aria-current", "page"
    )
    colour = "getComputedStyle(document.body).backgroundColor"
    own = page.evaluate(colour)
    page.goto("/usage")
    assert page.evaluate(colour) == own


def test_the_api_page_lists_each_operation_and_only_enabled_providers(page: Page) -> None:
    page.goto("/docs")
    document = page.request.get("/openapi.json").json()
    count = sum(len(methods) for methods in document["paths"].values())
    expect(page.locator(".operation")).to_have_count(count)
    expect(page.locator("#enabled")).to_contain_text("local")
    expect(page.locator("#enabled")).to_contain_text("fakechat")
    expect(page.locator("#enabled")).not_to_contain_text("openai")
    expect(page.locator("#enabled")).not_to_contain_text("ollama")
    expect(page.locator("#engines")).to_contain_text("ollama")


def test_an_operation_shows_its_fields_examples_and_errors(page: Page) -> None:
    page.goto("/docs#nativeCompletion")
    found = page.locator("#nativeCompletion")
    expect(found).to_have_attribute("open", "")
    for text in (
        "max_tokens",
        "X-Sluice-Timeout",
        "Models to try next, in this order",
        "Write a haiku about semicolons.",
    ):
        expect(found.get_by_text(text).first).to_be_visible()
    refused = found.locator(".response").filter(has_text="402").first
    refused.locator("summary").first.click()
    expect(refused.locator("pre").first).to_contain_text('"insufficient_credits"')


def test_an_operation_can_be_tried_with_the_key_of_the_session(page: Page, server: Server) -> None:
    page.goto("/docs#provider")
    found = page.locator("#provider")
    found.get_by_role("button", name="Send").click()
    expect(found.get_by_role("alert")).to_contain_text("Sign in")
    sign_in(page, server)
    page.goto("/docs#provider")
    found.get_by_role("button", name="Send").click()
    expect(found.get_by_label("Response", exact=True)).to_contain_text('"pydoc"')
    found.get_by_label("provider", exact=True).fill("nobody")
    found.get_by_role("button", name="Send").click()
    expect(found.get_by_role("alert")).to_contain_text("404 provider_not_found")
