"""Tests of the playground's Chat tab in a real Chromium with a real server.

- Without Chromium these tests are skipped.
- Every test also checks that the console stayed empty, that nothing violated the content security
  policy, and that no request went to another host.
"""

from __future__ import annotations

import json
import re
import shutil
from typing import Any

import pytest
from playwright.sync_api import Locator, Page, expect

from tests.support import fake as fp
from tests.support.fake import FakeProvider, Step
from tests.support.pages import (
    COMMANDS,
    PROMPT,
    breaks,
    choose,
    fits,
    open_chat,
    run_copied_code,
    send,
    sign_in,
    slow,
    violations,
)
from tests.support.servers import Server

pytestmark = pytest.mark.thorough

TOOLS = [{"type": "function", "function": {"name": "get_weather", "parameters": {}}}]


def answers(text: str, **more: Any) -> list[Step]:
    return fp.sse(fp.chunks([text], chat=True, usage=(5, 7), **more))


def delta(**fields: Any) -> dict[str, Any]:
    """Return a chunk with any delta."""
    [chunk] = fp.chunks([""], chat=True, finish=None)
    chunk["choices"][0]["delta"] = fields
    return chunk


def calls_a_tool() -> list[Step]:
    call = {"index": 0, "id": "call_1", "type": "function"}
    named = delta(tool_calls=[call | {"function": {"name": "get_weather", "arguments": ""}}])
    rest = [
        delta(tool_calls=[{"index": 0, "function": {"arguments": part}}])
        for part in ('{"city":', ' "Oslo"}')
    ]
    ended = fp.chunks([], chat=True, finish="tool_calls", usage=(9, 4))
    return fp.sse(
        [delta(reasoning_content="Which "), delta(reasoning="city?"), named, *rest, *ended]
    )


def sent(fake: FakeProvider) -> list[tuple[str, str]]:
    """Return the messages of the latest request, each as its role and its text."""
    messages = json.loads(fake.requests[-1].body)["messages"]
    return [(message["role"], message["content"]) for message in messages]


def ending(page: Page) -> Locator:
    return page.locator("#ending-chat")


def turns(page: Page) -> Locator:
    return page.locator("#turns > li")


def converse(page: Page, fake: FakeProvider, *texts: str) -> None:
    """Hold a conversation whose answers are the texts in capitals."""
    choose(page, "fake/m")
    for place, text in enumerate(texts):
        fake.script(answers(text.upper()))
        send(page, text)
        expect(turns(page)).to_have_count(2 * place + 2)
        expect(ending(page)).to_contain_text("Finished · 5 tokens in · 7 tokens out")


def test_a_conversation_sends_the_system_prompt_and_all_earlier_turns(
    page: Page, server: Server, fake: FakeProvider
) -> None:
    open_chat(page, server)
    page.get_by_label("System prompt").fill("Be loud")
    page.get_by_text("Parameters").click()
    page.get_by_label("Temperature").fill("0.5")
    converse(page, fake, "one", "two")
    assert sent(fake) == [
        ("system", "Be loud"),
        ("user", "one"),
        ("assistant", "ONE"),
        ("user", "two"),
    ]
    assert json.loads(fake.requests[-1].body)["temperature"] == 0.5
    expect(page.get_by_label("Message", exact=True)).to_have_value("")
    expect(page.locator("#served-chat")).to_have_text("fake/m")
    for name in ("tokens", "first", "cost"):
        expect(page.locator(f"#live-{name}-chat")).not_to_have_text("\N{EN DASH}")


