"""Helpers for tests of the pages in a browser: signing in, choosing a model, accessibility."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from typing import Final

from playwright.sync_api import Page, expect

from tests.support import fake as fp
from tests.support.fake import FakeProvider
from tests.support.pace import HANG_S
from tests.support.paths import TESTS
from tests.support.servers import Server

WIDTHS: Final = {"narrow": 390, "wide": 1280}
AXE: Final = TESTS / "vendor" / "axe" / "axe.min.js"
RULES: Final = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
PROMPT: Final = 'It\'s a "test" of $HOME, `id` and \\n\nin two lines: \u00e9, \U0001f600'
"""A text that is hard to quote."""
COMMANDS: Final = {
    "curl": ["sh", "-c"],
    "Python, openai": [sys.executable, "-c"],
    "Python, requests": [sys.executable, "-c"],
    "JavaScript": ["node", "--input-type=module", "-e"],
}
"""The commands that run the code of each language that the playground shows."""
VIOLATIONS: Final = """
window.violations = [];
document.addEventListener("securitypolicyviolation", (event) =>
  window.violations.push(`${event.violatedDirective} ${event.blockedURI}`));
"""
"""A script that collects violations of the content security policy."""


def run_copied_code(page: Page, server: Server, language: str) -> str:
    """Copy the shown code of a language, run it with the server's key, and return its output.

    Raises:
        AssertionError: the code contains the key, or it fails.
    """
    page.get_by_role("tab", name=language).click()
    page.get_by_role("button", name="Copy", exact=True).click()
    expect(page.locator("#copied")).to_contain_text("Copied")
    code = page.evaluate("navigator.clipboard.readText()")
    assert server.key not in code
    done = subprocess.run(
        [*COMMANDS[language], code],
        env=os.environ | {"SLUICE_KEY": server.key},
        capture_output=True,
        text=True,
        timeout=HANG_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def sign_in(page: Page, server: Server, path: str = "/") -> None:
    """Open a page and sign in. In a second tab, the first one does that."""
    page.goto(path)
    form, app = page.locator("#key-form"), page.locator("#app")
    expect(form.or_(app).locator("visible=true").first).to_be_visible()
    if form.is_visible():
        page.get_by_label("Your Sluice key").fill(server.key)
        page.get_by_role("button", name="Sign in").click()
    expect(app).to_be_visible()


def choose(page: Page, model: str, label: str = "Model") -> None:
    """Type a model's name."""
    field = page.get_by_role("combobox", name=label, exact=True)
    field.fill(model)
    field.press("Tab")


def run(page: Page) -> None:
    page.get_by_role("button", name="Run").click()


def open_chat(page: Page, server: Server) -> None:
    """Sign in and choose the Chat tab."""
    sign_in(page, server)
    page.get_by_role("tab", name="Chat").click()


def send(page: Page, message: str = "") -> None:
    """Send a message of a chat, or what is in the field for it."""
    if message:
        page.get_by_label("Message", exact=True).fill(message)
    page.get_by_role("button", name=re.compile("^Send")).click()


def slow(fake: FakeProvider, *, chat: bool = False) -> None:
    """Make the provider stream a completion that never ends."""
    frames = fp.chunks(["Once ", "upon "], chat=chat, finish=None)
    more = fp.event(fp.chunks(["more "], chat=chat, finish=None)[0]).data
    fake.script([*fp.sse(frames, done=False, complete=False), fp.repeat(more, every=0.05)])


def breaks(fake: FakeProvider, *, chat: bool = False) -> None:
    """Make the provider break off in the middle of a completion."""
    frames = fp.chunks(["Half "], chat=chat, finish=None)
    fake.script([*fp.sse(frames, done=False, complete=False), fp.reset()])


def violations(page: Page) -> list[str]:
    """Return what axe-core finds: each violated rule with its elements.

    The debugger evaluates axe-core, so the page's content security policy doesn't block it.
    """
    page.evaluate(AXE.read_text(encoding="utf-8"))
    found = page.evaluate("(tags) => axe.run(document, {runOnly: tags})", RULES)
    assert len(found["passes"]) > 10
    # axe-core can't decide the contrast of elements that are off-screen.
    unsure = [v for v in found["incomplete"] if v["id"] != "color-contrast"]
    faults = found["violations"] + unsure
    return [f"{v['id']}: {[n['html'] for n in v['nodes']]}" for v in faults]


def fits(page: Page) -> bool:
    """Return True if nothing is wider than the screen."""
    wide: bool = page.evaluate("document.documentElement.scrollWidth > innerWidth")
    return not wide
