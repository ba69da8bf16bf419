"""model_fetch.py: the requests for a host's models, with a fake host."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Any

import pytest

from errors import SluiceError, UpstreamError
from keys.redaction import Secret
from providers import model_fetch
from providers.base import Provider, Target
from providers.model_fetch import FoundItself, fetch
from providers.transport.exchange import Transport
from tests.support import fake as fp
from tests.support.fake import FakeProvider
from tests.support.forward_proxy import ForwardProxy
from tests.support.pace import scaled
from tests.support.servers import free_port

KEY = "sk-test-0123456789abcdef"


@pytest.fixture
def transport() -> Iterator[Transport]:
    with closing(Transport()) as made:
        yield made


def target(base_url: str, key: str | None = KEY, **fields: Any) -> Target:
    row = Provider(**{"name": "sim", "api_key_env": "SIM_KEY"} | fields | {"base_url": base_url})
    return Target(row, "models", None if key is None else Secret(key))


def listing(*names: str, **fields: Any) -> Sequence[fp.Step]:
    return fp.answer({"data": [{"id": name, "name": name} for name in names]} | fields)


def names(found: model_fetch.Listing) -> list[str]:
    return [model.id for model in found.models]


def test_a_list_is_asked_for_with_the_headers_of_calls(
    transport: Transport, fake: FakeProvider
) -> None:
    fake.script(listing("a", "b"))
    found = fetch(transport, target(fake.base_url, query="v=1"), "me")
    assert names(found) == ["a", "b"]
    assert found.complete
    [request] = fake.requests
    assert (request.method, request.path, request.body) == ("GET", "/v1/models?v=1", b"")
    assert request.headers["authorization"] == f"Bearer {KEY}"
    assert request.headers["x-sluice-instance"] == "me"
    assert "content-type" not in request.headers


@pytest.mark.parametrize(
    ("dialect", "header"),
    [("anthropic", "x-api-key"), ("google", "x-goog-api-key"), ("cohere", "authorization")],
)
def test_each_dialect_sends_its_own_header_and_gets_all_pages(
    transport: Transport, fake: FakeProvider, dialect: str, header: str
) -> None:
    cursors = {"has_more": True, "last_id": "a", "nextPageToken": "a", "next_page_token": "a"}
    for page in ({"models": [{"name": "a"}], "data": [{"id": "a"}]} | cursors,
                 {"models": [{"name": "b"}], "data": [{"id": "b"}]}):  # fmt: skip
        fake.script(fp.answer(page))
    fields = {"key_header": "x-goog-api-key"} if dialect == "google" else {}
    found = fetch(transport, target(fake.base_url, dialect=dialect, **fields))
    assert (names(found), found.complete) == (["a", "b"], True)
    for request in fake.requests:
        assert request.headers[header].removeprefix("Bearer ") == KEY
        assert KEY not in request.path
    assert "=a" in fake.requests[1].path


def test_a_cursor_that_comes_again_ends_the_list(transport: Transport, fake: FakeProvider) -> None:
    fake.default(fp.answer({"models": [{"name": "a"}], "nextPageToken": "again"}))
    found = fetch(transport, target(fake.base_url, dialect="google"))
    assert (names(found), found.complete) == (["a"], False)
    assert len(fake.requests) == 2


def test_the_pages_and_the_models_of_a_list_are_bounded(
    transport: Transport, fake: FakeProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_fetch, "MOST_PAGES", 3)
    for number in range(9):
        page = {"models": [{"name": f"m{number}"}], "nextPageToken": f"p{number}"}
        fake.script(fp.answer(page))
    found = fetch(transport, target(fake.base_url, dialect="google"))
    assert (names(found), found.complete) == (["m0", "m1", "m2"], False)
    fake.reset()
    many = [f"m{number}" for number in range(model_fetch.MOST_MODELS + 1)]
    fake.script(listing(*many))
    found = fetch(transport, target(fake.base_url))
    assert (names(found), found.complete) == (many[:-1], False)


def test_a_body_that_is_too_large_is_an_error(
    transport: Transport, fake: FakeProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_fetch, "MAX_BYTES", 2000)
    fake.script(listing(*(f"model-{number}" for number in range(100))))
    with pytest.raises(UpstreamError):
        fetch(transport, target(fake.base_url))


@pytest.mark.parametrize(
    "steps",
    [
        [fp.hold()],
        [fp.head(200, {"Content-Type": "application/json"}), fp.repeat(b" ", 0.01)],
    ],
    ids=["silent", "trickling"],
)
def test_a_host_that_takes_too_long_is_given_up(
    transport: Transport, fake: FakeProvider, steps: Sequence[fp.Step]
) -> None:
    fake.script(steps)
    before = time.monotonic()
    with pytest.raises(SluiceError):
        fetch(transport, target(fake.base_url), limit=0.3)
    assert time.monotonic() - before < scaled(3)


@pytest.mark.parametrize(
    "steps",
    [fp.error(401), fp.error(404), fp.error(500), fp.answer("no list"), fp.answer({"a": 1}),
     [fp.head(200, {"Content-Length": "99"}), fp.send(b'{"data":['), fp.close()],
     [fp.head(301, {"Location": "https://x.example", "Content-Length": "0"})], [fp.reset()]],
)  # fmt: skip
def test_anything_but_a_list_is_an_error_without_the_key(
    transport: Transport, fake: FakeProvider, steps: Sequence[fp.Step]
) -> None:
    fake.script(steps)
    with pytest.raises(SluiceError) as caught:
        fetch(transport, target(fake.base_url))
    assert KEY not in caught.value.message


def test_a_host_that_is_away_is_an_error(transport: Transport) -> None:
    with pytest.raises(SluiceError):
        fetch(transport, target(f"http://127.0.0.1:{free_port()}/v1"))


def answered_by(instances: str) -> Sequence[fp.Step]:
    body = json.dumps({"data": [{"id": "a"}]}).encode()
    headers = {"Content-Type": "application/json", "Content-Length": str(len(body))}
    return [fp.head(200, headers | {"X-Sluice-Instance": instances}), fp.send(body)]


@pytest.mark.parametrize("instances", ["me", "other, me", "me,other"])
def test_a_list_that_went_through_this_sluice_is_refused(
    transport: Transport, fake: FakeProvider, instances: str
) -> None:
    fake.script(answered_by(instances))
    with pytest.raises(FoundItself):
        fetch(transport, target(fake.base_url), "me")


def test_another_sluices_list_is_taken_with_its_name(
    transport: Transport, fake: FakeProvider
) -> None:
    fake.script(answered_by("other, third"))
    found = fetch(transport, target(fake.base_url), "me")
    assert (names(found), sorted(found.instances)) == (["a"], ["other", "third"])


def test_a_sluice_that_wants_a_key_is_skipped_only_if_the_row_has_none(
    transport: Transport, fake: FakeProvider
) -> None:
    locked = [fp.head(401, {"WWW-Authenticate": 'Bearer realm="sluice"', "Content-Length": "0"})]
    fake.default(locked)
    with pytest.raises(FoundItself):
        fetch(transport, target(fake.base_url, key=None, api_key_env=None), "me")
    with pytest.raises(UpstreamError) as caught:
        fetch(transport, target(fake.base_url), "me")
    assert not isinstance(caught.value, FoundItself)


def test_the_rows_proxy_and_certificates_apply(
    transport: Transport, fake: FakeProvider, tls_fake: FakeProvider, ca_bundle: str
) -> None:
    fake.default(listing("a"))
    tls_fake.default(listing("b"))
    with ForwardProxy() as proxy:
        assert names(fetch(transport, target(fake.base_url, proxy=proxy.url))) == ["a"]
        assert len(proxy.seen) == 1
    with pytest.raises(SluiceError):
        fetch(transport, target(tls_fake.base_url))
    assert names(fetch(transport, target(tls_fake.base_url, ca_bundle=ca_bundle))) == ["b"]
