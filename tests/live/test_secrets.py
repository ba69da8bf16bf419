"""Tests that no key leaks into the log, a response or a file.

Random secrets (the caller's API key, a BYOK key, the operator's provider key) go through every path
of both faces. Then the server's output, its responses and its files are searched for the secrets
and for each piece of WINDOW characters of them.

- Secrets are generated at run time.
- A request that has a secret in a wrong field or header also presents it as a key (see `known`).
- Only the response of auth/api-key may contain a key, because it returns the caller's key.
"""

from __future__ import annotations

import base64
import itertools
import json
import re
import secrets
import signal
import string
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import pytest
import requests

from tests.support import calls
from tests.support import fake as fp
from tests.support.calls import BEGUN, EVENT
from tests.support.fake import FakeProvider
from tests.support.pace import HANG_S
from tests.support.raw_client import RawClient
from tests.support.sampling import sampled
from tests.support.servers import UNTROUBLED, Server

WINDOW = 12
BLOCK = 4096
NATIVE, OPENAI = "/api/v1/completions", "/v1/completions"
FACES = [NATIVE, OPENAI]
ENV = {
    "SLUICE_LOG_LEVEL": "debug",
    "SLUICE_LOG_FORMAT": "json",
    "SLUICE_CONNECT_TIMEOUT_S": "0.2",
    "SLUICE_FIRST_EVENT_TIMEOUT_S": "1",
    "SLUICE_CLIENT_TIMEOUT_S": "1",
    "SLUICE_MAX_BODY": "5000",
}


def marker() -> str:
    """Return a random secret of letters and digits, without a prefix that would identify it."""
    return "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(40))


RUN = re.compile(rf"[A-Za-z0-9_-]{{{WINDOW},}}")
"""A stretch of text that may contain a piece of a secret. Secrets have only these characters."""


class Hunt:
    """A server, the secrets that it knows, and its responses since the last check."""

    def __init__(self, server: Server, operators: dict[str, str]) -> None:
        self.server = server
        self.secrets = {"the caller's key": server.key, **operators}
        self._answers: list[tuple[str, str]] = []
        self._read = 0
        self._seen: set[bytes] = set()

    @property
    def key(self) -> str:
        return self.server.key

    def secret(self, name: str) -> str:
        """Return a new secret, which all later checks search for."""
        self.secrets[name] = marker()
        return self.secrets[name]

    def call(
        self, path: str, body: Any = None, headers: dict[str, str] | None = None, **options: Any
    ) -> requests.Response:
        """Make a call and keep its response. A body that isn't bytes is sent as JSON."""
        sent = {"Authorization": f"Bearer {self.key}", "Content-Type": "application/json"}
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        method = options.pop("method", "GET" if body is None else "POST")
        answer = requests.request(
            method,
            self.server.url + path,
            data=None if body is None else data,
            headers={**sent, **(headers or {})},
            timeout=HANG_S,
            **options,
        )
        self.keep(f"{answer.status_code} of {method} {path[:30]}", answer.text)
        self.keep(f"headers of {method} {path[:30]}", str(answer.headers))
        return answer

    def ask(self, face: str, headers: dict[str, str] | None = None, /, **fields: Any) -> int:
        body = {"model": "fake/m", "prompt": "Say it", **fields}
        return self.call(face, body, headers).status_code

    def raw(self, data: bytes) -> bytes:
        """Send bytes. Keep the response, up to a close or a pause of 0.2 s."""
        with RawClient(self.server.port, timeout=HANG_S) as client:
            client.send(data)
            parts = []
            with suppress(TimeoutError, ConnectionError):
                while part := client.sock.recv(65536):
                    parts.append(part)
                    client.sock.settimeout(0.2)
        answer = b"".join(parts)
        self.keep(f"answer to {data[:30]!r}", answer.decode("latin-1"))
        return answer

    def keep(self, place: str, text: str) -> None:
        self._answers.append((place, text))

    def check(self) -> None:
        """Assert that responses, output and files since the last check contain no secret."""
        output = self.server.output()
        lines = output[self._read :].splitlines()
        self._read = len(output)
        places = self._answers + [(f"log line {where(line)}", line) for line in lines]
        places += self.new_blocks()
        self._answers = []
        found = self.found(places)
        assert not found, "\n".join(found)

    def new_blocks(self) -> Iterator[tuple[str, str]]:
        """Return the blocks of the server's files that no earlier check has seen.

        Each block overlaps the next one, so that a piece of a secret lies in one of them.
        """
        for path in self.server.directory.rglob("*"):
            if path.is_file() and path.name != "output":
                data = path.read_bytes()
                for at in range(0, len(data), BLOCK):
                    block = data[at : at + BLOCK + WINDOW]
                    if block not in self._seen:
                        self._seen.add(block)
                        yield f"file {path.name}", block.decode(errors="replace")

    def found(self, places: Sequence[tuple[str, str]]) -> list[str]:
        names = {piece: name for name, secret in self.secrets.items() for piece in pieces(secret)}
        return [
            f"{name} ({piece[:3]}..., {around(text, piece)}) in {place}"
            for place, text in places
            for name, piece in first_pieces(text, names).items()
        ]


