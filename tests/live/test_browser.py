"""Tests of the pages in a real Chromium with a real server, accessibility included.

- Without Chromium these tests are skipped.
- Every test also checks that the console stayed empty, that nothing violated the content security
  policy, and that no request went to another host.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, Request, expect, sync_playwright

from tests.support import calls
from tests.support import fake as fp
from tests.support.browsers import launch
from tests.support.daemons import CantRunError
from tests.support.fake import FakeProvider
from tests.support.pace import HANG_S
from tests.support.paths import TESTS
from tests.support.servers import Server

pytestmark = pytest.mark.thorough

AXE = TESTS / "vendor" / "axe" / "axe.min.js"
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
WIDTHS = {"narrow": 390, "wide": 1280}
VIOLATIONS = """
window.violations = [];
document.addEventListener("securitypolicyviolation", (event) =>
  window.violations.push(`${event.violatedDirective} ${event.blockedURI}`));
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        try:
            found = launch(playwright)
        except CantRunError as error:
            pytest.skip(str(error))
        yield found
        found.close()


@pytest.fixture(params=["light"])
def theme(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=["wide"])
def width(request: pytest.FixtureRequest) -> int:
    return WIDTHS[request.param]


@pytest.fixture
def page(browser: Browser, server: Server, theme: Any, width: int) -> Iterator[Page]:
    """Yield a page of a new browser context; fail if it logged or loaded anything unexpected."""
    context = browser.new_context(
        base_url=server.url, color_scheme=theme, viewport={"width": width, "height": 900}
    )
    context.set_default_timeout(10_000)
    context.grant_permissions(["clipboard-read", "clipboard-write"], origin=server.url)
    context.add_init_script(VIOLATIONS)
    found = context.new_page()
    faults: list[str] = []

    def asked(request: Request) -> None:
        if not request.url.startswith((server.url, "data:", "blob:")):
            faults.append(f"requested {request.url}")

    def logged(text: str) -> None:
        if "status of 4" not in text and "status of 5" not in text:  # an error that a test provoked
            faults.append(text)

    found.on("request", asked)
    found.on("console", lambda message: logged(message.text))
    found.on("pageerror", lambda error: faults.append(str(error)))
    yield found
    faults += found.evaluate("window.violations")
    context.close()
    assert faults == []


def sign_in(page: Page, server: Server, path: str = "/") -> None:
    page.goto(path)
    page.get_by_label("Your Sluice key").fill(server.key)
    page.get_by_role("button", name="Sign in").click()
    expect(page.locator("#app")).to_be_visible()


def choose(page: Page, model: str) -> None:
    page.get_by_label("Model", exact=True).select_option("Another model…")
    page.get_by_label("Another model").fill(model)


def slow(fake: FakeProvider) -> None:
    """Make the provider stream a completion that never ends."""
    frames = fp.chunks(["Once ", "upon "], finish=None)
    more = fp.event(fp.chunks(["more "], finish=None)[0]).data
    fake.script([*fp.sse(frames, done=False, complete=False), fp.repeat(more, every=0.05)])


# The key


def test_a_key_opens_the_pages_and_stays_in_the_tab(page: Page, server: Server) -> None:
    sign_in(page, server)
    expect(page.locator("#who")).to_contain_text(server.key[-4:])
    assert server.key not in page.url
    page.goto("/usage")
    expect(page.get_by_role("heading", name="Usage")).to_be_visible()
    assert page.evaluate("[localStorage.length, document.cookie]") == [0, ""]
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_label("Your Sluice key")).to_be_visible()
    assert page.evaluate("sessionStorage.length") == 0


def test_an_invalid_key_shows_the_401_error_of_the_api(page: Page) -> None:
    page.goto("/")
    page.get_by_label("Your Sluice key").fill("sluice-wrong")
    page.keyboard.press("Enter")
    alert = page.get_by_role("alert")
    expect(alert).to_contain_text("401 unauthorized")
    expect(alert).to_contain_text("Request")
    assert page.evaluate("sessionStorage.length") == 0


# The playground


