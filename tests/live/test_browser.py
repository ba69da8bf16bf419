"""Tests of the playground in a real Chromium with a real server.

- Without Chromium these tests are skipped.
- Every test also checks that the console stayed empty, that nothing violated the content security
  policy, and that no request went to another host.
"""

from __future__ import annotations

import json
import shutil

import pytest
from playwright.sync_api import Page, expect

from tests.support import fake as fp
from tests.support.fake import FakeProvider
from tests.support.pages import (
    COMMANDS,
    PROMPT,
    breaks,
    choose,
    run,
    run_copied_code,
    sign_in,
    slow,
)
from tests.support.servers import Server

pytestmark = pytest.mark.thorough


# The playground


def test_the_playground_shows_a_streamed_completion_and_keeps_its_history(
    page: Page, server: Server
) -> None:
    sign_in(page, server)
    expect(page.get_by_role("combobox", name="Model", exact=True)).to_have_value("local/slow")
    expect(page.locator("#model-facts")).to_have_text(
        "Free. A toy that makes up text, without an account."
    )
    choose(page, "local/pydoc")
    page.get_by_label("Prompt", exact=True).fill("The best way to open a file is")
    page.get_by_text("Parameters").click()
    page.get_by_label("Max tokens").fill("30")
    page.get_by_label("Seed").fill("7")
    page.keyboard.press("Control+Enter")
    ending = page.locator("#ending")
    expect(ending).to_contain_text("tokens out · cost $0.00 · took")
    expect(page.locator("#served")).to_have_text("local/pydoc")
    expect(page.locator("#price")).to_have_text("Free")
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
    page.get_by_label("Prompt", exact=True).fill("<u>prompt</u>")
    run(page)
    expect(page.locator("#output")).to_have_text(text)
    expect(page.locator("#ending")).to_contain_text("3 tokens in · 9 tokens out · cost unknown")
    expect(page.get_by_role("listitem")).to_contain_text("<u>prompt</u>")
    assert page.locator("#app :is(img, b, i, u)").count() == 0
    page.get_by_text("Raw", exact=True).click()
    expect(page.locator("#output")).to_have_text(text)
    assert page.locator("#app :is(img, b, i, u)").count() == 0


def test_an_unstreamed_completion_is_shown(page: Page, server: Server, fake: FakeProvider) -> None:
    fake.script(fp.answer(fp.body("All at once.", usage=(4, 3))))
    sign_in(page, server)
    choose(page, "fake/m")
    page.get_by_label("Stream").uncheck()
    run(page)
    expect(page.locator("#output")).to_have_text("All at once.")
    expect(page.locator("#ending")).to_contain_text("4 tokens in · 3 tokens out")


@pytest.mark.parametrize("by", ["button", "key"])
def test_stop_by_button_or_key_ends_a_running_stream(
    page: Page, server: Server, fake: FakeProvider, by: str
) -> None:
    slow(fake)
    sign_in(page, server)
    choose(page, "fake/m")
    run(page)
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
        run(page)
    body = answered.value.json()
    alert = page.locator("#error")
    expect(alert).to_contain_text(f"{body['status_code']} {body['code']}")
    expect(alert).to_contain_text(body["message"])
    expect(alert).to_contain_text(body["request_id"])
    expect(page.get_by_role("listitem")).to_contain_text(f"Failed: {body['code']}")
    expect(page.locator("#output")).to_be_hidden()  # the error takes the place of the empty box
    fake.script(fp.sse(fp.chunks(["Better."], usage=(3, 9))))
    run(page)
    expect(page.locator("#output")).to_have_text("Better.")
    expect(alert).to_be_hidden()


def test_a_call_that_never_ran_has_no_figures_and_says_what_to_do(
    page: Page, server: Server
) -> None:
    sign_in(page, server)
    run(page)
    expect(page.locator("#live-cost")).to_have_text("free")  # a free model streams
    page.keyboard.press("Escape")
    expect(page.locator("#ending")).to_contain_text("Stopped")
    choose(page, "openai/gpt-4o-mini")
    run(page)
    expect(page.locator("#error")).to_contain_text("put OPENAI_API_KEY into .env and restart it")
    expect(page.locator("#error")).to_contain_text("404 provider_not_found")
    expect(page.locator("#error")).not_to_contain_text("byok_api_key")
    for name in ("tokens", "rate", "first", "cost"):
        expect(page.locator(f"#live-{name}")).to_have_text("\N{EN DASH}")
    expect(page.locator("#live-cost-name")).to_have_text("Cost")


