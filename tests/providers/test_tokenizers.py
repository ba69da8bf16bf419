"""tokenizers.py: the requests to hosts' tokenizer endpoints, and what their answers mean."""

from __future__ import annotations

from typing import Any

import pytest

from completion import LlamaCppPiece, TokenSource
from errors import UpstreamError
from keys.redaction import Secret
from providers import tokenizers
from providers.base import Provider, Target
from providers.tokenizers import FORMATS, Endpoint

LLAMACPP, VLLM = FORMATS["llamacpp"], FORMATS["vllm"]


def target(base_url: str, query: str = "") -> Target:
    return Target(Provider(name="x", base_url=base_url, query=query), "org/m", Secret("sk-1"))


@pytest.mark.parametrize(
    ("base_url", "query", "url"),
    [
        ("http://h:1/v1", "", "http://h:1/tokenize"),
        ("http://h:1/v1/", "", "http://h:1/tokenize"),
        ("http://h:1/a/v1", "q=1", "http://h:1/a/tokenize?q=1"),
        ("http://h:1/v11", "", "http://h:1/v11/tokenize"),
    ],
)
def test_the_endpoints_are_beside_v1(base_url: str, query: str, url: str) -> None:
    found = tokenizers.request(target(base_url, query), "/tokenize", {"prompt": "a"})
    assert (found.method, found.url) == ("POST", url)
    assert found.body == b'{"model":"org/m","prompt":"a"}'
    assert found.headers["Authorization"] == "Bearer sk-1"


def test_the_info_is_a_get_without_a_body() -> None:
    found = tokenizers.request(target("http://h/v1"), "/tokenizer_info")
    assert (found.method, found.url, found.body) == ("GET", "http://h/tokenizer_info", b"")


@pytest.mark.parametrize(
    ("endpoint", "status", "body", "absent"),
    [
        ("/tokenize", 404, b'{"detail": "Not Found"}', True),
        ("/tokenize", 404, b"<html>", True),
        ("/tokenize", 404, b"", True),
        ("/tokenize", 405, b"", True),
        ("/tokenize", 501, b"{}", True),
        ("/tokenize", 404, b'{"error": {"message": "no such model", "code": 404}}', False),
        ("/tokenize", 404, b'{"object": "error", "message": "no such model"}', False),
        ("/tokenize", 400, b"", False),
        ("/tokenize", 500, b"", False),
        ("/tokenizer_info", 404, b'{"error": {"message": "File Not Found"}}', True),
        ("/tokenizer_info", 403, b"", False),
    ],
)
def test_a_missing_endpoint_is_told_from_a_missing_model(
    endpoint: Endpoint, status: int, body: bytes, absent: bool
) -> None:
    assert tokenizers.is_absent(endpoint, status, body) is absent


@pytest.mark.parametrize(
    ("source", "vllm", "llamacpp"),
    [
        ({"text": "a"}, "", ""),
        ({"messages": []}, "", "messages"),
        ({"text": "a", "pieces": True}, "with_pieces", ""),
        ({"text": "a", "parse_special": False}, "parse_special", ""),
        ({"text": "a", "strings": True}, "", ""),
    ],
)
def test_each_format_names_what_it_lacks(source: dict[str, Any], vllm: str, llamacpp: str) -> None:
    found = TokenSource(add_special=True, **source)
    assert (VLLM.lacks(found), LLAMACPP.lacks(found)) == (vllm, llamacpp)


def test_pieces_of_llamacpp_have_a_string_each() -> None:
    found = LLAMACPP.tokens(
        b'{"tokens": [{"id": 5, "piece": " a"}, {"id": 6, "piece": [195, 65]}]}'
    )
    assert found.ids == [5, 6]
    assert found.strings == [" a", "bytes:\\xc3A"]
    assert found.pieces == [LlamaCppPiece(5, " a"), LlamaCppPiece(6, [195, 65])]


def test_a_llamacpp_server_without_pieces_gives_ids_only() -> None:
    found = LLAMACPP.tokens(b'{"tokens": [5, 6]}')
    assert (found.ids, found.strings, found.pieces) == ([5, 6], None, None)


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b"\xff", b'{"content": 1, "prompt": 1}'])
def test_an_invalid_answer_is_an_upstream_error(body: bytes) -> None:
    for form in FORMATS.values():
        for read in (form.tokens, form.text):
            with pytest.raises(UpstreamError):
                read(body)


def test_the_info_must_be_an_object() -> None:
    assert tokenizers.info(b'{"eos_token": "x"}') == {"eos_token": "x"}
    with pytest.raises(UpstreamError):
        tokenizers.info(b"[]")