def test_messages_are_edited_deleted_and_answered_again(
    page: Page, server: Server, fake: FakeProvider
) -> None:
    open_chat(page, server)
    converse(page, fake, "one", "two", "three")
    page.get_by_role("button", name="Edit message 1").click()
    page.get_by_label("Text of message 1").fill("first")
    page.get_by_label("Role of message 1").select_option("System")
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_role("button", name="Edit message 1")).to_be_focused()
    page.get_by_role("button", name="Delete message 3").click()
    page.get_by_role("button", name="Delete message 3").click()
    # Escape gives up an edit, and Regenerate keeps one that is open.
    page.get_by_role("button", name="Edit message 2").click()
    page.keyboard.type("unwanted")
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Edit message 3").click()
    page.get_by_label("Text of message 3").fill("third")
    fake.script(answers("ANOTHER"))
    page.get_by_label("Message", exact=True).fill("a draft")
    page.get_by_role("button", name="Regenerate").click()
    expect(turns(page).nth(3)).to_contain_text("ANOTHER")
    assert sent(fake) == [("system", "first"), ("assistant", "ONE"), ("user", "third")]
    expect(page.get_by_label("Message", exact=True)).to_have_value("a draft")
    page.get_by_role("button", name="Clear conversation").click()
    expect(turns(page)).to_have_count(0)
    expect(page.get_by_text("The conversation appears here")).to_be_visible()
    expect(page.get_by_label("Message", exact=True)).to_be_focused()


def test_messages_of_any_role_are_added_without_being_sent(
    page: Page, server: Server, fake: FakeProvider
) -> None:
    open_chat(page, server)
    choose(page, "fake/m")
    for text in ("one", "ONE", "two"):
        page.get_by_label("Message", exact=True).fill(text)
        page.get_by_role("button", name="Add without sending").click()
    expect(turns(page)).to_have_count(3)
    assert fake.requests == []
    fake.script(answers("TWO"))
    page.get_by_role("button", name="Get an answer").click()
    expect(turns(page).nth(3)).to_contain_text("TWO")
    assert sent(fake) == [("user", "one"), ("assistant", "ONE"), ("user", "two")]


def test_a_conversation_survives_a_reload_and_comes_back_from_the_history(
    page: Page, server: Server, fake: FakeProvider
) -> None:
    sign_in(page, server, "/#chat")
    page.get_by_label("System prompt").fill("Be loud")
    converse(page, fake, "one", "two")
    page.get_by_label("Message", exact=True).fill("a draft")
    page.goto("/usage")
    page.goto("/")
    expect(page.get_by_role("tab", name="Chat")).to_have_attribute("aria-selected", "true")
    expect(turns(page)).to_have_count(4)
    expect(turns(page).nth(3)).to_contain_text("Assistant fake/m")
    expect(page.get_by_label("Message", exact=True)).to_have_value("a draft")
    page.get_by_role("button", name="Clear conversation").click()
    page.get_by_role("tab", name="Completion").click()
    page.get_by_role("button", name="Chat: one").click()
    expect(page.get_by_role("tab", name="Chat")).to_have_attribute("aria-selected", "true")
    expect(turns(page)).to_have_count(2)
    expect(turns(page).nth(1)).to_contain_text("ONE")
    expect(page.get_by_label("System prompt")).to_have_value("Be loud")
    expect(ending(page)).to_contain_text("Finished")


def test_reasoning_is_folded_and_a_tool_call_gets_its_result(
    page: Page, server: Server, fake: FakeProvider
) -> None:
    open_chat(page, server)
    choose(page, "fake/m")
    page.get_by_text("Parameters").click()
    page.get_by_label("Tools").fill(json.dumps(TOOLS))
    fake.script(calls_a_tool())
    send(page, "Is it warm?")
    expect(ending(page)).to_contain_text("Finished with tool calls")
    assert json.loads(fake.requests[-1].body)["tools"] == TOOLS
    answer = turns(page).nth(1)
    expect(answer.get_by_text("Which city?")).to_be_hidden()
    answer.get_by_text("Reasoning").click()
    expect(answer.get_by_text("Which city?")).to_be_visible()
    expect(answer).to_contain_text("Tool call get_weather · call_1")
    expect(answer.locator("pre")).to_have_text('{"city": "Oslo"}')
    expect(page.get_by_label("Role of the message")).to_contain_text("Result of get_weather")
    fake.script(answers("Quite."))
    send(page, "sunny")
    expect(turns(page).nth(3)).to_contain_text("Quite.")
    asked, called, result = json.loads(fake.requests[-1].body)["messages"]
    assert asked == {"role": "user", "content": "Is it warm?"}
    function = {"name": "get_weather", "arguments": '{"city": "Oslo"}'}
    tool_calls = [{"id": "call_1", "type": "function", "function": function}]
    assert called == {"role": "assistant", "content": None, "tool_calls": tool_calls}
    assert result == {"role": "tool", "tool_call_id": "call_1", "content": "sunny"}
    expect(page.get_by_label("Role of the message")).to_have_value("user")


