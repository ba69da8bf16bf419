"""Tests of static/key_terms.js: a key's terms between the form's texts and the API's values."""

from __future__ import annotations

from typing import Any

from tests.support.javascript import call_each, needs_node

pytestmark = needs_node

EMPTY: dict[str, Any] = {
    "name": "",
    "budget_usd": "",
    "budget_period": "month",
    "tier": "unlimited",
    "expires": "",
    "requests_per_minute": "",
    "tokens_per_hour": "",
    "max_streams": "",
    "models": "",
    "admin": False,
}
KEY: dict[str, Any] = {
    "name": "ada",
    "budget_usd": 5.0,
    "budget_period": "month",
    "tier": "free",
    "expires": None,
    "requests_per_minute": None,
    "tokens_per_hour": None,
    "max_streams": None,
    "models": ["*"],
    "admin": False,
    "disabled": False,
    "used": {"spent_usd": 1.25, "left_usd": 3.75},
    "limits": {"requests_per_minute": 10, "tokens_per_hour": 10_000},
}


def test_empty_fields_are_no_limits_and_all_models() -> None:
    [found] = call_each("key_terms.js", "termsOf", (EMPTY | {"name": " ada "},))
    assert found["wrong"] == {}
    terms = found["terms"]
    assert terms["name"] == "ada"
    assert terms["models"] == ["*"]
    names = ("budget_usd", "requests_per_minute", "tokens_per_hour", "max_streams", "expires")
    assert [terms[name] for name in names] == [None] * 5
    assert "budget_period" not in terms  # a period without a budget means nothing


def test_an_entry_of_the_log_says_by_whom_and_what_was_changed() -> None:
    by_key = {"key_id": "key_a", "name": "operator"}
    by_user = {"key_id": None, "name": "alice"}
    budget = {"budget_usd": {"from": None, "to": 10.0}, "admin": {"from": False, "to": True}}
    entries: list[dict[str, Any]] = [
        {"action": "change", "by": by_key, "changes": budget},
        {"action": "create", "by": by_user, "changes": {"models": ["openai/*"], "new": 1}},
        {"action": "disable", "by": by_key, "changes": {"disabled": {"from": False, "to": True}}},
        {"action": "rotate", "by": by_user, "changes": {"overlap_s": 86400}},
        {"action": "rotate", "by": by_key, "changes": {"overlap_s": 5400}},
        {"action": "rotate", "by": by_key, "changes": {"overlap_s": 0}},
    ]
    each = [(entry,) for entry in entries]
    assert call_each("key_terms.js", "changeTitle", *each)[:4] == [
        "Changed by operator",
        "Created by alice, with a command on the server",
        "Disabled by operator",
        "Rotated by alice, with a command on the server",
    ]
    assert call_each("key_terms.js", "changeLines", *each) == [
        ["Budget: none \u2192 $10.00", "Admin key: no \u2192 yes"],
        ["Models: openai/*", "new: 1"],
        [],
        ["Old secret valid for a day"],
        ["Old secret valid for 90 minutes"],
        ["Old secret refused at once"],
    ]


def test_numbers_are_read_as_people_write_them() -> None:
    texts = ["$20", "0.25", ".5", "1,000", "1 000 000"]
    found = call_each("key_terms.js", "termsOf", *((EMPTY | {"budget_usd": t},) for t in texts))
    assert [one["terms"]["budget_usd"] for one in found] == [20, 0.25, 0.5, 1000, 1_000_000]


def test_texts_that_are_no_numbers_are_never_sent_as_no_limit() -> None:
    texts = ["abc", "1,5", "1e3", "-1", "5 dollars", "Infinity"]
    found = call_each("key_terms.js", "termsOf", *((EMPTY | {"budget_usd": t},) for t in texts))
    assert all("budget_usd" in one["wrong"] for one in found)
    assert all("name" in one["wrong"] for one in found)  # the name is empty


def test_a_key_fills_the_form_and_comes_back_without_a_change() -> None:
    keys = [
        KEY,
        KEY | {"budget_usd": None, "budget_period": "total"},
        KEY | {"models": ["openai/*", "fast"], "expires": "2030-01-31T12:00:00Z"},
        KEY | {"requests_per_minute": 20, "max_streams": 3, "admin": True},
    ]
    texts = call_each("key_terms.js", "textsOf", *((key,) for key in keys))
    terms = [
        one["terms"]
        for one in call_each(
            "key_terms.js",
            "termsOf",
            *(
                ({name: text for name, text in found.items() if name != "group"},)
                for found in texts
            ),
        )
    ]
    changed = call_each("key_terms.js", "changedTerms", *zip(keys, terms, strict=True))
    assert changed == [{}] * len(keys)


def test_differences_name_the_field_both_values_and_what_the_user_typed() -> None:
    after = KEY | {"budget_usd": 10.0, "disabled": True}
    [found, rotated] = call_each(
        "key_terms.js",
        "differences",
        (KEY, after, {"budget_usd": 20}),
        (KEY, KEY | {"previous_until": "2030-01-01T00:00:00Z"}),
    )
    assert found == ["Budget: $5.00 \u2192 $10.00 (you: $20.00)", "Disabled: no \u2192 yes"]
    assert rotated == ["Old secret valid until: none \u2192 2030-01-01T00:00:00Z"]


def test_a_budget_says_what_is_spent_and_what_is_left() -> None:
    keys = [KEY, KEY | {"used": None}, KEY | {"budget_usd": None}, KEY | {"budget_usd": 0}]
    found = call_each("key_terms.js", "budgetText", *((key,) for key in keys))
    assert found[0] == {"text": "$1.25 of $5.00 a month", "hint": "$3.75 left", "share": 0.25}
    assert "unknown" in found[1]["hint"]
    assert found[2] == {"text": "$1.25 spent", "hint": "no budget", "share": None}
    assert found[3]["share"] == 1


def test_limits_are_those_that_apply() -> None:
    none = {"requests_per_minute": None, "tokens_per_hour": None}
    found = call_each("key_terms.js", "limitsText", (KEY,), (KEY | {"limits": none},))
    assert found == ["10 requests a minute, 10,000 tokens an hour", "no limits"]


def test_an_error_of_the_api_belongs_to_its_field() -> None:
    problems = [
        {"code": "key_exists", "message": "There is a key with this name."},
        {"code": "invalid_request", "message": "expires: It must be in the future."},
        {"code": "invalid_request", "message": "name is missing; expected a text."},
        {"code": "keys_read_only", "message": "The key file can't be written."},
    ]
    found = call_each("key_terms.js", "fieldOf", *((problem,) for problem in problems))
    assert found == ["name", "expires", "name", ""]


def test_a_pasted_key_is_recognized_and_names_and_ids_are_not() -> None:
    secrets = ["sk-sluice-abcdefghijklmnop", " sk-proj-x", "Bearer sk-sluice-0123456789abcdef01"]
    names = ["ada", "key_3kTPq1yXwQ0e", "sluice", "desk-lamp", ""]
    found = call_each("key_terms.js", "isSecret", *((text,) for text in secrets + names))
    assert found == [True] * len(secrets) + [False] * len(names)