def test_the_playground_shows_a_streamed_completion_and_keeps_its_history(
    page: Page, server: Server
) -> None:
    sign_in(page, server)
    expect(page.locator("#model-facts")).to_have_text("Free")
    page.get_by_label("Prompt").fill("The best way to open a file is")
    page.get_by_text("Parameters").click()
    page.get_by_label("Max tokens").fill("30")
    page.get_by_label("Seed").fill("7")
    page.keyboard.press("Control+Enter")
    ending = page.locator("#ending")
    expect(ending).to_contain_text("out, $0")
    assert len(page.locator("#output").inner_text()) > 20
    for name in ("tokens", "first", "cost"):
        expect(page.locator(f"#live-{name}")).not_to_have_text("\N{EN DASH}")
    expect(page.locator("#output")).to_have_attribute("aria-busy", "false")
    expect(page.get_by_role("listitem")).to_contain_text("local/pydoc")
    # The history survives a visit to another page.
    page.goto("/usage")
    page.goto("/")
    page.get_by_role("listitem").get_by_role("button").click()
    expect(page.get_by_label("Max tokens")).to_have_value("30")
    expect(page.locator("#output")).not_to_be_empty()


def test_model_output_is_shown_as_text_and_not_as_html(
    page: Page, server: Server, fake: FakeProvider
) -> None:
    text = "<img src=x onerror=alert(1)><b>bold</b>"
    fake.script(fp.sse(fp.chunks([text], usage=(3, 9))))
    sign_in(page, server)
    choose(page, "fake/<i>m</i>")
    page.get_by_label("Prompt").fill("<u>prompt</u>")
    page.get_by_role("button", name="Run").click()
    expect(page.locator("#output")).to_have_text(text)
    expect(page.locator("#ending")).to_contain_text("3 tokens in, 9 out")
    expect(page.get_by_role("listitem")).to_contain_text("<u>prompt</u>")
    assert page.locator("#app :is(img, b, i, u)").count() == 0


def test_an_unstreamed_completion_is_shown(page: Page, server: Server, fake: FakeProvider) -> None:
    fake.script(fp.answer(fp.body("All at once.", usage=(4, 3))))
    sign_in(page, server)
    choose(page, "fake/m")
    page.get_by_label("Stream").uncheck()
    page.get_by_role("button", name="Run").click()
    expect(page.locator("#output")).to_have_text("All at once.")
    expect(page.locator("#ending")).to_contain_text("4 tokens in, 3 out")


@pytest.mark.parametrize("by", ["button", "key"])
def test_stop_by_button_or_key_ends_a_running_stream(
    page: Page, server: Server, fake: FakeProvider, by: str
) -> None:
    slow(fake)
    sign_in(page, server)
    choose(page, "fake/m")
    page.get_by_role("button", name="Run").click()
    expect(page.locator("#output")).to_contain_text("Once upon more")
    expect(page.locator("#output")).to_have_attribute("aria-busy", "true")
    if by == "button":
        page.get_by_role("button", name="Stop").click()
    else:
        page.keyboard.press("Escape")
    expect(page.locator("#ending")).to_contain_text("Stopped · ")
    expect(page.locator("#ending")).to_contain_text("tokens in")
    expect(page.get_by_role("button", name="Run")).to_be_enabled()
    server.wait(lambda: fake.requests[-1].closed_at is not None)


def test_an_error_is_shown_with_its_request_id(
    page: Page, server: Server, fake: FakeProvider
) -> None:
    fake.script(fp.error(500))
    sign_in(page, server)
    choose(page, "fake/m")
    with page.expect_response("**/api/v1/completions") as answered:
        page.get_by_role("button", name="Run").click()
    body = answered.value.json()
    alert = page.locator("#error")
    expect(alert).to_contain_text(f"{body['status_code']} {body['code']}")
    expect(alert).to_contain_text(body["message"])
    expect(alert).to_contain_text(body["request_id"])
    expect(page.get_by_role("listitem")).to_contain_text(f"Failed: {body['code']}")


def test_a_stream_that_fails_midway_keeps_its_text(
    page: Page, server: Server, fake: FakeProvider
) -> None:
    fake.script(
        [*fp.sse(fp.chunks(["Half "], finish=None), done=False, complete=False), fp.reset()]
    )
    sign_in(page, server)
    choose(page, "fake/m")
    page.get_by_role("button", name="Run").click()
    expect(page.locator("#error")).to_contain_text("502 provider_error")
    expect(page.locator("#output")).to_have_text("Half ")


def test_a_value_out_of_range_is_not_sent(page: Page, server: Server) -> None:
    sign_in(page, server)
    page.get_by_text("Parameters").click()
    page.get_by_label("Temperature").fill("3")
    page.get_by_text("Parameters").click()
    page.get_by_role("button", name="Run").click()
    expect(page.get_by_label("Temperature")).to_be_focused()
    assert page.get_by_role("listitem").count() == 0