def pieces(text: str) -> Iterator[str]:
    """Return each stretch of WINDOW characters of a text."""
    return (text[at : at + WINDOW] for at in range(len(text) - WINDOW + 1))


def first_pieces(text: str, names: Mapping[str, str]) -> dict[str, str]:
    """Return the first piece of each secret in a text, by the secret's name.

    Args:
        names: The name of the secret for each piece.
    """
    found: dict[str, str] = {}
    for run in RUN.findall(text):
        for piece in pieces(run):
            if piece in names:
                found.setdefault(names[piece], piece)
    return found


def around(text: str, piece: str) -> str:
    """Return the text before a piece, which shows where the piece was found."""
    at = text.index(piece)
    return repr(text[max(0, at - 60) : at])


def where(line: str) -> str:
    try:
        found = json.loads(line)
        return f"{found['logger']}: {found['message'][:20]}"
    except (ValueError, KeyError, TypeError):
        return "that isn't JSON"


@pytest.fixture(scope="module")
def operators() -> dict[str, str]:
    return {name: marker() for name in ("the operator's key", "a key of two lines", "a key in CP")}


@pytest.fixture(scope="module")
def started(fake_process: FakeProvider, operators: dict[str, str]) -> Iterator[Hunt]:
    first, lines, curly = operators.values()
    env = ENV | {
        "FAKE_API_KEY": first,
        "LINES_API_KEY": f"{lines}\n{lines}",
        "CURLY_API_KEY": f"{curly}\u2019",
    }
    with fp.blackhole() as dead:
        rows = "".join(
            calls.toml_row(name, url, api_key_env=f"{env_name}_API_KEY")
            for name, url, env_name in (
                ("fake", fake_process.base_url, "FAKE"),
                ("lines", fake_process.base_url, "LINES"),
                ("curly", fake_process.base_url, "CURLY"),
                ("dead", dead, "FAKE"),
                ("refused", "http://127.0.0.1:1", "FAKE"),
                ("nowhere", "http://nowhere.invalid", "FAKE"),
            )
        )
        # This row sends its key in a header without the word Bearer.
        rows += calls.toml_row(
            "bare", fake_process.base_url, api_key_env="LINES_API_KEY", key_header="api-key"
        )
        with Server(rows, env=UNTROUBLED | env) as server:
            yield Hunt(server, operators)


@pytest.fixture
def hunt(started: Hunt, fake: FakeProvider) -> Hunt:
    return started


@pytest.fixture(params=["the operator's", "the caller's own"])
def own(request: pytest.FixtureRequest, hunt: Hunt) -> dict[str, str]:
    """Return the fields that decide which key the provider gets."""
    return {} if request.param == "the operator's" else {"byok_api_key": hunt.secret("own key")}


