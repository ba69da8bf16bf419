"""The browser tests of `make test`, in a real Chromium: first visits of the playground and of its
chat, and an operator who gives a colleague a key.

The others are in the files beside it.
"""

from __future__ import annotations

import re

import requests
from playwright.sync_api import Page, expect

from tests.support.pace import HANG_S
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


def test_an_admin_gives_a_colleague_a_key_with_a_monthly_budget(page: Page, server: Server) -> None:
    server.key = server.add_key("operator", admin=True)
    sign_in(page, server, "/admin")
    expect(page.locator("#no-groups")).to_contain_text("Define groups in sluice.toml")
    page.get_by_role("button", name="New key").click()
    page.get_by_label("Name", exact=True).fill("ada")
    page.get_by_label("Budget in US dollars").fill("20")
    page.get_by_role("button", name="Create key").click()
    page.get_by_role("button", name="Copy", exact=True).click()
    key = page.evaluate("navigator.clipboard.readText()")
    expect(page.locator("#secret")).to_have_text(key)
    page.get_by_role("button", name="Done").click()
    expect(page.get_by_role("button", name="New key")).to_be_focused()
    expect(page.locator("#key-table")).to_contain_text("$0.00 of $20.00 a month")
    headers = {"Authorization": f"Bearer {key}"}
    found = requests.get(f"{server.url}/api/v1/models", headers=headers, timeout=HANG_S)
    assert found.status_code == 200
    kept = page.evaluate("document.documentElement.outerHTML + JSON.stringify(sessionStorage)")
    assert key not in kept + page.url
    assert key not in server.output()


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
