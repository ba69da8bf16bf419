"""Tests of static/chat.js and conversation.js: what the playground reads of a chat, and sends."""

from __future__ import annotations

from typing import Any

from tests.support.javascript import call_each, needs_node

pytestmark = needs_node


def piece(index: int | None, arguments: Any, **fields: Any) -> dict[str, Any]:
    function = {"arguments": arguments} | ({"name": fields.pop("name")} if "name" in fields else {})
    return {"function": function, **fields} | ({} if index is None else {"index": index})


def joined(*pieces: dict[str, Any]) -> list[tuple[str, str, str]]:
    calls: list[dict[str, Any]] = []
    for each in pieces:
        [calls] = call_each("chat.js", "joinCalls", (calls, [each]))
    return [(c.get("id", ""), c["function"]["name"], c["function"]["arguments"]) for c in calls]


def test_fragments_of_parallel_tool_calls_are_joined_by_their_index() -> None:
    assert joined(
        piece(0, "", id="a", name="f"),
        piece(0, '{"x":'),
        piece(1, "{", id="b", name="g"),
        piece(0, "1}", id="", name=""),
        piece(1, "}", id=None),
    ) == [("a", "f", '{"x":1}'), ("b", "g", "{}")]


def test_whole_tool_calls_with_one_index_or_none_are_kept_apart() -> None:
    one, other = piece(0, "{}", id="a", name="f"), piece(0, "{}", id="b", name="g")
    assert joined(one, other) == [("a", "f", "{}"), ("b", "g", "{}")]
    assert joined(piece(None, {"x": 1}, name="f"), piece(None, {}, name="g")) == [
        ("", "f", '{"x":1}'),
        ("", "g", "{}"),
    ]


def test_fields_that_a_host_adds_to_a_tool_call_are_kept() -> None:
    more = {"extra_content": {"google": {"thought_signature": "s"}}}
    first = piece(0, "{}", id="a", name="f", **more)
    [calls] = call_each("chat.js", "joinCalls", ([], [first, piece(0, "", type="function")]))
    assert calls == [first | {"type": "function"}]


def test_reasoning_is_read_from_each_field_that_hosts_have_for_it() -> None:
    thinking = [{"type": "thinking", "thinking": [{"type": "text", "text": "so"}]}]
    deltas: list[dict[str, Any]] = [
        {"reasoning_content": "so"},
        {"reasoning": "so"},
        {"reasoning": "so", "reasoning_content": "so"},
        {"content": [*thinking, {"type": "text", "text": "Hi"}]},
        {"content": "Hi", "reasoning": None},
        {"reasoning": {"odd": 1}},
    ]
    found = call_each("chat.js", "reasoningOf", *((delta,) for delta in deltas))
    assert found == ["so", "so", "so", "so", "", ""]


def test_only_tool_calls_without_a_result_are_open() -> None:
    def turns(*messages: dict[str, Any]) -> tuple[list[dict[str, Any]]]:
        return ([{"message": message} for message in messages],)

    calls = {"role": "assistant", "content": None, "tool_calls": [{"id": "a"}, {"id": "b"}]}
    result = {"role": "tool", "tool_call_id": "a", "content": "1"}
    user = {"role": "user", "content": "Hi"}
    cases = [turns(user), turns(user, calls), turns(calls, result), turns(calls, result, user)]
    found = call_each("chat.js", "openCalls", *cases)
    assert found == [[], [{"id": "a"}, {"id": "b"}], [{"id": "b"}], []]


def test_what_is_only_shown_is_not_sent_back() -> None:
    answer = {"role": "assistant", "content": "Yes"}
    draft = {"role": "user", "content": "Why?"}
    turns = [{"message": answer, "reasoning": "so", "served": "m", "how": "Finished"}]
    cases = [(" ", turns, None), ("Be brief", turns, draft)]
    found = call_each("conversation.js", "messagesOf", *cases)
    system = {"role": "system", "content": "Be brief"}
    assert found == [[answer], [system, answer, draft]]


def test_messages_are_taken_apart_as_they_were_put_together() -> None:
    system, user = {"role": "system", "content": "Be brief"}, {"role": "user", "content": "Hi"}
    found = call_each("conversation.js", "apart", ([system, user],), ([user, system],), ([],))
    assert found == [
        {"system": "Be brief", "turns": [{"message": user}]},
        {"system": "", "turns": [{"message": user}, {"message": system}]},
        {"system": "", "turns": []},
    ]


def test_the_input_of_a_chat_is_the_text_of_its_messages() -> None:
    messages = [{"role": "user", "content": "four"}, {"role": "assistant", "content": None}]
    found = call_each("panel.js", "inputLength", ({"prompt": "prompt"},), ({"messages": messages},))
    assert found == [6, 4]
