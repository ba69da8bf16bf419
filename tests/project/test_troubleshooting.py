"""Tests that docs/troubleshooting.md lists the messages of the start and the commands."""

from __future__ import annotations

import re
from collections import Counter

from tests.support.messages import ERRORS, Message, messages, sources
from tests.support.paths import ROOT

ROW = re.compile(r"^\| (`.*?) \| (.*) \|$", re.MULTILINE)
TITLE = "| message | why | what to do |"
WITHOUT_A_CURE = ("endpoints/",)
"""Where a message is about a single request, so that it has no cure here."""


def listed() -> list[str]:
    """Return the messages of the page's tables, without their quotes."""
    page = (ROOT / "docs/troubleshooting.md").read_text()
    return [
        text for cell, _ in ROW.findall(page) for text in re.findall(r"`(.+?)`(?:<br>|$)", cell)
    ]


def made() -> list[Message]:
    return [found for found in messages() if not found.place.startswith(WITHOUT_A_CURE)]


def test_each_message_of_the_start_and_the_commands_is_listed() -> None:
    page = listed()
    missing = [each for each in made() if not any(each.is_in(text) for text in page)]
    assert missing == []


def test_each_listed_message_is_one_that_the_code_can_print() -> None:
    found = made()
    assert [text for text in listed() if not any(each.is_in(text) for each in found)] == []


def test_each_message_is_listed_once() -> None:
    """Two rows of one message differ in their placeholders at most."""
    found = made()
    plain = Counter(re.sub(r"[A-Z_]{2,}[0-9]*", "X", text) for text in listed())
    twice = {text for text, times in plain.items() if times > 1}
    assert sorted(text for text in twice if any(each.is_in(text) for each in found)) == []


def test_each_table_of_messages_says_what_to_do() -> None:
    page = (ROOT / "docs/troubleshooting.md").read_text()
    tables = re.findall(r"^\|.*\|\n\|[-|]+\|$", page, re.MULTILINE)
    assert len(tables) > 5
    assert all(table.startswith(TITLE) for table in tables)
    for row in ROW.findall(page):
        assert row[1].rpartition(" | ")[2].strip(), row[0]


def test_the_errors_whose_texts_are_collected_exist() -> None:
    code = "".join(path.read_text() for path in sources())
    assert [name for name in ERRORS if f"class {name}(" not in code] == []
