"""Tests that server/http1.py reads requests and writes responses exactly as gunicorn does."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
from gunicorn.config import Config
from gunicorn.http import wsgi
from gunicorn.http.message import Request
from gunicorn.http.unreader import IterUnreader
from hypothesis import example, given
from hypothesis import strategies as st

from server.http1 import FastResponse, RequestHead, http_date
from server.worker import Worker
from tests.support.sampling import sampled

PROXY, STRANGER = ("127.0.0.1", 1234), ("203.0.113.9", 1234)
POST = b"POST /v1/completions HTTP/1.1\r\n"


def settings(**given: Any) -> Config:
    found = Config()
    for name, value in ({"http_parser": "python"} | given).items():
        found.set(name, value)
    return found


def read(kind: type[Request], sent: bytes, peer: Any, **given: Any) -> Any:
    """Parse a request with a class. Return all that it found, or its exception."""
    try:
        found = kind(settings(**given), IterUnreader([sent]), peer)
        body = found.body.read()
    except Exception as error:  # noqa: BLE001 - gunicorn must raise the same one
        return type(error), str(error)
    line = (found.method, found.uri, found.path, found.query, found.fragment, found.version)
    flags = (found.scheme, found.must_close, found.should_close(), found._expected_100_continue)
    return line, found.headers, flags, body, found.unreader.read(8192)


def read_the_same(sent: bytes, peer: Any = STRANGER, **given: Any) -> Any:
    ours = read(RequestHead, sent, peer, **given)
    assert ours == read(Request, sent, peer, **given)
    return ours


def head(*lines: bytes, first: bytes = POST, body: bytes = b"") -> bytes:
    return first + b"".join(line + b"\r\n" for line in lines) + b"\r\n" + body


HOST = b"Host: sluice.test"
ODD_HEADS = {
    "usual": head(HOST, b"Content-Type: application/json", b"Content-Length: 2", body=b"{}"),
    "another request after it": head(HOST, b"Content-Length: 2", body=b"{}GET / HTTP/1.1\r\n\r\n"),
    "incomplete body": head(HOST, b"Content-Length: 9", body=b"{}"),
    "no fields": POST + b"\r\n",
    "two hosts": head(HOST, HOST),
    "two lengths": head(b"Content-Length: 2", b"Content-Length: 3", body=b"{}"),
    "repeated field": head(b"Accept: a", b"accept: b"),
    "an invalid length": head(b"Content-Length: +2", body=b"{}"),
    "a length in other digits": head("Content-Length: \u00b2".encode("latin-1"), body=b"{}"),
    "chunks": head(b"Transfer-Encoding: chunked", body=b"2\r\n{}\r\n0\r\n\r\n"),
    "chunks with a trailer": head(
        b"Transfer-Encoding: chunked", body=b"0\r\nX-Sum: 1\r\nX-Sum: 2\r\n\r\n"
    ),
    "a forbidden trailer": head(b"Transfer-Encoding: chunked", body=b"0\r\nHost: x\r\n\r\n"),
    "chunks and a length": head(b"Transfer-Encoding: chunked", b"Content-Length: 2"),
    "an unknown coding": head(b"Transfer-Encoding: br"),
    "folded": head(b"X-Long: a", b" b"),
    "a space before the colon": head(b"Host : x"),
    "no colon": head(b"Host"),
    "no name": head(b": x"),
    "underscore": head(b"X_Forwarded_For: 1.2.3.4"),
    "underscore in a length": head(b"Content_Length: 2", body=b"{}"),
    "letters beyond ASCII in a name": head("Stra\u00dfe: x".encode("latin-1")),
    "letters beyond ASCII in a value": head("X-Name: Stra\u00dfe".encode("latin-1")),
    "a NUL": head(b"X-Name: a\0b"),
    "a bare CR": head(b"X-Name: a\rHost: b"),
    "a bare LF": head(b"X-Name: a\nHost: b"),
    "spaces around a value": head(b"X-Name: \t a b \t"),
    "an empty value": head(b"X-Name:"),
    "expect": head(b"Expect: 100-continue", b"Content-Length: 0"),
    "unknown expectation": head(b"Expect: tea"),
    "https by a proxy": head(b"X-Forwarded-Proto: https", HOST),
    "https and http": head(b"X-Forwarded-Proto: https", b"X-Forwarded-Ssl: off"),
    "script name": head(b"Script-Name: /x"),
    "close": head(HOST, b"Connection: Close"),
    "many": head(*(b"X-%d: 1" % number for number in range(100))),
    "too many": head(*(b"X-%d: 1" % number for number in range(101))),
    "long": head(b"X-Long: " + b"x" * 8100),
    **{
        f"a line of {size} bytes": head(b"X-Long: " + b"x" * (size - len("X-Long: ")))
        for size in range(8186, 8193)
    },
    **{
        f"a line of {size} bytes after another": head(HOST, b"A: " + b"x" * (size - len("A: ")))
        for size in range(8186, 8193)
    },
    "longer": head(b"X-Long: " + b"x" * 8200),
    "long together": head(*(b"X-%d: " % number + b"x" * 4000 for number in range(5))),
    **{
        f"first line {number}": head(HOST, first=line + b"\r\n")
        for number, line in enumerate(
            (
                *(b"GET / HTTP/1.1", b"GET /a?b=c#d HTTP/1.1", b"GET //a/b HTTP/1.1"),
                *(b"GET /a//b HTTP/1.1", b"GET /a/../b HTTP/1.1", b"GET /%41 HTTP/1.1"),
                *(b"GET http://x/a HTTP/1.1", b"OPTIONS * HTTP/1.1", b"CONNECT x:1 HTTP/1.1"),
                *(b"get /a HTTP/1.1", b"GET /a HTTP/1.0", b"GET /a HTTP/2.0", b"GET /a HTTP/1.10"),
                *(b"GET  /a HTTP/1.1", b"GET /a  HTTP/1.1", b"GET /a", b"GET a HTTP/1.1", b"GET"),
                *(b"DELETE /a HTTP/1.1", b"GET /a\x7f HTTP/1.1", b"GET /a/ HTTP/1.1", b"G@T /a b"),
            )
        )
    },
}


@pytest.mark.parametrize("peer", [PROXY, STRANGER, ""], ids=["proxy", "stranger", "unix"])
@pytest.mark.parametrize("sent", ODD_HEADS.values(), ids=ODD_HEADS)
def test_a_request_is_read_exactly_as_by_gunicorn(sent: bytes, peer: Any) -> None:
    read_the_same(sent, peer)


@pytest.mark.parametrize(
    "given",
    [
        {"limit_request_fields": 1},
        {"limit_request_field_size": 20},
        {"limit_request_line": 20},
        {"permit_obsolete_folding": True},
        {"strip_header_spaces": True},
        {"header_map": "dangerous"},
        {"header_map": "drop"},
        {"secure_scheme_headers": {"X-PROTO": "https"}},
        {"casefold_http_method": True},
        {"forwarded_allow_ips": "*"},
    ],
    ids=str,
)
@pytest.mark.parametrize(
    "sent", sampled(ODD_HEADS.values(), *list(ODD_HEADS.values())[::2]), ids=ODD_HEADS
)
def test_a_request_is_read_exactly_as_by_gunicorn_under_any_settings(
    sent: bytes, given: dict[str, Any]
) -> None:
    read_the_same(sent, **given)


PIECES = st.sampled_from(
    b"Host,X-A,content-length,Transfer-Encoding,chunked,Expect,100-continue,X-Forwarded-Proto,"
    b"https,GET ,/a, HTTP/1.1,:,: ,\r\n,\n,\r, ,\t,1,_,a,\0,\xe9,?,%2f,\r\n\r\n".split(b",")
)


@given(st.lists(PIECES, max_size=24).map(b"".join), st.sampled_from([b"", POST, b"GET /"]))
@example(b"Host: a\r\n\r\n", POST)
def test_arbitrary_bytes_are_read_exactly_as_by_gunicorn(sent: bytes, start: bytes) -> None:
    read_the_same(start + sent + b"\r\n\r\n", PROXY)


def test_a_usual_head_skips_the_parsing_steps_of_gunicorn(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any) -> None:
        raise AssertionError

    for name in ("parse_headers", "_apply_header_policy"):
        monkeypatch.setattr(Request, name, never)
    found = read(RequestHead, ODD_HEADS["usual"], STRANGER)
    assert found[1] == [
        ("HOST", "sluice.test"),
        ("CONTENT-TYPE", "application/json"),
        ("CONTENT-LENGTH", "2"),
    ]


# Responses


class Wire:
    """A client's socket that keeps the data sent to it."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []

    def sendall(self, data: bytes) -> None:
        self.sent.append(data)