def test_stop_right_after_run_shows_the_call_as_stopped(
    page: Page, server: Server, fake: FakeProvider
) -> None:
    """Stop while the provider is silent; the stop may even overtake the request."""
    fake.script([fp.hold()])
    sign_in(page, server)
    choose(page, "fake/m")
    page.evaluate(
        "() => { document.getElementById('run').click(); document.getElementById('halt').click(); }"
    )
    expect(page.locator("#ending")).to_contain_text("Stopped · ")
    expect(page.locator("#error")).to_be_hidden()


@pytest.mark.parametrize("width", ["narrow"], indirect=True)
def test_the_stop_button_is_visible_on_a_narrow_screen(
    page: Page, server: Server, fake: FakeProvider
) -> None:
    slow(fake)
    sign_in(page, server)
    choose(page, "fake/m")
    page.get_by_role("button", name="Run").click()
    expect(page.locator("#output")).to_contain_text("Once upon more")
    for place in ("#output", "#halt"):
        expect(page.locator(place)).to_be_in_viewport()
    page.get_by_role("button", name="Stop").click()
    expect(page.locator("#ending")).to_contain_text("Stopped")


# Use it from code

PROMPT = 'It\'s a "test" of $HOME, `id` and \\n\nin two lines: \u00e9, \U0001f600'
COMMANDS = {
    "curl": ["sh", "-c"],
    "Python, openai": [sys.executable, "-c"],
    "Python, requests": [sys.executable, "-c"],
    "JavaScript": ["node", "--input-type=module", "-e"],
}


