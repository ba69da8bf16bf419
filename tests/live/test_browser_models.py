"""Tests of the playground's models in a real Chromium: the picker, and answers side by side.

- Without Chromium these tests are skipped.
- Every test also checks that the console stayed empty, that nothing violated the content security
  policy, and that no request went to another host.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, expect

from tests.support import fake as fp
from tests.support.fake import FakeProvider
from tests.support.pages import breaks, choose, run, sign_in, slow
from tests.support.servers import UNTROUBLED, Server, fake_rows

pytestmark = pytest.mark.thorough

MORE = """
[aliases]
quick = "local/pydoc"
stand-in = ["broken/m", "fake/priced"]

[prices."fake/priced"]
input_per_mtok = 1
output_per_mtok = 2

[providers.openai]
base_url = "http://127.0.0.1:1"

[providers.broken]
base_url = "http://127.0.0.1:1"
"""


@pytest.fixture(scope="module")
def module_server(fake_process: FakeProvider) -> Iterator[Server]:
    env = UNTROUBLED | {"OPENAI_API_KEY": "none-needed", "SLUICE_RETRIES": "0"}
    with Server(fake_rows(fake_process.base_url) + MORE, env=env) as server:
        yield server


def test_the_picker_lists_aliases_first_then_recent_models_then_providers(
    page: Page, server: Server
) -> None:
    sign_in(page, server)
    choose(page, "local/pydoc")
    run(page)
    expect(page.locator("#ending")).to_contain_text("took")
    page.get_by_role("combobox", name="Model", exact=True).click()
    groups = page.locator("#models .group").all_inner_texts()
    assert groups[:4] == ["Aliases", "Recent", "local", "openai"]
    expect(page.get_by_role("group", name="Aliases").get_by_role("option")).to_have_count(2)
    expect(page.get_by_role("group", name="Recent").get_by_role("option")).to_have_count(1)


def test_the_picker_searches_by_words_and_takes_an_option_by_key_or_click(
    page: Page, server: Server
) -> None:
    sign_in(page, server)
    field = page.get_by_role("combobox", name="Model", exact=True)
    options = page.locator("#models [role=option]")
    field.fill("4o mini")
    expect(options).to_have_count(1)
    field.press("ArrowDown")
    expect(field).to_have_attribute("aria-activedescendant", "models-option-0-1")
    field.press("Enter")
    expect(field).to_have_value("openai/gpt-4o-mini")
    expect(page.locator("#models")).to_be_hidden()
    expect(page.locator("#model-facts")).to_contain_text("per million tokens · context 128,000")
    field.fill("pyd")
    options.get_by_text("local/pydoc").click()
    expect(field).to_have_value("local/pydoc")
    field.fill("fake/anything")
    expect(page.locator(".popup").first).to_contain_text("sent as you type it")
    field.press("Escape")
    expect(field).to_have_value("fake/anything")
    expect(page.locator("#model-facts")).to_contain_text("price is unknown")


def test_the_picker_offers_only_models_that_complete_text(page: Page, server: Server) -> None:
    sign_in(page, server)
    for word in ("tts", "realtime", "image", "transcribe", "embed"):
        page.get_by_role("combobox", name="Model", exact=True).fill(f"openai/ {word}")
        expect(page.locator("#models [role=option]")).to_have_count(0)


def test_the_model_that_served_an_alias_is_shown_with_its_price(
    page: Page, server: Server, fake: FakeProvider
) -> None:
    fake.script(fp.sse(fp.chunks(["Here."], usage=(1_000_000, 500_000))))
    sign_in(page, server)
    choose(page, "stand-in")
    expect(page.locator("#model-facts")).to_contain_text("An alias of this server")
    run(page)
    expect(page.locator("#ending")).to_contain_text("cost $2.00")
    expect(page.locator("#served")).to_have_text("fake/priced, for stand-in")
    expect(page.locator("#price")).to_have_text("$1.00 in, $2.00 out per million tokens")
    expect(page.get_by_role("listitem")).to_contain_text("fake/priced · Finished")


def test_two_models_stream_side_by_side_and_stop_one_by_one(
    page: Page, server: Server, fake: FakeProvider
) -> None:
    slow(fake)
    sign_in(page, server)
    choose(page, "fake/m")
    page.get_by_role("button", name="Compare with a second model").click()
    expect(page.get_by_role("combobox", name="Second model")).to_be_focused()
    choose(page, "local/slow", "Second model")
    run(page)
    for suffix in ("", "-2"):
        expect(page.locator(f"#live-tokens{suffix}")).to_contain_text("≈")
        expect(page.locator(f"#output{suffix}")).to_have_attribute("aria-busy", "true")
    expect(page.locator("#halt-name")).to_have_text("Stop both")
    page.get_by_role("button", name="Stop fake/m").click()
    expect(page.locator("#ending")).to_contain_text("Stopped")
    server.wait(lambda: fake.requests[-1].closed_at is not None)
    expect(page.get_by_role("button", name="Stop fake/m")).to_be_disabled()
    expect(page.locator("#halt-name")).to_have_text("Stop")
    expect(page.locator("#output-2")).to_have_attribute("aria-busy", "true")
    expect(page.get_by_role("button", name="Run")).to_be_disabled()
    page.get_by_role("button", name="Stop local/slow").click()
    expect(page.locator("#ending-2")).to_contain_text("tokens out · cost $0.00")
    expect(page.get_by_role("button", name="Run")).to_be_enabled()
    expect(page.get_by_role("listitem")).to_have_count(2)


def test_escape_stops_both_answers(page: Page, server: Server, fake: FakeProvider) -> None:
    slow(fake)
    sign_in(page, server)
    choose(page, "fake/m")
    page.get_by_role("button", name="Compare with a second model").click()
    choose(page, "local/slow", "Second model")
    run(page)
    for suffix in ("", "-2"):
        expect(page.locator(f"#live-tokens{suffix}")).to_contain_text("≈")
    page.keyboard.press("Escape")
    for suffix in ("", "-2"):
        expect(page.locator(f"#ending{suffix}")).to_contain_text("Stopped")


def test_a_broken_answer_is_marked_beside_a_whole_one(
    page: Page, server: Server, fake: FakeProvider
) -> None:
    breaks(fake)
    sign_in(page, server)
    choose(page, "fake/m")
    page.get_by_role("button", name="Compare with a second model").click()
    choose(page, "local/pydoc", "Second model")
    run(page)
    expect(page.locator("#ending")).to_contain_text("Broken off")
    expect(page.locator("#error")).to_contain_text("502 provider_error")
    expect(page.locator("#ending-2")).to_contain_text("Finished")
    expect(page.locator("#error-2")).to_be_hidden()
    expect(page.get_by_role("listitem").filter(has_text="Broken off")).to_have_count(1)
    page.get_by_role("button", name="Remove the second model").click()
    expect(page.locator("#panel-2")).to_be_hidden()


def test_the_code_of_either_compared_model_can_be_shown(page: Page, server: Server) -> None:
    sign_in(page, server)
    choose(page, "fake/m")
    expect(page.locator("#side")).to_be_hidden()
    page.get_by_role("button", name="Compare with a second model").click()
    choose(page, "local/slow", "Second model")
    expect(page.locator("#code")).to_contain_text('"model":"fake/m"')
    page.locator("#side").get_by_text("local/slow").click()
    expect(page.locator("#code")).to_contain_text('"model":"local/slow"')
    page.get_by_role("button", name="Remove the second model").click()
    expect(page.locator("#side")).to_be_hidden()
    expect(page.locator("#code")).to_contain_text('"model":"fake/m"')