def written(
    kind: type[wsgi.Response],
    parts: Iterable[Any],
    status: str,
    fields: list[tuple[Any, Any]],
    first: bytes,
) -> tuple[Any, Wire]:
    wire = Wire()
    request = RequestHead(settings(), IterUnreader([head(HOST, first=first)]), STRANGER)
    response = kind(request, wire, settings())
    try:
        response.start_response(status, fields)
        for part in parts:
            response.write(part)
        response.close()
        outcome: Any = response.should_close()
    except Exception as error:  # noqa: BLE001 - gunicorn must raise the same one
        outcome = type(error), str(error)
    return (outcome, response.sent, undated(b"".join(wire.sent))), wire


def undated(sent: bytes) -> bytes:
    return re.sub(rb"Date: [^\r]*", b"Date:", sent)


SIX = ("Content-Length", "6")


@pytest.mark.parametrize(
    "first", [POST, b"HEAD /a HTTP/1.1\r\n", b"GET /a HTTP/1.0\r\n"], ids=["POST", "HEAD", "1.0"]
)
@pytest.mark.parametrize("status", ["200 OK", "204 NO CONTENT", "304 NOT MODIFIED", "404 X", "Ok"])
@pytest.mark.parametrize(
    ("fields", "parts"),
    [
        ([SIX], [b"abcdef"]),
        ([SIX, ("X-A", "1"), ("X-A", "2")], [b"abc", b"def"]),
        ([SIX], [b"abcdefgh"]),
        ([SIX], [b"abc"]),
        ([SIX], []),
        ([("Content-Length", "0")], [b""]),
        ([], [b"abc", b"", b"def"]),
        ([], []),
        ([("X-A", " a ")], [b"abc"]),
        ([("X-A", "a\r\nX-B: b")], [b"abc"]),
        ([("X-A", "a\nb")], [b"abc"]),
        ([("X A", "a")], [b"abc"]),
        ([("", "a")], [b"abc"]),
        ([("X-A", "\u20ac")], [b"abc"]),
        ([("X-A", "\xe9")], [b"abc"]),
        ([("Connection", "close"), ("Server", "x"), ("Date", "x"), SIX], [b"abcdef"]),
        ([("Transfer-Encoding", "chunked")], [b"abc"]),
    ],
)
def test_a_response_is_written_exactly_as_by_gunicorn(
    parts: list[Any], fields: list[tuple[Any, Any]], status: str, first: bytes
) -> None:
    ours, _ = written(FastResponse, parts, status, fields, first)
    theirs, _ = written(wsgi.Response, parts, status, fields, first)
    assert ours == theirs