def test_parallel_tool_calls_are_answered_when_all_results_are_there(
    page: Page, server: Server, fake: FakeProvider
) -> None:
    open_chat(page, server)
    choose(page, "fake/m")
    function = {"name": "f", "arguments": "{}"}
    calls = [{"index": at, "id": f"c{at}", "function": function} for at in (0, 1)]
    ended = fp.chunks([], chat=True, finish="tool_calls", usage=(9, 4))
    fake.script(fp.sse([delta(tool_calls=calls), *ended]))
    send(page, "Hi")
    expect(ending(page)).to_contain_text("Finished with tool calls")
    send(page, "one")
    expect(ending(page)).to_contain_text("the results of its other tool calls")
    expect(page.get_by_label("Role of the message")).to_have_value("tool:c1")
    fake.script(answers("Both."))
    send(page, "two")
    expect(turns(page).nth(4)).to_contain_text("Both.")
    results = json.loads(fake.requests[-1].body)["messages"][2:]
    assert [(one["tool_call_id"], one["content"]) for one in results] == [
        ("c0", "one"),
        ("c1", "two"),
    ]
    assert len(fake.requests) == 2


def test_tools_that_are_no_list_and_an_empty_message_are_not_sent(
    page: Page, server: Server, fake: FakeProvider
) -> None:
    open_chat(page, server)
    choose(page, "fake/m")
    page.get_by_label("Message", exact=True).fill(" ")
    send(page)
    expect(page.get_by_label("Message", exact=True)).to_be_focused()
    page.get_by_text("Parameters").click()
    page.get_by_label("Tools").fill("{}")
    page.get_by_text("Parameters").click()
    send(page, "Hi")
    expect(page.get_by_label("Tools")).to_be_focused()
    expect(turns(page)).to_have_count(0)
    assert fake.requests == []


def test_an_unstreamed_answer_has_its_reasoning_and_tool_calls(
    page: Page, server: Server, fake: FakeProvider
) -> None:
    body = fp.body("All at once.", chat=True, usage=(4, 3))
    function = {"name": "f", "arguments": "{}"}
    calls = [{"id": "a", "type": "function", "function": function}]
    body["choices"][0]["message"] |= {"reasoning": "Think.", "tool_calls": calls}
    fake.script(fp.answer(body))
    open_chat(page, server)
    choose(page, "fake/m")
    page.get_by_label("Stream").uncheck()
    send(page, "Hi")
    expect(ending(page)).to_contain_text("4 tokens in · 3 tokens out")
    for text in ("All at once.", "Think.", "Tool call f · a"):
        expect(turns(page).nth(1)).to_contain_text(text)


@pytest.mark.parametrize("by", ["button", "key"])
def test_stop_keeps_the_partial_answer_in_the_conversation(
    page: Page, server: Server, fake: FakeProvider, by: str
) -> None:
    slow(fake, chat=True)
    open_chat(page, server)
    choose(page, "fake/m")
    send(page, "Hi")
    expect(page.locator("#output-chat")).to_contain_text("Once upon more")
    expect(page.get_by_role("tab", name="Completion")).to_be_disabled()
    if by == "button":
        page.get_by_role("button", name="Stop").click()
    else:
        page.keyboard.press("Escape")
    expect(ending(page)).to_contain_text("Stopped · ")
    expect(turns(page).nth(1)).to_contain_text("Assistant fake/m · Stopped")
    expect(turns(page).nth(1)).to_contain_text("Once upon more")
    expect(page.get_by_label("Message", exact=True)).to_be_focused()
    server.wait(lambda: fake.requests[-1].closed_at is not None)