@pytest.mark.parametrize("stream", [True, False])
def test_copied_code_runs_and_contains_no_key(
    page: Page, server: Server, fake: FakeProvider, stream: bool
) -> None:
    sign_in(page, server)
    choose(page, "fake/m")
    page.get_by_label("Prompt").fill(PROMPT)
    page.get_by_text("Parameters").click()
    page.get_by_label("Max tokens").fill("8")
    page.get_by_label("Seed").fill("5")
    page.get_by_label("Stop sequences").fill("END\n\\n\\n")
    page.get_by_label("Stream").set_checked(stream)
    for language, command in COMMANDS.items():
        if shutil.which(command[0]) is None:
            continue
        page.get_by_role("tab", name=language).click()
        page.get_by_role("button", name="Copy").click()
        expect(page.locator("#copied")).to_contain_text("Copied")
        text = page.evaluate("navigator.clipboard.readText()")
        assert server.key not in text
        whole = fp.answer(fp.body("An answer.", usage=(5, 2)))
        fake.script(fp.sse(fp.chunks(["An ", "answer."], usage=(5, 2))) if stream else whole)
        done = subprocess.run(
            [*command, text],
            env=os.environ | {"SLUICE_KEY": server.key},
            capture_output=True,
            text=True,
            timeout=HANG_S,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert "answer." in done.stdout
        sent = json.loads(fake.requests[-1].body)
        assert (sent["prompt"], sent["max_tokens"], sent["seed"]) == (PROMPT, 8, 5), language
        assert sent["stop"] == ["END", "\n\n"]


# The usage page


def settles_late(page: Page) -> None:
    """Serve the current list of requests twice more, as if the next calls were settled late."""
    with page.expect_response("**/api/v1/user/requests?*") as found:
        page.get_by_role("button", name="Refresh").click()
    stale = found.value.text()
    page.route(
        "**/api/v1/user/requests?*",
        lambda route: route.fulfill(body=stale, content_type="application/json"),
        times=2,
    )


def test_the_usage_page_follows_a_stream_stopped_in_another_tab(
    page: Page, server: Server, fake: FakeProvider
) -> None:
    slow(fake)
    sign_in(page, server)
    choose(page, "fake/m")
    page.get_by_role("button", name="Run").click()
    expect(page.locator("#output")).to_contain_text("Once upon")
    other = page.context.new_page()
    sign_in(other, server, "/usage")
    expect(other.locator("#active tbody tr")).to_have_count(1)
    ends = other.locator("#latest tbody tr .end")
    expect(ends.first).to_have_text("active")
    page.get_by_role("button", name="Stop").click()
    expect(page.locator("#ending")).to_contain_text("Stopped")
    expect(other.locator("#no-active")).to_be_visible(timeout=1000 * HANG_S)
    expect(ends.first).to_have_text("stopped", timeout=1000 * HANG_S)


def test_the_usage_page_shows_requests_tokens_and_active_streams(
    page: Page, server: Server, fake: FakeProvider
) -> None:
    key = server.key
    server.key = server.add_key("usage-page")  # a key without usage
    try:
        fake.script(fp.sse(fp.chunks(["One ", "two."], usage=(3, 9))))
        sign_in(page, server)
        choose(page, "fake/m")
        page.get_by_role("button", name="Run").click()
        expect(page.locator("#ending")).to_contain_text("Finished")
        slow(fake)
        page.get_by_role("button", name="Run").click()
        expect(page.locator("#output")).to_contain_text("Once upon")
        other = page.context.new_page()  # signs in again, because sessionStorage belongs to one tab
        sign_in(other, server, "/usage")
        expect(other.locator("#sum-requests")).to_have_text("1")
        expect(other.locator("#sum-tokens")).to_have_text("12")
        expect(other.locator("#chart canvas")).to_be_visible()
        expect(other.locator("#active tbody tr")).to_have_count(1)
        settles_late(other)
        other.locator("#active").get_by_role("button").click()
        expect(other.locator("#no-active")).to_be_visible()
        expect(page.locator("#ending")).to_contain_text("Stopped")
        expect(other.locator("#sum-requests")).to_have_text("2")
        ends = other.locator("#latest tbody tr .end")
        expect(ends).to_have_text(["stopped", "completed"])
        expect(other.locator("#models tbody")).to_contain_text("fake/m")
        expect(other.locator("#providers tbody")).to_contain_text("fake")
        for measure in ("Cost", "Requests", "Tokens"):
            other.locator("#measure").get_by_text(measure).click()
            name = re.compile(f"Chart of {measure.lower()} by day")
            expect(other.locator("#chart")).to_have_attribute("aria-label", name)
        other.get_by_text("Show as a table").click()
        expect(other.locator("#days tbody tr")).to_have_count(1)
        with other.expect_download() as loaded:
            other.get_by_role("button", name="Download").click()
        lines = Path(loaded.value.path()).read_text().splitlines()
        assert lines[0].startswith("day,requests,cost_usd")
        assert loaded.value.suggested_filename == "usage-by-day.csv"
        assert len(lines) == 2
        other.get_by_label("To", exact=True).fill("2020-01-02")
        other.get_by_label("From", exact=True).fill("2020-01-01")
        expect(other.locator("#sum-requests")).to_have_text("0")
        assert other.evaluate("window.violations") == []
    finally:
        server.key = key


# Accessibility


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


@pytest.mark.parametrize("theme", ["light", "dark"], indirect=True)
@pytest.mark.parametrize("width", WIDTHS, indirect=True)
def test_pages_have_no_axe_violations_and_fit_the_screen_width(
    page: Page, server: Server, fake: FakeProvider, width: int
) -> None:
    fake.script(fp.sse(fp.chunks(["Some text."], usage=(3, 9))))
    fake.script(fp.error(500))
    found = {}
    page.goto("/")
    expect(page.get_by_label("Your Sluice key")).to_be_visible()
    found["sign-in"] = violations(page)
    sign_in(page, server)
    choose(page, "fake/m")
    page.get_by_text("Parameters").click()
    for ending in ("Finished", "Failed"):
        page.get_by_role("button", name="Run").click()
        expect(page.locator("#ending")).to_contain_text(ending)
        found[ending] = violations(page)
        assert page.evaluate("document.documentElement.scrollWidth") == width
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
        assert page.evaluate("document.documentElement.scrollWidth") == width
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
    expect(page.get_by_label("Prompt")).to_be_focused()
    run, halt = (page.get_by_role("button", name=name) for name in ("Run", "Stop"))
    slow(fake)
    choose(page, "fake/m")
    run.focus()
    page.keyboard.press("Enter")
    expect(halt).to_be_focused()
    expect(page.locator("#output")).to_contain_text("Once")
    page.keyboard.press("Enter")
    expect(page.locator("#ending")).to_contain_text("Stopped")
    expect(run).to_be_focused()
    page.get_by_role("tab", name="curl").focus()
    page.keyboard.press("ArrowLeft")
    expect(page.get_by_role("tab", name="JavaScript")).to_be_focused()
    expect(page.locator("#code")).to_contain_text("await fetch")
