"""Tests that the pages are accessible: axe-core, the keyboard, and narrow screens.

- Without Chromium these tests are skipped.
- Every test also checks that the console stayed empty, that nothing violated the content security
  policy, and that no request went to another host.
"""

from __future__ import annotations

import pytest
from playwright.sync_api import Page, expect

from tests.support import calls
from tests.support import fake as fp
from tests.support.fake import FakeProvider
from tests.support.pages import breaks, choose, fits, run, sign_in, slow, violations
from tests.support.servers import Server

pytestmark = pytest.mark.thorough


@pytest.mark.parametrize("theme", ["light", "dark"], indirect=True)
@pytest.mark.parametrize("width", ["narrow", "wide"], indirect=True)
def test_pages_have_no_axe_violations_and_fit_the_screen_width(
    page: Page, server: Server, fake: FakeProvider
) -> None:
    text = "# Title\n\n- `one`\n\n```\ncode\n```\n> quote\n"
    fake.script(fp.sse(fp.chunks([text], usage=(3, 9))))
    breaks(fake)
    fake.script(fp.error(500))
    found = {}
    page.goto("/")
    expect(page.get_by_label("Your Sluice key")).to_be_visible()
    found["sign-in"] = violations(page)
    sign_in(page, server)
    choose(page, "fake/m")
    page.get_by_text("Parameters").click()
    for ending in ("Finished", "Broken off", "Failed"):
        run(page)
        expect(page.locator("#ending")).to_contain_text(ending)
        found[ending] = violations(page)
        assert fits(page)
    page.get_by_role("combobox", name="Model", exact=True).click()
    expect(page.get_by_role("listbox", name="Models", exact=True)).to_be_visible()
    found["picker"] = violations(page)
    assert fits(page)
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Compare").click()
    found["compare"] = violations(page)
    assert fits(page)
    page.goto("/docs")
    page.locator("#nativeCompletion > summary").click()
    for details in page.locator("#nativeCompletion details").all():
        details.evaluate("(found) => { found.open = true; }")
    found["docs"] = violations(page)
    assert fits(page)
    page.goto("/usage")
    slow(fake)
    with server.client() as active:
        calls.begin_stream(active, model="fake/m")
        page.get_by_role("button", name="Refresh").click()
        expect(page.locator("#latest tbody tr").first).to_be_visible()
        expect(page.locator("#active").get_by_role("button")).to_be_visible()
        expect(page.locator("#chart canvas")).to_be_visible()
        page.get_by_text("Show as a table").click()
        found["usage"] = violations(page)
        assert fits(page)
        assert found == {name: [] for name in found}
        page.locator("#active").get_by_role("button").click()
        expect(page.locator("#no-active")).to_be_visible()


def test_the_playground_can_be_used_by_keyboard_only(
    page: Page, server: Server, fake: FakeProvider
) -> None:
    page.goto("/")
    expect(page.get_by_label("Your Sluice key")).to_be_visible()
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to content")).to_be_focused()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    expect(page.get_by_label("Your Sluice key")).to_be_focused()
    page.keyboard.type(server.key)
    page.keyboard.press("Enter")
    expect(page.get_by_label("Prompt", exact=True)).to_be_focused()
    start, halt = (page.get_by_role("button", name=name) for name in ("Run", "Stop"))
    slow(fake)
    choose(page, "fake/m")
    start.focus()
    page.keyboard.press("Enter")
    expect(halt).to_be_focused()
    expect(page.locator("#output")).to_contain_text("Once")
    page.keyboard.press("Enter")
    expect(page.locator("#ending")).to_contain_text("Stopped")
    expect(start).to_be_focused()
    page.get_by_role("tab", name="curl").focus()
    page.keyboard.press("ArrowLeft")
    expect(page.get_by_role("tab", name="JavaScript")).to_be_focused()
    expect(page.locator("#code")).to_contain_text("await fetch")


@pytest.mark.parametrize("width", ["narrow"], indirect=True)
def test_a_narrow_header_has_one_row_and_every_language_is_whole(
    page: Page, server: Server
) -> None:
    sign_in(page, server)
    expect(page.locator("#who-key")).to_have_text(f"\N{HORIZONTAL ELLIPSIS}{server.key[-4:]}")
    expect(page.locator("#who-key")).to_be_visible()
    mark, out = (
        found.bounding_box()
        for found in (
            page.get_by_role("link", name="Sluice", exact=True),
            page.get_by_role("button", name="Sign out"),
        )
    )
    assert mark is not None
    assert out is not None
    assert out["y"] < mark["y"] + mark["height"]
    tabs = page.locator("#languages")
    assert tabs.evaluate("(tabs) => tabs.scrollWidth <= tabs.clientWidth")
    expect(tabs.get_by_role("tab", name="JavaScript")).to_be_visible()
    assert fits(page)