def test_a_stream_that_breaks_off_keeps_its_text_and_is_marked_in_the_history(
    page: Page, server: Server, fake: FakeProvider
) -> None:
    breaks(fake)
    sign_in(page, server)
    choose(page, "fake/m")
    run(page)
    expect(page.locator("#error")).to_contain_text("502 provider_error")
    expect(page.locator("#output")).to_have_text("Half")
    expect(page.locator("#output")).to_have_class("text broken")
    expect(page.locator("#ending")).to_contain_text("Broken off · ")
    entry = page.get_by_role("listitem").get_by_role("button")
    expect(entry).to_contain_text("Broken off: provider_error")
    fake.script(fp.sse(fp.chunks(["Whole."], usage=(3, 9))))
    run(page)
    expect(page.locator("#output")).to_have_class("text")
    entry.nth(1).click()
    expect(page.locator("#output")).to_have_class("text broken")
    expect(page.locator("#error")).to_contain_text("provider_error")


def test_a_lost_connection_breaks_a_stream_that_is_not_resumable(
    page: Page, server: Server, fake: FakeProvider
) -> None:
    slow(fake)
    sign_in(page, server)
    choose(page, "fake/m")
    cut = (
        "() => { const whole = window.fetch; window.fetch = async (...asked) => {"
        " if (asked[1].method === 'POST') asked[1].headers['X-Sluice-Resumable'] = '0';"
        " const found = await whole(...asked); const reader = found.body.getReader(); let left = 3;"
        " return new Response(new ReadableStream({ async pull(to) {"
        " if (left-- === 0) return to.error(new TypeError('network error'));"
        " to.enqueue((await reader.read()).value); } }), found); }; }"
    )
    page.evaluate(cut)
    run(page)
    expect(page.locator("#ending")).to_contain_text("Broken off")
    expect(page.locator("#error")).to_contain_text("The connection broke")
    expect(page.get_by_role("listitem")).to_contain_text("Broken off: network")


MARKDOWN = """\
# Files

Use `open()` **here**:

```python
for line in file:
    print(line)
```

- one
"""


def test_an_answer_is_rendered_or_raw_and_copied_as_it_came(
    page: Page, server: Server, fake: FakeProvider
) -> None:
    frames = fp.chunks([MARKDOWN[at : at + 5] for at in range(0, len(MARKDOWN), 5)], usage=(3, 9))
    fake.script(fp.sse(frames))
    sign_in(page, server)
    choose(page, "fake/m")
    run(page)
    output = page.locator("#output")
    expect(output.get_by_role("heading", name="Files")).to_be_visible()
    expect(output.locator("strong")).to_have_text("here")
    expect(output.locator("li")).to_have_text("one")
    code = output.locator("pre code")
    expect(code).to_have_text("for line in file:\n    print(line)")
    assert "mono" in code.evaluate("(found) => getComputedStyle(found).fontFamily").lower()
    page.get_by_text("Raw", exact=True).click()
    assert output.evaluate("(found) => found.textContent") == MARKDOWN
    assert "mono" in output.evaluate("(found) => getComputedStyle(found).fontFamily").lower()
    page.get_by_role("button", name="Copy answer").click()
    assert page.evaluate("navigator.clipboard.readText()") == MARKDOWN
    page.reload()
    page.get_by_role("listitem").get_by_role("button").click()
    expect(page.get_by_label("Raw", exact=True)).to_be_checked()
    assert output.evaluate("(found) => found.textContent") == MARKDOWN


def test_a_value_out_of_range_is_not_sent(page: Page, server: Server) -> None:
    sign_in(page, server)
    page.get_by_text("Parameters").click()
    page.get_by_label("Temperature").fill("3")
    page.get_by_text("Parameters").click()
    run(page)
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
    run(page)
    expect(page.locator("#output")).to_contain_text("Once upon more")
    for place in ("#output", "#halt"):
        expect(page.locator(place)).to_be_in_viewport()
    page.get_by_role("button", name="Stop").click()
    expect(page.locator("#ending")).to_contain_text("Stopped")


# Use it from code


@pytest.mark.parametrize("stream", [True, False])
def test_copied_code_runs_and_contains_no_key(
    page: Page, server: Server, fake: FakeProvider, stream: bool
) -> None:
    sign_in(page, server)
    choose(page, "fake/m")
    page.get_by_label("Prompt", exact=True).fill(PROMPT)
    page.get_by_text("Parameters").click()
    page.get_by_label("Max tokens").fill("8")
    page.get_by_label("Seed").fill("5")
    page.get_by_label("Stop sequences").fill("END\n\\n\\n")
    page.get_by_label("Stream").set_checked(stream)
    for language, command in COMMANDS.items():
        if shutil.which(command[0]) is None:
            continue
        whole = fp.answer(fp.body("An answer.", usage=(5, 2)))
        fake.script(fp.sse(fp.chunks(["An ", "answer."], usage=(5, 2))) if stream else whole)
        assert "answer." in run_copied_code(page, server, language)
        sent = json.loads(fake.requests[-1].body)
        assert (sent["prompt"], sent["max_tokens"], sent["seed"]) == (PROMPT, 8, 5), language
        assert sent["stop"] == ["END", "\n\n"]