@pytest.mark.parametrize(("fields", "part"), [([], "text"), ([("X-A", 1)], b"abc")])
def test_a_response_of_wrong_types_raises_type_error_and_sends_nothing(
    fields: list[tuple[str, Any]], part: Any
) -> None:
    (outcome, _, sent), _ = written(FastResponse, [part], "200 OK", fields, POST)
    assert outcome[0] is TypeError
    assert sent == b""


def test_http_date_writes_the_format_of_http() -> None:
    assert http_date(1_775_563_200) == "Tue, 07 Apr 2026 12:00:00 GMT"


# The WSGI environment


@pytest.fixture
def make_worker(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Worker]]:
    workers: list[Worker] = []

    def make(**env: str) -> Worker:
        for name, value in env.items():
            monkeypatch.setenv(name, value)
        config = settings()
        config.env_orig = env
        workers.append(Worker(1, 1, [], None, 30, config, None))
        return workers[-1]

    yield make
    for worker in workers:
        worker.tmp.close()


NOT_COMPARED = {"wsgi.file_wrapper", "wsgi.early_hints", "wsgi.errors"}
"""Variables with new objects in each environment, and one that Sluice has no use for."""
LISTENER = ("127.0.0.1", 8000)


@pytest.mark.parametrize(
    ("listener", "client"),
    [
        (LISTENER, PROXY),
        (("::1", 8000, 0, 0), ("::1", 5, 0, 0)),
        ("/run/x.sock", ""),
        (LISTENER, b"x"),
    ],
)
@pytest.mark.parametrize("script_name", ["", "/v1"])
def test_the_wsgi_environment_equals_that_of_gunicorn(
    make_worker: Callable[..., Worker], script_name: str, listener: Any, client: Any
) -> None:
    worker = make_worker(**({"SCRIPT_NAME": script_name} if script_name else {}))

    class Client:
        send = staticmethod(len)

    def environment(
        create: Callable[..., tuple[Any, dict[str, Any]]], *args: Any, **named: Any
    ) -> Any:
        try:
            found = create(*args, **named)[1] | {"wsgi.multithread": True}
        except Exception as error:  # noqa: BLE001 - both must raise an equal error
            return type(error), str(error)
        return {name: value for name, value in found.items() if name not in NOT_COMPARED}

    compared = 0
    for name, sent in ODD_HEADS.items():
        try:
            request = RequestHead(settings(), IterUnreader([sent]), client)
        except Exception:  # noqa: BLE001 - a refused request has no environment
            continue
        expected = environment(wsgi.create, request, Client, client, listener, settings())
        assert environment(worker.create, listener, request, Client, client) == expected, name
        compared += 1
    assert compared > 10