def test_a_failed_chat_shows_its_error_and_can_be_tried_again(
    page: Page, server: Server, fake: FakeProvider
) -> None:
    fake.script(fp.error(500))
    open_chat(page, server)
    choose(page, "fake/m")
    with page.expect_response("**/api/v1/chat/completions") as answered:
        send(page, "Hi")
    body = answered.value.json()
    alert = page.locator("#error-chat")
    expect(alert).to_contain_text(f"{body['status_code']} {body['code']}")
    expect(alert).to_contain_text(body["request_id"])
    expect(turns(page)).to_have_count(1)
    fake.script(answers("Better."))
    page.get_by_role("button", name="Get an answer").click()
    expect(turns(page).nth(1)).to_contain_text("Better.")
    expect(alert).to_be_hidden()
    # An answer isn't lost if the one that should replace it fails.
    fake.script(fp.error(500))
    page.get_by_role("button", name="Regenerate").click()
    expect(alert).to_contain_text("502 provider_error")
    expect(turns(page)).to_have_count(2)
    expect(turns(page).nth(1)).to_contain_text("Better.")
    page.locator("#history button").first.click()
    expect(alert).to_contain_text("provider_error")
    expect(turns(page)).to_have_count(1)


def test_a_broken_answer_is_marked_in_the_conversation(
    page: Page, server: Server, fake: FakeProvider
) -> None:
    breaks(fake, chat=True)
    open_chat(page, server)
    choose(page, "fake/m")
    send(page, "Hi")
    expect(page.locator("#error-chat")).to_contain_text("502 provider_error")
    expect(turns(page).nth(1)).to_contain_text("Broken off: provider_error")
    expect(turns(page).nth(1)).to_contain_text("Half")
    expect(page.locator("#history li")).to_contain_text("Broken off: provider_error")


def test_a_reload_in_the_middle_of_an_answer_goes_on_with_it_until_it_is_stopped(
    page: Page, server: Server, fake: FakeProvider
) -> None:
    slow(fake, chat=True)
    open_chat(page, server)
    choose(page, "fake/m")
    send(page, "Hi")
    expect(page.locator("#output-chat")).to_contain_text("Once upon")
    page.reload()
    expect(page.locator("#output-chat")).to_contain_text("Once upon")
    expect(turns(page)).to_have_count(1)
    page.keyboard.press("Escape")
    expect(turns(page)).to_have_count(2)
    expect(turns(page).nth(1)).to_contain_text("Assistant fake/m · Stopped")
    expect(turns(page).nth(1)).to_contain_text("Once upon")
    server.wait(lambda: fake.requests[-1].closed_at is not None)


def test_old_history_makes_room_for_a_conversation_that_fills_the_tab_storage(
    page: Page, server: Server, fake: FakeProvider
) -> None:
    open_chat(page, server)
    body = {"model": "fake/m", "prompt": "x" * 1_000_000, "stream": True}
    entry = {"at": 0, "body": body, "served": "", "text": "", "how": "Finished", "bad": False}
    page.evaluate(
        "(text) => sessionStorage.setItem('sluice.history', text)", json.dumps([entry] * 4)
    )
    choose(page, "fake/m")
    fake.script(answers("Kept."))
    send(page, "y" * 2_000_000)
    expect(turns(page).nth(1)).to_contain_text("Kept.")
    page.reload()
    expect(turns(page)).to_have_count(2)
    expect(turns(page).nth(1)).to_contain_text("Kept.")


def test_texts_of_a_chat_are_shown_as_text_and_not_as_html(
    page: Page, server: Server, fake: FakeProvider
) -> None:
    text = "<img src=x onerror=alert(1)><b>bold</b>"
    reasoned = delta(reasoning_content=text)
    fake.script(fp.sse([reasoned, *fp.chunks([text], chat=True, usage=(3, 9))]))
    open_chat(page, server)
    choose(page, "fake/m")
    send(page, text)
    expect(ending(page)).to_contain_text("Finished")
    for view in ("Raw", "Rendered"):
        page.get_by_text(view, exact=True).click()
        for place in (0, 1):
            expect(turns(page).nth(place).locator(".said")).to_have_text(text)
        expect(turns(page).nth(1).locator(".thoughts")).to_have_text(text)
        assert page.locator("#app :is(img, b, i, u)").count() == 0


