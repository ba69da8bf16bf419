"""Tests of the playground's answers that go on: after a reload, after a cut, and in a second tab.

- They run in a real Chromium with a real server. Without Chromium they are skipped.
- Those with the fixture `page` also check that the console stayed empty, that nothing violated the
  content security policy, and that no request went to another host.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from tests.support import fake as fp
from tests.support.books import ledger_of, rows
from tests.support.calls import wait_active
from tests.support.cutting_proxy import CuttingProxy
from tests.support.fake import FakeProvider
from tests.support.pages import choose, fits, open_chat, run, send, sign_in, violations
from tests.support.servers import UNTROUBLED, Server, fake_rows

pytestmark = pytest.mark.thorough

WORDS = [f"word{n} " for n in range(60)]
HALF, TEXT = ("".join(words).strip() for words in (WORDS[:30], WORDS))
FOLLOW = re.compile(r"/completions/play-\w+\?")


def in_two_parts(fake: FakeProvider, *, chat: bool = False) -> None:
    """Make the provider send half of the words, and the rest once the gate `rest` is open."""
    frames = fp.chunks(WORDS, chat=chat, usage=(7, 60))
    half = fp.sse(frames[:30], done=False, complete=False)
    rest = [fp.event(frame) for frame in frames[30:]]
    fake.script([*half, fp.gate("rest"), *rest, fp.event("[DONE]"), fp.last_chunk()])


def begin(page: Page, server: Server, fake: FakeProvider) -> None:
    """Run a prompt, and wait until half of its answer is there."""
    in_two_parts(fake)
    sign_in(page, server)
    choose(page, "fake/m")
    run(page)
    expect(page.locator("#output")).to_have_text(HALF)


def finished(page: Page, suffix: str = "") -> None:
    """Check that an answer is whole, with its usage, and that nothing runs any more."""
    ending = page.locator(f"#ending{suffix}")
    expect(ending).to_contain_text("Finished · 7 tokens in · 60 tokens out")
    expect(page.locator(f"#error{suffix}")).to_be_hidden()
    expect(page.get_by_role("button", name=re.compile("^(Run|Send)"))).to_be_enabled()
    assert page.evaluate("sessionStorage.getItem('sluice.active')") == "[]"


def entries(page: Page) -> Locator:
    return page.locator("#history li")


def test_a_reload_in_the_middle_of_an_answer_shows_all_of_it(
    page: Page, server: Server, fake: FakeProvider
) -> None:
    begin(page, server, fake)
    before = len(rows(ledger_of(server)))
    page.reload()
    expect(page.locator("#output")).to_have_text(HALF)
    expect(page.get_by_label("Prompt", exact=True)).to_have_value("The best way to open a file is")
    fake.open("rest")
    expect(page.locator("#output")).to_have_text(TEXT)
    finished(page)
    expect(entries(page)).to_have_count(1)
    expect(entries(page)).to_contain_text("Finished")
    latest = rows(ledger_of(server))[before - 1 :]
    assert [(row["end_reason"], row["output_tokens"]) for row in latest] == [("completed", 60)]


def test_a_reload_of_two_answers_side_by_side_shows_all_of_both(
    page: Page, server: Server, fake: FakeProvider
) -> None:
    in_two_parts(fake)
    in_two_parts(fake)
    sign_in(page, server)
    page.get_by_role("button", name="Compare with a second model").click()
    choose(page, "fake/m")
    choose(page, "fakechat/n", label="Second model")
    run(page)
    for suffix in ("", "-2"):
        expect(page.locator(f"#output{suffix}")).to_contain_text("word29")
    page.reload()
    for suffix, model in (("", "fake/m"), ("-2", "fakechat/n")):
        expect(page.locator(f"#output{suffix}")).to_contain_text("word29")
        expect(page.locator(f"#model{suffix}")).to_have_value(model)
    fake.open("rest")
    for suffix in ("", "-2"):
        expect(page.locator(f"#output{suffix}")).to_contain_text("word59")
        finished(page, suffix)
    expect(entries(page)).to_have_count(2)


def test_a_reload_in_the_middle_of_a_chat_puts_all_of_the_answer_into_the_conversation(
    page: Page, server: Server, fake: FakeProvider
) -> None:
    open_chat(page, server)
    page.get_by_label("System prompt").fill("Be brief")
    choose(page, "fake/m")
    for chats in (1, 2):  # the second time, Regenerate replaces the answer
        in_two_parts(fake, chat=True)
        if chats == 1:
            send(page, "Hi")
        else:
            page.get_by_role("button", name="Regenerate").click()
        expect(page.locator("#output-chat")).to_have_text(HALF)
        page.reload()
        expect(page.locator("#output-chat")).to_have_text(HALF)
        expect(page.locator("#turns > li")).to_have_count(1)
        fake.open("rest")
        finished(page, "-chat")
        expect(page.locator("#turns > li")).to_have_count(2)
        expect(page.locator("#turns > li").nth(1)).to_contain_text(TEXT)
        expect(page.locator("#turns > li").nth(1)).not_to_contain_text("Broken")
        expect(entries(page)).to_have_count(chats)
        fake.reset()
    entries(page).first.get_by_role("button").click()
    expect(page.get_by_label("System prompt")).to_have_value("Be brief")
    expect(page.locator("#turns > li").first).to_contain_text("Hi")


def test_an_answer_that_ended_while_the_page_was_left_is_shown_as_a_whole(
    page: Page, server: Server, fake: FakeProvider
) -> None:
    begin(page, server, fake)
    page.goto("/docs")
    fake.open("rest")
    wait_active(server, 0)
    page.goto("/")
    expect(page.locator("#output")).to_have_text(TEXT)
    finished(page)


def test_stop_after_a_reload_ends_the_stream(
    page: Page, server: Server, fake: FakeProvider
) -> None:
    begin(page, server, fake)
    page.reload()
    expect(page.locator("#output")).to_have_text(HALF)
    page.keyboard.press("Escape")
    expect(page.locator("#ending")).to_contain_text("Stopped · ")
    expect(entries(page)).to_contain_text("Stopped")
    server.wait(lambda: fake.requests[-1].closed_at is not None)


def test_signing_out_stops_the_streams_and_forgets_them(
    page: Page, server: Server, fake: FakeProvider
) -> None:
    begin(page, server, fake)
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_label("Your Sluice key")).to_be_visible()
    assert page.evaluate("sessionStorage.length") == 0
    server.wait(lambda: fake.requests[-1].closed_at is not None)


@pytest.mark.parametrize("status", [404, 503])
def test_an_answer_that_can_not_be_had_any_more_leaves_what_had_arrived_in_the_history(
    page: Page, server: Server, fake: FakeProvider, status: int
) -> None:
    begin(page, server, fake)
    body = {"message": "Another process may have it.", "status_code": status}
    page.route(FOLLOW, lambda route: route.fulfill(status=status, json=body))
    page.reload()
    expect(page.locator("#ending")).to_contain_text(
        "be had any more. What had arrived is in the history", timeout=40_000
    )
    expect(page.locator("#error")).to_be_hidden()
    expect(page.get_by_role("button", name="Run")).to_be_enabled()
    expect(entries(page)).to_contain_text("Broken off: page left")
    entries(page).get_by_role("button").click()
    expect(page.locator("#output")).to_have_text(HALF)
    page.unroute(FOLLOW)
    page.reload()
    expect(page.locator("#app")).to_be_visible()
    expect(page.locator("#output")).to_contain_text("The completion appears here")


def test_a_chat_that_can_not_be_had_any_more_keeps_what_had_arrived(
    page: Page, server: Server, fake: FakeProvider
) -> None:
    in_two_parts(fake, chat=True)
    open_chat(page, server)
    choose(page, "fake/m")
    send(page, "Hi")
    expect(page.locator("#output-chat")).to_have_text(HALF)
    page.route(FOLLOW, lambda route: route.fulfill(status=404, json={"status_code": 404}))
    page.reload()
    expect(page.locator("#ending-chat")).to_contain_text(
        "be had any more. What had arrived is in the history"
    )
    expect(page.locator("#turns > li").nth(1)).to_contain_text("Broken off: page left")
    expect(page.locator("#turns > li").nth(1)).to_contain_text(HALF)


def test_a_server_that_can_not_keep_streams_works_as_without_resuming(
    browser: Browser, fake: FakeProvider
) -> None:
    env = UNTROUBLED | {"SLUICE_REPLAY_TOTAL": "0"}
    with Server(fake_rows(fake.base_url), env=env) as server:
        context = browser.new_context(base_url=server.url)
        page = context.new_page()
        begin(page, server, fake)
        expect(page.get_by_role("button", name="Copy link")).to_be_hidden()
        page.reload()
        expect(entries(page)).to_contain_text("Broken off: page left")
        expect(page.locator("#error")).to_be_hidden()
        server.wait(lambda: fake.requests[-1].closed_at is not None)
        context.close()


# Cut connections


@pytest.fixture
def proxy(server: Server) -> Iterator[CuttingProxy]:
    with CuttingProxy(server.port, []) as found:
        yield found


@pytest.fixture
def far(browser: Browser, proxy: CuttingProxy) -> Iterator[Page]:
    """Yield a page that reaches the server through a proxy."""
    context = browser.new_context(base_url=proxy.url)
    yield context.new_page()
    context.close()


def test_a_cut_connection_is_made_again_without_losing_or_doubling_a_word(
    far: Page, server: Server, fake: FakeProvider, proxy: CuttingProxy
) -> None:
    begin(far, server, fake)
    for _ in range(3):
        with far.expect_response(FOLLOW):
            proxy.cut()
    fake.open("rest")
    expect(far.locator("#output")).to_have_text(TEXT)
    finished(far)


def test_an_answer_goes_on_as_soon_as_the_network_is_back(
    far: Page, server: Server, fake: FakeProvider, proxy: CuttingProxy
) -> None:
    begin(far, server, fake)
    far.context.set_offline(True)
    proxy.cut()
    expect(far.locator("#ending")).to_have_text("The connection is lost. Trying again…")
    fake.open("rest")
    wait_active(server, 0)
    far.context.set_offline(False)
    expect(far.locator("#output")).to_have_text(TEXT)
    finished(far)


def test_stop_gives_a_lost_connection_up_and_a_reload_gets_the_rest(
    far: Page, server: Server, fake: FakeProvider, proxy: CuttingProxy
) -> None:
    begin(far, server, fake)
    far.context.set_offline(True)
    proxy.cut()
    expect(far.locator("#ending")).to_contain_text("The connection is lost")
    far.keyboard.press("Escape")
    expect(far.locator("#error")).to_contain_text("reload this page to get all of it")
    expect(far.locator("#ending")).to_contain_text("Broken off")
    expect(far.locator("#output")).to_have_text(HALF)
    far.context.set_offline(False)
    fake.open("rest")
    far.reload()
    expect(far.locator("#output")).to_have_text(TEXT)
    finished(far)
    expect(entries(far)).to_have_count(1)


# A second tab


def test_a_second_tab_follows_an_answer_by_its_link(
    page: Page, server: Server, fake: FakeProvider
) -> None:
    begin(page, server, fake)
    assert violations(page) == []
    page.get_by_role("button", name="Copy link").click()
    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    link = page.evaluate("navigator.clipboard.readText()")
    assert server.key not in link
    other = page.context.new_page()
    sign_in(other, server, link)
    expect(other.locator("#output")).to_have_text(HALF)
    other.reload()
    expect(other.locator("#output")).to_have_text(HALF)
    fake.open("rest")
    for tab in (page, other):
        expect(tab.locator("#output")).to_have_text(TEXT)
        finished(tab)
        expect(tab.locator("#served")).to_have_text("fake/m")
    expect(entries(other)).to_have_count(0)
    expect(other.locator("#live-first")).to_have_text("\N{EN DASH}")


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        ("/v1/completions", {"prompt": "x"}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]}),
        ("/api/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]}),
    ],
)
def test_the_usage_page_links_to_the_resumable_calls_of_programs(
    page: Page, server: Server, fake: FakeProvider, path: str, asked: dict[str, object]
) -> None:
    in_two_parts(fake, chat="chat" in path)
    name = f"of-a-program{path.replace('/', '-')}"
    body = {"model": "fake/m", "background": True, "stream_id": name, **asked}
    if path.startswith("/v1/"):
        body |= {"stream_options": {"include_usage": True}}
    with server.client() as client:
        client.request("POST", path, body)
        assert client.read_head().status == 202
    sign_in(page, server, "/usage")
    expect(page.get_by_role("link", name=f"Watch {name}")).to_be_visible()
    assert violations(page) == []
    with page.expect_popup() as opened:
        page.get_by_role("link", name=f"Watch {name} in a new tab").click()
    other = opened.value
    expect(other.locator("#output")).to_have_text(HALF)
    fake.open("rest")
    expect(other.locator("#output")).to_have_text(TEXT)
    finished(other)
    expect(other.locator("#served")).to_have_text("fake/m")


def test_a_stream_that_can_not_be_followed_is_reported_in_a_sentence(
    page: Page, server: Server, fake: FakeProvider
) -> None:
    sign_in(page, server, "/#stream=unknown")
    expect(page.locator("#error")).to_contain_text("be followed here. It may not be resumable")
    assert page.evaluate("location.hash") == ""
    begin_plain = "document.location.hash = '#stream=unknown-2'"
    page.evaluate(begin_plain)
    expect(page.locator("#error")).to_contain_text("404 stream_not_found")
    expect(page.get_by_role("button", name="Run")).to_be_enabled()


@pytest.mark.parametrize("width", ["narrow"], indirect=True)
def test_the_buttons_of_a_resumable_answer_fit_on_a_narrow_screen(
    page: Page, server: Server, fake: FakeProvider
) -> None:
    begin(page, server, fake)
    expect(page.get_by_role("button", name="Copy link")).to_be_visible()
    assert fits(page)
