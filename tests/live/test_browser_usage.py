"""Tests of the usage page in a real Chromium with a real server.

- Without Chromium these tests are skipped.
- Every test also checks that the console stayed empty, that nothing violated the content security
  policy, and that no request went to another host.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Dialog, Page, expect

from tests.support import calls
from tests.support import fake as fp
from tests.support.fake import FakeProvider
from tests.support.pace import HANG_S
from tests.support.pages import breaks, choose, fits, run, sign_in, slow
from tests.support.servers import Server

pytestmark = pytest.mark.thorough


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
    run(page)
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
        run(page)
        expect(page.locator("#ending")).to_contain_text("Finished")
        slow(fake)
        run(page)
        expect(page.locator("#output")).to_contain_text("Once upon")
        other = page.context.new_page()
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


@pytest.fixture
def own_key(server: Server) -> Iterator[None]:
    """Give the server's tests a key without usage."""
    key, server.key = server.key, server.add_key("own")
    yield
    server.key = key


@pytest.mark.usefixtures("own_key")
def test_an_empty_usage_page_says_what_to_do_next(page: Page, server: Server) -> None:
    sign_in(page, server, "/usage")
    expect(page.locator("#no-active")).to_contain_text("listed here while it runs")
    expect(page.locator("#models")).to_contain_text("run a prompt in the playground")
    expect(page.locator("#latest")).to_contain_text("Run a prompt in the playground")
    expect(page.get_by_role("button", name="Stop all")).to_be_hidden()


@pytest.mark.usefixtures("own_key")
def test_active_now_updates_by_itself_but_not_in_a_hidden_tab(page: Page, server: Server) -> None:
    sign_in(page, server, "/usage")
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    with server.client() as client:
        calls.begin_stream(client, model="local/slow")
        expect(page.locator("#active tbody tr")).to_have_count(1)
        before = page.locator("#active .tokens").inner_text()
        expect(page.locator("#active .tokens")).not_to_have_text(before)  # nobody clicked
        hide = (
            "(is) => { Object.defineProperty(document, 'hidden', {value: is, configurable: true});"
            " document.dispatchEvent(new Event('visibilitychange')); }"
        )
        page.evaluate(hide, True)
        page.wait_for_timeout(500)  # a poll that had begun ends
        asked.clear()
        page.wait_for_timeout(2500)  # longer than the time between two polls
        assert asked == []
        with page.expect_request("**/completions/streams"):
            page.evaluate(hide, False)
        page.get_by_role("button", name="Stop", exact=False).last.click()
        expect(page.locator("#no-active")).to_be_visible()


@pytest.mark.usefixtures("own_key")
def test_stop_all_stops_every_active_call_after_one_question(page: Page, server: Server) -> None:
    sign_in(page, server, "/usage")
    with server.client() as first, server.client() as second:
        for client in (first, second):
            calls.begin_stream(client, model="local/slow")
        page.get_by_role("button", name="Refresh").click()
        expect(page.locator("#active tbody tr")).to_have_count(2)
        questions: list[str] = []

        def answer(dialog: Dialog) -> None:
            questions.append(dialog.message)
            dialog.accept()

        page.once("dialog", answer)
        page.get_by_role("button", name="Stop all").click()
        expect(page.locator("#no-active")).to_be_visible()
        assert questions == ["Stop all 2 active calls of this key?"]
        for client in (first, second):
            assert calls.kinds(list(client.frames()))[-3:] == ["finish", "usage_final", "DONE"]


@pytest.mark.usefixtures("own_key")
def test_unpriced_and_broken_calls_are_marked_and_bars_follow_the_order(
    page: Page, server: Server, fake: FakeProvider
) -> None:
    sign_in(page, server)
    fake.script(fp.sse(fp.chunks(["Many tokens."], usage=(300, 900))))
    for model, start in (("fake/m", None), ("fakechat/m", breaks), ("local/pydoc", None)):
        choose(page, model)
        if start is not None:
            start(fake)
        run(page)
        expect(page.locator("#ending")).to_contain_text("took")
    page.goto("/usage")
    rows = page.locator("#latest tbody tr")
    expect(rows).to_have_count(3)
    expect(rows.nth(2).locator(".cost")).to_have_text("unpriced")
    expect(rows.nth(1).locator(".end")).to_have_text("broken off")
    expect(rows.nth(0).locator(".cost")).to_have_text("$0.00")
    expect(page.locator("#models tbody tr").first).to_contain_text("unknown")
    expect(page.locator("#sum-unpriced")).to_have_text("without 2 of unknown price")
    for measure in ("Tokens", "Requests", "Cost"):
        page.locator("#measure").get_by_text(measure).click()
        expect(page.locator(".order").first).to_have_text(f"Bars and order: {measure.lower()}")
        widths = page.locator("#models .bar").evaluate_all(
            "(bars) => bars.map((bar) => parseFloat(bar.style.width))"
        )
        assert widths == sorted(widths, reverse=True)


@pytest.mark.usefixtures("own_key")
@pytest.mark.parametrize("width", ["narrow"], indirect=True)
def test_all_figures_of_the_tables_are_visible_on_a_narrow_screen(
    page: Page, server: Server
) -> None:
    calls.complete(server, model="local/pydoc", max_tokens=5)
    with server.client() as client:
        calls.begin_stream(client, model="local/slow")
        sign_in(page, server, "/usage")
        expect(page.locator("#active tbody tr")).to_have_count(1)
        expect(page.locator("#latest tbody tr")).to_have_count(2)
        assert fits(page)
        for box in page.locator(".scroll").all():
            assert box.evaluate("(box) => box.scrollWidth <= box.clientWidth")


@pytest.mark.usefixtures("own_key")
def test_a_hang_up_is_no_failure_and_the_last_day_is_named_below_the_chart(
    page: Page, server: Server
) -> None:
    with server.client() as client:
        calls.begin_stream(client, model="local/slow")
    sign_in(page, server, "/usage")
    expect(page.locator("#latest .end")).to_have_class("end client_gone", timeout=1000 * HANG_S)
    expect(page.locator("#latest .outcome")).to_have_text("client hung up")
    legend = page.locator("#chart .u-legend")
    today = page.get_by_label("To", exact=True).input_value()
    expect(legend).to_contain_text(today)
    page.locator("#chart .u-over").hover(position={"x": 5, "y": 20})
    expect(legend).not_to_contain_text(today)
    page.get_by_role("heading", name="Usage").hover()
    expect(legend).to_contain_text(today)
