"""The playground's first visit in a real Chromium: start, watch, stop, and see the partial usage.

These are the browser tests of `make test`; the others are in the files beside it.
"""

from __future__ import annotations

import re

from playwright.sync_api import Page, expect

from tests.support.pages import open_chat, run, send, sign_in
from tests.support.servers import Server


def test_a_first_visit_streams_the_slow_model_until_it_is_stopped(
    page: Page, server: Server
) -> None:
    sign_in(page, server)
    run(page)
    expect(page.locator("#live-tokens")).to_have_text(re.compile(r"≈ [3-9]"))
    page.get_by_role("button", name="Stop").click()
    expect(page.locator("#ending")).to_have_text(
        re.compile(r"Stopped · 8 tokens in · \d+ tokens out · cost \$0\.00 · took .+s")
    )
    expect(page.locator("#served")).to_have_text("local/slow")


def test_a_reload_in_the_middle_of_an_answer_goes_on_with_it(page: Page, server: Server) -> None:
    sign_in(page, server)
    run(page)
    expect(page.locator("#live-tokens")).to_have_text(re.compile(r"≈ [3-9]"))
    begun = page.locator("#output").inner_text()
    page.reload()
    expect(page.locator("#output")).to_have_text(re.compile(re.escape(begun) + ".+", re.DOTALL))
    page.keyboard.press("Escape")
    expect(page.locator("#ending")).to_contain_text("Stopped · ")
    expect(page.locator("#history li")).to_have_text(re.compile("Stopped"))


def test_a_first_chat_streams_the_slow_model_until_it_is_stopped(
    page: Page, server: Server
) -> None:
    open_chat(page, server)
    send(page)
    expect(page.locator("#live-tokens-chat")).to_have_text(re.compile(r"≈ [3-9]"))
    page.get_by_role("button", name="Stop").click()
    expect(page.locator("#ending-chat")).to_have_text(
        re.compile(r"Stopped · \d+ tokens in · \d+ tokens out · cost \$0\.00 · took .+s")
    )
    expect(page.locator("#turns > li")).to_contain_text(
        ["How do I open a file?", "Assistant local/slow · Stopped"]
    )
