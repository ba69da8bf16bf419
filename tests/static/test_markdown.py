"""Tests of static/markdown.js: what it understands, and that hostile text can't harm or slow it."""

from __future__ import annotations

import random
import time
from typing import Any

import pytest

from tests.support.javascript import call_each, needs_node
from tests.support.pace import scaled
from tests.support.sampling import sampled

pytestmark = needs_node

TAGS = {"p", "h3", "hr", "ul", "ol", "li", "blockquote", "pre", "code", "strong", "em", "span"}
LONG = 50_000

CASES = {
    "plain": ("One\ntwo\n\nthree", "<p>One\ntwo</p><p>three</p>"),
    "emphasis": (
        "*a* **b** ***c*** _d_",
        "<p><em>a</em> <strong>b</strong> <strong><em>c</em></strong> <em>d</em></p>",
    ),
    "no emphasis": ("2*3*4 x_y_z * a * __init__ **", "<p>2*3*4 x_y_z * a * __init__ **</p>"),
    "open marks": ("**never closed and *neither", "<p>**never closed and *neither</p>"),
    "crossed marks": ("*a **b* c**", "<p><em>a **b</em> c**</p>"),
    "code": ("`a*b*` and ``c`d`` and `", "<p><code>a*b*</code> and <code>c`d</code> and `</p>"),
    "escape": (r"\*a\* \`b\`", "<p>*a* `b`</p>"),
    "headings": ("# One\n### Two ##", "<h3>One</h3><h3>Two</h3>"),
    "no heading": ("#one\n####### two", "<p>#one\n####### two</p>"),
    "fence": ("```py\nif x:\n    y\n```\nz", "<pre><code>if x:\n    y</code></pre><p>z</p>"),
    "open fence": ("~~~\n# no heading", "<pre><code># no heading</code></pre>"),
    "table": ("| a | b |\n|---|---|", "<pre><code>| a | b |\n|---|---|</code></pre>"),
    "list": ("- a\n- b\n  more", "<ul><li><p>a</p></li><li><p>b\nmore</p></li></ul>"),
    "numbers": ("3. a\n4. b", "<ol><li><p>a</p></li><li><p>b</p></li></ol>"),
    "inner list": (
        "- a\n  - b\n\n- c",
        "<ul><li><p>a</p><ul><li><p>b</p></li></ul></li><li><p>c</p></li></ul>",
    ),
    "code in a list": (
        "1. a\n\n   ```\n   b\n   ```",
        "<ol><li><p>a</p><pre><code>b</code></pre></li></ol>",
    ),
    "quote": ("> a\n> > b", "<blockquote><p>a</p><blockquote><p>b</p></blockquote></blockquote>"),
    "rule": ("a\n\n---\n* * *", "<p>a</p><hr></hr><hr></hr>"),
    "link": ("[a](http://b/c) [d] (e)", "<p><span http://b/c>a</span> [d] (e)</p>"),
    "windows": ("a\r\nb", "<p>a\nb</p>"),
    "html": ("<b onclick=x>&amp;</b>", "<p><b onclick=x>&amp;</b></p>"),
}  # fmt: skip


def written(node: Any) -> str:
    if isinstance(node, str):
        return node
    assert node["tag"] in TAGS
    url = f" {node['url']}" if node.get("url") else ""
    return f"<{node['tag']}{url}>{''.join(map(written, node['children']))}</{node['tag']}>"


def text_of(nodes: list[Any]) -> str:
    return "".join(n if isinstance(n, str) else text_of(n["children"]) for n in nodes)


def parse(*texts: str) -> list[list[Any]]:
    return call_each("markdown.js", "parse", *((text,) for text in texts))


def test_each_construct_is_understood() -> None:
    found = parse(*(text for text, _ in CASES.values()))
    shown = {name: "".join(map(written, nodes)) for name, nodes in zip(CASES, found, strict=True)}
    assert shown == {name: expected for name, (_, expected) in CASES.items()}


def test_a_list_keeps_its_first_number() -> None:
    [[found]] = parse("7. a\n8. b")
    assert found["start"] == 7


def test_an_address_is_only_text() -> None:
    """No node has an address or an attribute that could be followed."""
    for nodes in parse("[x](javascript:alert(1))", "![x](http://e/y.png)", "<a href=x>y</a>"):
        for node in nodes:
            assert set(node) <= {"tag", "children"}
            assert all(isinstance(n, str) or n["tag"] == "span" for n in node["children"])


def test_random_marks_lose_no_word() -> None:
    source = random.Random(4)
    marks = [
        "*",
        "**",
        "_",
        "`",
        "``",
        "\n",
        "\n\n",
        "- ",
        "> ",
        "# ",
        "[",
        "](",
        ")",
        "~~~",
        " ",
        "|",
        "\\",
    ]
    texts = [
        "".join(source.choice([*marks, *"abcdefgh"]) for _ in range(source.randint(1, 120)))
        for _ in range(1000)
    ]  # fmt: skip
    for text, nodes in zip(texts, parse(*texts), strict=True):
        for node in nodes:
            written(node)
        letters = [c for c in text if c in "abcdefgh"]
        kept = [c for c in text_of(nodes) if c in "abcdefgh"]
        # The words after a fence are its language, and a link's address is beside its text.
        if "~~~" not in text and "](" not in text and "``" not in text:
            assert kept == letters, text


HOSTILE = {
    "stars": "*" * LONG,
    "backticks": "`" * LONG,
    "backticks of each length": "".join("`" * n + " " for n in range(1, 320)),
    "brackets": "[" * LONG,
    "links": "[a](b" * LONG,
    "quotes": "> " * LONG,
    "lists": "- " * LONG,
    "items": "- a\n" * LONG,
    "stairs": "\n".join(" " * n + "- a" for n in range(300)),
    "emphasis": "**a *b " * LONG,
    "underscores": "_a" * LONG,
    "fences": "```\n" * LONG,
    "hashes": "#" * LONG + " #" * LONG,
    "rules": "- " * LONG + "x",
    "backslashes": "\\" * LONG,
    "blank lines": "\n" * LONG,
    "spaces": " " * LONG + "a",
    "tables": "|" * LONG,
}


SAMPLE = ("stars", "backticks of each length", "links", "quotes", "stairs", "emphasis")


@pytest.mark.parametrize("name", sampled(HOSTILE, *SAMPLE))
def test_a_hostile_text_takes_little_time_and_depth(name: str) -> None:
    began = time.monotonic()
    [found] = parse(HOSTILE[name])
    took = time.monotonic() - began
    assert took < scaled(5)  # quadratic work on such a text takes a minute
    assert depth(found) <= 30


def depth(nodes: list[Any]) -> int:
    return max((1 + depth(n["children"]) for n in nodes if not isinstance(n, str)), default=0)


DOCUMENT = """
globalThis.Node = class {
  size = 0;
  setAttribute() {}
  append(...children) { this.size += children.length; }
  toJSON() { return this.size; }
};
const made = () => new Node();
globalThis.document = { createElement: made, createDocumentFragment: made };
"""


@pytest.mark.parametrize("text", sampled(["* ", "a\n\n", "- a\n", "\\!", "["], "a\n\n", "["))
def test_a_text_of_very_many_nodes_is_rendered(text: str) -> None:
    [nodes] = parse("begin " + text * 200_000)
    assert call_each("markdown.js", "render", (nodes,), before=DOCUMENT) == [len(nodes)]