def sent_key(hunt: Hunt, own: dict[str, str]) -> str:
    return own.get("byok_api_key") or hunt.secrets["the operator's key"]


# The search itself


def test_the_leak_search_finds_a_piece_of_a_key(hunt: Hunt) -> None:
    half = hunt.key[len(hunt.key) // 2 :]
    assert hunt.found([("here", f"a {half} b")])
    assert hunt.found([("here", hunt.key[5 : 5 + WINDOW])])
    assert not hunt.found([("here", hunt.key[: WINDOW - 1])])
    assert "listening" in hunt.server.output().lower()


# Good calls


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize("stream", [False, True])
def test_no_key_leaks_in_successful_calls(
    hunt: Hunt, fake: FakeProvider, own: dict[str, str], face: str, *, stream: bool
) -> None:
    content = fp.sse(fp.chunks(["Hello"])) if stream else fp.answer(fp.body("Hello"))
    fake.default(content)
    by_header = {"Authorization": "", "X-API-Key": hunt.key}
    assert hunt.ask(face, stream=stream, **own) == 200
    assert hunt.ask(face, by_header, stream=stream, **own) == 200
    own_header = {"X-Provider-API-Key": sent_key(hunt, own)} if own else {}
    assert hunt.ask(face, own_header, stream=stream, fallbacks=["local/pydoc"]) == 200
    expected = f"Bearer {sent_key(hunt, own)}"
    assert {r.headers["authorization"] for r in fake.requests} == {expected}
    hunt.check()


def test_no_key_leaks_in_read_only_endpoints(hunt: Hunt) -> None:
    for path in (
        *("/", "/health", "/ready", "/v1/models", "/v1/models/local/pydoc", "/api/v1/models"),
        *("/api/v1/models/fake", f"{NATIVE}/streams", "/metrics", "/openapi.json"),
    ):
        hunt.call(path)
        hunt.call(path, headers={"Authorization": "", "X-API-Key": hunt.key})
        hunt.call(path, headers={"Origin": "http://elsewhere"}, method="OPTIONS")
    hunt.check()


def test_no_key_leaks_in_the_auth_endpoints(hunt: Hunt) -> None:
    headers = {"X-API-Key": hunt.key, "Authorization": ""}
    path = hunt.server.url + "/api/v1/auth/api-key"
    answer = requests.post(path, headers=headers, timeout=HANG_S)
    assert answer.json() == {"access_token": hunt.key, "token_type": "bearer"}
    assert not hunt.found([("headers", str(answer.headers))])
    bad = hunt.secret("bad key")
    assert hunt.call("/api/v1/auth/api-key", b"", {"X-API-Key": bad}).status_code == 401
    form = f"username={bad}&password={hunt.key}".encode()
    for kind in ("application/x-www-form-urlencoded", "application/json", "text/plain"):
        reply = hunt.call("/api/v1/auth/token", form, {"Content-Type": kind})
        assert reply.status_code == 401
    hunt.check()


# Bad keys


def test_no_unknown_disabled_or_expired_key_leaks(hunt: Hunt) -> None:
    bad, disabled = hunt.secret("bad key"), hunt.server.add_key("disabled", disabled=True)
    expired = hunt.server.add_key("expired", expires="2026-01-02T00:00:00Z")
    hunt.secrets |= {"disabled key": disabled, "expired key": expired}
    for key in (bad, disabled, expired):
        basic = base64.b64encode(f"{key}:{key}".encode()).decode()
        hunt.secrets["a key in Basic"] = basic
        for header in (f"Bearer {key}", f"Bearer {key}=", f"Bearer {key}, {key}", f"Basic {basic}"):
            for path, body in ((NATIVE, {}), (OPENAI, {}), ("/v1/models", None)):
                assert hunt.call(path, body, {"Authorization": header}).status_code == 401
        for header in (key, f"Bearer:{key}", f"Token {key}", f"Bearer {key}\xe9", "Bearer"):
            sent = {"Authorization": header.encode("latin-1"), "X-API-Key": key}
            assert hunt.call(OPENAI, {}, sent).status_code == 401  # type: ignore[arg-type]
        assert hunt.call(OPENAI, {}, {"Authorization": "", "X-API-Key": key}).status_code == 401
    hunt.check()


# Malformed requests, which gunicorn rejects before Sluice sees them

LINE = "POST /v1/completions HTTP/1.1"
HOST = "Host: 127.0.0.1"
MALFORMED = {
    "no_colon": f"{LINE}|{HOST}|Authorization Bearer KEY||",
    "space_in_name": f"{LINE}|{HOST}|Authori zation: Bearer KEY||",
    "space_before_colon": f"{LINE}|{HOST}|Authorization : Bearer KEY||",
    "nul": f"{LINE}|{HOST}|Authorization: Bearer KEY\0||",
    "newline": f"{LINE}|{HOST}|Authorization: Bearer\nKEY||",
    "folded": f"{LINE}|{HOST}|Authorization: Bearer|  KEY||",
    "key_as_name": f"{LINE}|{HOST}|KEY(: x||",
    "too_long": f"{LINE}|{HOST}|Authorization: Bearer {'KEY' * 300}||",
    "in_the_line": f"GET /v1/models?key=KEY nonsense|{HOST}||",
    "in_the_path": f"GET /v1/models?key=KEY HTTP/9.9|{HOST}||",
    "as_the_method": f"KEY(/ / HTTP/1.1|{HOST}||",
    "as_the_line": "KEY||",
    "expect": f"{LINE}|{HOST}|Expect: KEY|Content-Length: 0||",
    "length": f"{LINE}|{HOST}|Content-Length: KEY||",
    "encoding": f"{LINE}|{HOST}|Transfer-Encoding: KEY||",
    "chunk_size": (
        f"{LINE}|{HOST}|Authorization: Bearer GOOD|Content-Type: application/json"
        "|Transfer-Encoding: chunked||KEY|"
    ),
    "chunk_end": (
        f"{LINE}|{HOST}|Authorization: Bearer GOOD|Content-Type: application/json"
        "|Transfer-Encoding: chunked||1|{KEY|"
    ),
    "version_2": "PRI * HTTP/2.0||KEY||",
}


@pytest.mark.parametrize("name", MALFORMED)
def test_no_key_leaks_from_malformed_requests(hunt: Hunt, name: str) -> None:
    text = MALFORMED[name].replace("|", "\r\n").replace("GOOD", hunt.key)
    answer = hunt.raw(text.replace("KEY", hunt.secret("sent key")).encode("latin-1"))
    assert re.match(rb"HTTP/1.1 [45]\d\d ", answer) or answer == b""
    hunt.check()


# Keys in wrong places: the API key of the request, or a BYOK key


@pytest.fixture(params=["key", "byok"])
def known(request: pytest.FixtureRequest, hunt: Hunt) -> tuple[str, dict[str, str]]:
    """Return a secret, and the headers that present it to the server as a key."""
    if request.param == "key":
        return hunt.key, {}
    secret = hunt.secret("own key")
    return secret, {"X-Provider-API-Key": secret}


WRONG: dict[str, Any] = {
    "model": {"model": "KEY"},
    "model_of_a_provider": {"model": "fake/KEY"},
    "model_of_no_provider": {"model": "KEY/m"},
    "model_of_local": {"model": "local/KEY"},
    "provider": {"provider": "KEY"},
    "fallbacks": {"model": "refused/m", "fallbacks": ["KEY"]},
    "fallback_model": {"model": "refused/m", "fallbacks": ["fake/KEY"]},
    "value_of_a_number": {"temperature": "KEY"},
    "value_of_a_flag": {"stream": "KEY"},
    "value_of_a_list": {"stop": ["KEY", 1]},
    "stream_id": {"stream_id": "KEY"},
    "stream_id_that_is_none": {"stream_id": "/KEY/"},
    "name_of_a_field": {"KEY": 1},
    "name_of_a_param": {"additional_params": {"KEY": 1}},
    "value_of_a_param": {"additional_params": {"top_k": "KEY", "seed": "KEY"}},
    "param_that_is_refused": {"additional_params": {"api_key": "KEY"}},
    "conflict": {"user": "KEY", "additional_params": {"user": "KEY2"}},
    "prompt": {"prompt": {"text": "KEY"}},
    "own_key_list": {"byok_api_key": ["KEY"]},
    "own_key_spaced": {"byok_api_key": "KEY KEY"},
    "own_key_accented": {"byok_api_key": "KEY\u00e9"},
    "local_dropped": {"model": "local/pydoc", "user": "KEY", "logit_bias": {"KEY": 1}},
    "local_unknown": {"model": "local/pydoc", "max_tokens": 2, "KEY": 1},
    "local_unknown_param": {
        "model": "local/pydoc",
        "max_tokens": 2,
        "additional_params": {"KEY": 1},
    },
}


@pytest.mark.parametrize("name", WRONG)
def test_no_key_leaks_from_a_wrong_field(
    hunt: Hunt, fake: FakeProvider, known: tuple[str, dict[str, str]], name: str
) -> None:
    secret, headers = known
    fields = json.loads(json.dumps(WRONG[name]).replace("KEY", secret))
    for face in FACES:
        fake.default(fp.answer(fp.body("Hello")))
        assert hunt.ask(face, headers, **fields) in (200, 400, 404)
        fake.default(fp.sse(fp.chunks(["Hello"])))
        assert hunt.ask(face, headers, **({"stream": True} | fields)) in (200, 400, 404)
    hunt.check()


@pytest.mark.parametrize("name", WRONG)
def test_no_other_key_leaks_from_a_wrong_field(hunt: Hunt, fake: FakeProvider, name: str) -> None:
    """The request doesn't present this key, which is recognized by its format only."""
    other = hunt.secrets["a key of another server"] = f"sk-proj-{marker()}"
    capitals = hunt.secrets["the caller's key in capitals"] = hunt.key.upper()
    for secret in (other, capitals):
        fields = json.loads(json.dumps(WRONG[name]).replace("KEY", secret))
        for face in FACES:
            fake.default(fp.answer(fp.body("Hello")))
            assert hunt.ask(face, **fields) in (200, 400, 404)
    hunt.check()


@pytest.mark.parametrize("face", FACES)
def test_no_secret_leaks_from_prompt_user_or_metadata_fields(
    hunt: Hunt, fake: FakeProvider, face: str
) -> None:
    fake.default(fp.answer(fp.body("Hello")))
    secret = hunt.secret("the user's name")
    params = {"metadata": {"a": secret}, "user": secret}
    assert hunt.ask(face, additional_params=params) == 200
    assert hunt.ask(face, prompt=secret) == 200
    assert fake.requests[0].json["metadata"] == {"a": secret}
    hunt.check()


@pytest.mark.parametrize("face", FACES)
def test_no_key_leaks_from_id_strict_or_user_agent_headers(
    hunt: Hunt, fake: FakeProvider, known: tuple[str, dict[str, str]], face: str
) -> None:
    secret, headers = known
    fake.default(fp.answer(fp.body("Hello")))
    for name in ("X-Stream-ID", "X-Request-ID", "X-Sluice-Strict", "User-Agent"):
        for value in (secret, f"/{secret}"):
            for stream in (False, True):
                hunt.ask(face, {**headers, name: value}, stream=stream)
            hunt.ask(face, {**headers, name: value}, model="none")
    hunt.check()


@pytest.mark.parametrize("face", FACES)
def test_no_key_leaks_from_the_content_type_header(
    hunt: Hunt, known: tuple[str, dict[str, str]], face: str
) -> None:
    secret, headers = known
    for value in (secret, f"text/{secret}", f"application/json; charset={secret}"):
        assert hunt.call(face, {}, {**headers, "Content-Type": value}).status_code in (400, 415)
    hunt.check()


def test_no_key_leaks_from_the_url_path(hunt: Hunt, known: tuple[str, dict[str, str]]) -> None:
    secret, headers = known
    for path in (
        *(f"/{secret}", f"/v1/{secret}", f"/api/v1/{secret}", f"/v1/models/{secret}"),
        *(f"/v1/models/local/{secret}", f"/api/v1/models/{secret}"),
        f"/api/v1/models/local/{secret}",
    ):
        assert hunt.call(path, headers=headers).status_code == 404
        assert hunt.call(path, b"", headers, method="DELETE").status_code in (404, 405)
    for face in FACES:
        path = f"{face}/stop-stream/{secret}"
        assert hunt.call(path, b"", headers).status_code == 404
        assert hunt.call(path, None, headers).status_code == 405
    hunt.check()


def test_no_key_leaks_from_the_query_string(hunt: Hunt, fake: FakeProvider) -> None:
    secret = hunt.secret("key in the query")
    fake.default(fp.answer(fp.body("Hello")))
    body = {"model": "fake/m", "prompt": "a"}
    for face in FACES:
        path = f"{face}?api_key={secret}&key={hunt.key}"
        assert hunt.call(path, body).status_code == 200
        assert hunt.call(path, body, {"Authorization": ""}).status_code == 401
        assert hunt.call(path, b"{").status_code == 400
        assert hunt.call(f"{face}/no/thing?key={secret}", body).status_code == 404
    hunt.check()


@pytest.mark.parametrize("face", FACES)
def test_no_key_leaks_from_a_broken_body(hunt: Hunt, face: str) -> None:
    secret = hunt.secret("key in the body")
    for text in (
        *('{"byok_api_key": "KEY', '{"byok_api_key": KEY}', '["KEY"]', '"KEY"', "KEY"),
        *('{"a": "KEY", "a": "KEY"', "byok_api_key=KEY&prompt=a", '{"KEY": "\\x"}'),
        '{"prompt": "a", "byok_api_key": "KEY", "temperature": nan}',
        '{"prompt": "' + "KEY" * 300 + '"}',
    ):
        data = text.replace("KEY", secret).encode()
        assert hunt.call(face, data).status_code in (400, 413)
        assert hunt.call(face, b"\xff" + data).status_code in (400, 413)
    hunt.check()


def test_no_key_leaks_from_a_body_that_never_ends(hunt: Hunt) -> None:
    secret = hunt.secret("key in half a body")
    with hunt.server.client() as client:
        head = {"Content-Type": "application/json", "Content-Length": "4000"}
        client.request("POST", OPENAI, None, head)
        client.send(f'{{"byok_api_key": "{secret}"'.encode())
        assert client.read_head().status == 408
        hunt.keep("the answer to half a body", client.body().decode())
    hunt.check()


# Providers that repeat the key

STATUSES = [400, 401, 402, 403, 404, 409, 413, 422, 429, 500, 503]
LEAKY_BODIES: dict[str, Any] = {
    "message": {"error": {"message": "You sent 'Authorization: Bearer KEY'. Why?", "code": "x"}},
    "bare": {"error": {"message": "KEY is not a key", "code": "x"}},
    "code": {"error": {"message": "no", "code": "KEY"}},
    "type": {"error": {"message": "no", "type": "bad_key:KEY"}},
    "flat": {"message": "key KEY is refused", "code": "KEY"},
    "detail": {"detail": [{"msg": "headers: {'authorization': 'Bearer KEY'}", "type": "KEY"}]},
    "quoted": {"error": '{"headers": {"authorization": "Bearer KEY"}}'},
    "other": {"nothing": "KEY"},
    "long": {"error": {"message": "a" * 980 + "KEY"}},
    "first_half": {"error": {"message": "Incorrect key: FIRST********"}},
    "second_half": {"error": {"message": "Incorrect key: ****SECOND"}},
    "both_ends": {"error": {"message": "Incorrect key: FIRST********SECOND"}},
    "text": b"Forbidden: KEY",
    "text_cut": b"The key that was sent, as we are happy to tell, was not right: KEY",
    "html": b"<html><h1>Error</h1><pre>authorization: Bearer KEY</pre>",
    "headers_alone": {"error": {"message": "no"}},
}


def leaky_body(name: str, secret: str) -> Any:
    half = len(secret) // 2
    pieces = {"KEY": secret, "FIRST": secret[:half], "SECOND": secret[half:]}
    content = LEAKY_BODIES[name]
    text = content.decode() if isinstance(content, bytes) else json.dumps(content)
    for word, piece in pieces.items():
        text = text.replace(word, piece)
    return text.encode() if isinstance(content, bytes) else json.loads(text)


@pytest.mark.parametrize("name", sampled(LEAKY_BODIES, *list(LEAKY_BODIES)[::2]))
def test_no_key_leaks_from_an_error_answer_of_a_provider(
    hunt: Hunt, fake: FakeProvider, own: dict[str, str], name: str
) -> None:
    secret = sent_key(hunt, own)
    headers = {
        "Retry-After": secret,
        "WWW-Authenticate": f'Bearer realm="{secret}"',
        "X-Request-ID": secret,
        "Location": f"/{secret}",
    }
    content = leaky_body(name, secret)
    for number, status in enumerate(STATUSES):
        fake.script(fp.error(status, content, headers))
        assert hunt.ask(FACES[number % 2], stream=number % 3 == 0, **own) >= 400
    fake.script(fp.error(302, content, headers))
    assert hunt.ask(OPENAI, **own) == 502
    hunt.check()


@pytest.mark.parametrize("name", sampled(LEAKY_BODIES, *list(LEAKY_BODIES)[::2]))
def test_no_key_leaks_from_a_provider_error_sent_with_status_200(
    hunt: Hunt, fake: FakeProvider, own: dict[str, str], name: str
) -> None:
    # The error comes as a whole body, and before and after a stream's first text.
    faces = itertools.cycle(FACES)
    secret = sent_key(hunt, own)
    content = leaky_body(name, secret)
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    for stream in (False, False, True, True):
        fake.script(fp.answer(content))
        assert hunt.ask(next(faces), stream=stream, **own) == 502
    for before in (fp.sse([], done=False, complete=False), BEGUN):
        for frame in (
            b"data: " + data + b"\n\n",
            b"event: error\ndata: " + data + b"\n\n",
            b"data: " + data + b"\n\n: " + secret.encode() + b"\n\n",
            b"data: " + data[: len(data) - 20] + b"\n\n",
        ):
            fake.script([*before, fp.event(frame), fp.last_chunk()])
            hunt.ask(next(faces), stream=True, **own)
    hunt.check()


def test_no_key_leaks_from_ids_and_headers_of_a_provider_response(
    hunt: Hunt, fake: FakeProvider
) -> None:
    secret = hunt.secrets["the operator's key"]
    body = fp.body("Hello") | {"id": secret, "model": secret, "system_fingerprint": secret}
    fake.script(fp.answer(body, headers={"X-Request-ID": secret, "Set-Cookie": secret}))
    assert hunt.ask(NATIVE) == 200
    frames = [frame | {"id": secret, "model": secret} for frame in fp.chunks(["Hello"])]
    frames[-1]["choices"][0]["finish_reason"] = secret
    fake.script(fp.sse(frames, headers={"X-Request-ID": secret}))
    assert hunt.ask(OPENAI, stream=True) == 200
    hunt.check()


# Calls that fail or end early


@pytest.mark.parametrize("name", ["dead", "refused", "nowhere", "curly", "lines", "bare"])
def test_no_key_leaks_in_calls_that_never_reach_a_provider(
    hunt: Hunt, own: dict[str, str], name: str
) -> None:
    # `curly`, `lines` and `bare` have keys that can't be sent in a header.
    for face in FACES:
        status = hunt.ask(face, model=f"{name}/m", stream=face == OPENAI, **own)
        reached = bool(own) and name in ("curly", "lines", "bare")
        assert status == 400 if reached else status >= 500
    hunt.check()


ODD = [
    ("mute", [fp.hold()]),
    ("closed", [fp.close()]),
    ("reset", [fp.reset()]),
    ("half_headers", [fp.send(b"HTTP/1.1 200 OK\r\nX-Key: KEY"), fp.close()]),
    ("no_http", [fp.send(b"KEY\r\n\r\n"), fp.close()]),
    ("bad_length", [fp.send(b"HTTP/1.1 200 OK\r\nContent-Length: KEY\r\n\r\n{}"), fp.close()]),
    ("bad_chunk", [fp.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nKEY\r\n")]),
    ("bad_header", [fp.send(b"HTTP/1.1 200 OK\r\nKEY\r\n\r\n"), fp.close()]),
    ("long_header", [fp.send(b"HTTP/1.1 200 OK\r\nX: " + b"KEY" * 2000 + b"\r\n"), fp.close()]),
]


@pytest.mark.parametrize(("name", "steps"), ODD, ids=[name for name, _ in ODD])
def test_no_key_leaks_from_a_broken_http_response_of_a_provider(
    hunt: Hunt, fake: FakeProvider, own: dict[str, str], name: str, steps: list[fp.Step]
) -> None:
    secret = sent_key(hunt, own).encode()
    fake.default([step._replace(data=step.data.replace(b"KEY", secret)) for step in steps])
    for face in [OPENAI] if name == "mute" else FACES:
        assert hunt.ask(face, stream=face == OPENAI, **own) in (502, 504)
    hunt.check()


@pytest.mark.parametrize("face", FACES)
def test_no_key_leaks_in_a_stopped_stream(
    hunt: Hunt, fake: FakeProvider, own: dict[str, str], face: str
) -> None:
    fake.default([*BEGUN, fp.hold()])
    with begin(hunt, face, stream_id="mine", **own) as client:
        assert hunt.call(f"{face}/stop-stream/mine", b"").status_code == 200
        assert hunt.call(f"{NATIVE}/streams").status_code == 200
        assert hunt.ask(face, stream_id="other", model="none", **own) == 404
        hunt.keep("a stopped stream", "\n".join(frame.text for frame in client.frames()))
    hunt.check()


@pytest.mark.parametrize("face", FACES)
def test_no_key_leaks_in_a_stream_whose_client_disconnects(
    hunt: Hunt, fake: FakeProvider, own: dict[str, str], face: str
) -> None:
    fake.default([*BEGUN, fp.repeat(EVENT.data, 0.01)])
    first, second = begin(hunt, face, **own), begin(hunt, face, **own)
    first.reset()
    second.close()
    fake.wait_closed(2)
    calls.wait_active(hunt.server, 0)
    hunt.check()


def begin(hunt: Hunt, face: str, **fields: Any) -> RawClient:
    """Start a stream and read it up to its first text. Return its client."""
    client = hunt.server.client()
    client.request("POST", face, {"model": "fake/m", "prompt": "a", "stream": True, **fields})
    hunt.keep("a stream's headers", str(client.read_head()))
    while "Hello" not in (frame := client.frame()).text:
        hunt.keep("a stream's beginning", frame.text)
    return client


def test_no_key_leaks_in_a_shutdown(hunt: Hunt, fake: FakeProvider) -> None:
    # This is the last test, because it stops the server.
    fake.default([*BEGUN, fp.hold()])
    streams = [begin(hunt, face, byok_api_key=hunt.secret("own key")) for face in FACES]
    hunt.server.signal(signal.SIGINT)  # like TERM, but with a shorter drain
    for client in streams:
        rest = "\n".join(frame.text for frame in client.frames())
        assert "shutting down" in rest
        hunt.keep("a stream that was shut down", rest)
        client.close()
    assert hunt.server.wait_exit() == 0
    hunt.check()