@pytest.mark.parametrize("stream", [True, False])
def test_copied_code_of_a_chat_runs_and_contains_no_key(
    page: Page, server: Server, fake: FakeProvider, stream: bool
) -> None:
    open_chat(page, server)
    converse(page, fake, "one")
    page.get_by_label("System prompt").fill(PROMPT)
    page.get_by_label("Message", exact=True).fill(PROMPT)
    page.get_by_text("Parameters").click()
    page.get_by_label("Max tokens").fill("8")
    page.get_by_label("Seed").fill("5")
    page.get_by_label("Tools").fill(json.dumps(TOOLS))
    page.get_by_label("Stream").set_checked(stream)
    for language, command in COMMANDS.items():
        if shutil.which(command[0]) is None:
            continue
        whole = fp.answer(fp.body("An answer.", chat=True, usage=(5, 2)))
        pieces = fp.chunks(["An ", "answer."], chat=True, usage=(5, 2))
        fake.script(fp.sse(pieces) if stream else whole)
        assert "answer." in run_copied_code(page, server, language)
        body = json.loads(fake.requests[-1].body)
        assert (body["max_tokens"], body["seed"], body["tools"]) == (8, 5, TOOLS), language
        system, user = ("system", PROMPT), ("user", PROMPT)
        assert sent(fake) == [system, ("user", "one"), ("assistant", "ONE"), user], language


@pytest.mark.parametrize("theme", ["light", "dark"], indirect=True)
@pytest.mark.parametrize("width", ["narrow", "wide"], indirect=True)
def test_the_chat_has_no_axe_violations_and_fits_the_screen_width(
    page: Page, server: Server, fake: FakeProvider
) -> None:
    found = {}
    open_chat(page, server)
    found["empty"] = violations(page)
    choose(page, "fake/m")
    page.get_by_text("Parameters").click()
    long = "# Title\n\n- `one`\n\n```\n" + "code " * 60 + "\n```\n> quote\n"
    for name, script in {
        "answer": answers(long),
        "tools": calls_a_tool(),
        "failed": fp.error(500),
    }.items():
        fake.script(script)
        send(page, "word" * 60)
        expect(page.get_by_role("button", name="Stop")).to_be_disabled()
        found[name] = violations(page)
        assert fits(page), name
    page.locator("#turns summary").click()
    page.get_by_role("button", name="Edit message 1").click()
    found["editing"] = violations(page)
    assert fits(page)
    page.get_by_role("button", name="Cancel").click()
    slow(fake, chat=True)
    send(page)
    expect(page.locator("#output-chat")).to_contain_text("Once upon more")
    expect(page.get_by_role("button", name="Stop")).to_be_in_viewport()
    found["flowing"] = violations(page)
    assert fits(page)
    page.get_by_role("button", name="Stop").click()
    expect(ending(page)).to_contain_text("Stopped")
    assert found == {name: [] for name in found}


def test_the_chat_can_be_used_by_keyboard_only(
    page: Page, server: Server, fake: FakeProvider
) -> None:
    sign_in(page, server)
    choose(page, "fake/m")
    page.get_by_role("tab", name="Completion").focus()
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("tab", name="Chat")).to_be_focused()
    expect(page.get_by_label("System prompt")).to_be_visible()
    message = page.get_by_label("Message", exact=True)
    message.focus()
    slow(fake, chat=True)
    page.keyboard.press("Control+Enter")
    expect(page.locator("#output-chat")).to_contain_text("Once")
    expect(message).to_be_focused()
    page.keyboard.press("Escape")
    expect(ending(page)).to_contain_text("Stopped")
    page.get_by_role("button", name="Regenerate").focus()
    fake.script(answers("Done."))
    page.keyboard.press("Enter")
    expect(turns(page).nth(1)).to_contain_text("Done.")
    expect(message).to_be_focused()
    page.get_by_role("button", name="Delete message 1").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Delete message 1")).to_be_focused()
    page.keyboard.press("Enter")
    expect(message).to_be_focused()
    page.get_by_role("tab", name="Chat").focus()
    page.keyboard.press("ArrowLeft")
    expect(page.get_by_role("button", name=re.compile("^Run"))).to_be_visible()
    expect(page.get_by_label("Prompt", exact=True)).to_be_visible()
