"""checks.py: whether a provider answers and accepts its key, with a fake host and no tokens."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from keys.redaction import Secret
from providers import registry
from providers.base import Provider, Target
from providers.checks import PATHS, Check, check, check_all, public_url, request_of, url_of
from providers.hosts import BUILT_IN
from providers.transport.exchange import Transport
from tests.support import fake as fp
from tests.support.fake import FakeProvider
from tests.support.forward_proxy import ForwardProxy
from tests.support.pace import HANG_S, scaled
from tests.support.servers import free_port

KEY = "sk-test-0123456789abcdef"
LIMIT_S = 5.0


@pytest.fixture
def transport() -> Iterator[Transport]:
    with closing(Transport()) as made:
        yield made


def target(base_url: str, key: str | None = KEY, **fields: Any) -> Target:
    row = Provider(**{"name": "sim", "api_key_env": "SIM_KEY"} | fields | {"base_url": base_url})
    return Target(row, "m", None if key is None else Secret(key))


def test_a_check_gets_the_list_of_models_with_the_key(
    transport: Transport, fake: FakeProvider
) -> None:
    fake.script(fp.answer({"data": []}))
    found = check(transport, target(fake.base_url), LIMIT_S)
    assert (found.ok, found.state) == (True, "ok")
    assert found.message == f"ok ({found.seconds * 1000:.0f} ms)"
    [request] = fake.requests
    assert (request.method, request.path, request.body) == ("GET", "/v1/models", b"")
    assert request.headers["authorization"] == f"Bearer {KEY}"


CASES: list[tuple[Sequence[fp.Step], str, bool, str]] = [
    (fp.error(401), "key_rejected", False, "rejected the API key (status 401, fake)"),
    (fp.error(403), "key_rejected", False, "check SIM_KEY"),
    (fp.error(404), "not_found", False, "has nothing at http://127.0.0.1:{port}/v1/models"),
    (fp.error(404), "not_found", False, "check base_url, http://127.0.0.1:{port}/v1"),
    (fp.error(405), "unchecked", True, "answers (status 405"),
    (fp.error(429), "rate_limited", True, "answers, but limits the rate (status 429"),
    (fp.error(503), "failed", False, "answers with status 503"),
    ([fp.head(301, {"Location": "https://x.example", "Content-Length": "0"})], "redirected", False,
     "redirects to another URL (status 301)"),
    ([fp.head(200, {"Content-Type": "text/html", "Content-Length": "0"})], "not_found", False,
     "sent a web page"),
    ([fp.head(401, {"WWW-Authenticate": 'Bearer realm="sluice"', "Content-Length": "0"})],
     "key_rejected", False, "rejected the API key (status 401"),
    ([fp.head(404, {"Via": "1.1 sluice", "Content-Length": "0"})], "itself", False,
     "is Sluice itself"),
    ([fp.close()], "closed", False, "closed the connection before it answered"),
]  # fmt: skip


@pytest.mark.parametrize(("script", "state", "ok", "says"), CASES)
def test_each_answer_of_a_host_says_what_is_wrong(
    transport: Transport,
    fake: FakeProvider,
    script: Sequence[fp.Step],
    state: str,
    ok: bool,
    says: str,
) -> None:
    fake.script(script)
    url = fake.base_url.replace("//", "//user:secret@")
    found = check(transport, target(url), LIMIT_S)
    assert (found.state, found.ok) == (state, ok)
    assert says.format(port=fake.port) in found.message
    assert "secret" not in found.message


def test_a_host_that_quotes_the_key_does_not_reveal_it(
    transport: Transport, fake: FakeProvider
) -> None:
    for status in (401, 400, 500):
        fake.script(fp.error(status, f"Incorrect API key provided: {KEY}"))
        assert KEY not in check(transport, target(fake.base_url), LIMIT_S).message


def test_a_host_that_cannot_be_reached_is_named_with_the_reason(transport: Transport) -> None:
    port = free_port()
    refused = check(transport, target(f"http://127.0.0.1:{port}/v1"), LIMIT_S)
    assert refused.state == "refused"
    assert refused.message == (f"127.0.0.1:{port} could not be reached: the connection was refused")
    unknown = check(transport, target("http://nowhere.invalid/v1"), LIMIT_S)
    assert (unknown.state, unknown.ok) == ("name_not_found", False)


def test_the_rows_certificates_apply(
    transport: Transport, tls_fake: FakeProvider, ca_bundle: str
) -> None:
    tls_fake.default(fp.answer({}))
    assert check(transport, target(tls_fake.base_url), LIMIT_S).state == "certificate"
    assert check(transport, target(tls_fake.base_url, ca_bundle=ca_bundle), LIMIT_S).ok
    with closing(Transport(ca_bundle=Path(ca_bundle))) as trusting:
        assert check(trusting, target(tls_fake.base_url), LIMIT_S).ok


def test_the_rows_proxy_applies(transport: Transport, fake: FakeProvider) -> None:
    fake.default(fp.answer({}))
    with ForwardProxy() as proxy:
        assert check(transport, target(fake.base_url, proxy=proxy.url), LIMIT_S).ok
        assert len(proxy.seen) == 1
    nowhere = f"127.0.0.1:{free_port()}"
    gone = check(transport, target(fake.base_url, proxy=f"http://{nowhere}"), LIMIT_S)
    assert gone.state == "proxy"
    assert f"The proxy {nowhere} could not be reached: " in gone.message


def test_a_silent_host_is_given_up_at_the_limit(transport: Transport, fake: FakeProvider) -> None:
    fake.script([fp.hold()])
    before = time.monotonic()
    found = check(transport, target(fake.base_url), 0.2)
    assert found.state == "timed_out"
    assert time.monotonic() - before < scaled(2)


def test_a_thorough_check_says_whether_the_host_looked_at_the_key(
    transport: Transport, fake: FakeProvider
) -> None:
    fake.default(fp.answer({}))
    found = check(transport, target(fake.base_url), LIMIT_S, thorough=True)
    assert found.ok
    assert "the key was not checked" in found.message
    fake.reset()
    fake.script(fp.answer({}))
    fake.default(fp.error(401))
    found = check(transport, target(fake.base_url), LIMIT_S, thorough=True)
    assert found.message == f"ok ({found.seconds * 1000:.0f} ms)"
    with_key, without = fake.requests
    assert "authorization" in with_key.headers
    assert "authorization" not in without.headers


def test_a_host_without_a_key_that_wants_one_says_so(
    transport: Transport, fake: FakeProvider
) -> None:
    fake.script(fp.error(401))
    found = check(transport, target(fake.base_url, key=None, api_key_env=None), LIMIT_S)
    assert found.message == "requires an API key (status 401, fake): set api_key_env in its row"


def test_a_host_without_a_key_that_is_sluice_is_told_apart(
    transport: Transport, fake: FakeProvider
) -> None:
    fake.script(
        [fp.head(401, {"WWW-Authenticate": 'Bearer realm="sluice"', "Content-Length": "0"})]
    )
    found = check(transport, target(fake.base_url, key=None, api_key_env=None), LIMIT_S)
    assert found.state == "itself"
    assert found.message == "is Sluice itself: set base_url to where the provider listens"


def test_local_needs_no_network(transport: Transport) -> None:
    row = next(row for row in BUILT_IN if row.name == "local")
    assert check(transport, Target(row, "pydoc"), LIMIT_S).ok


# The requests

URLS = {
    "openai": "https://api.openai.com/v1/models",
    "anthropic": "https://api.anthropic.com/v1/models?limit=1",
    "google": "https://generativelanguage.googleapis.com/v1beta/models?pageSize=1",
    "cohere": "https://api.cohere.com/v1/models?page_size=1",
    "bedrock": "https://bedrock-runtime.eu-west-1.amazonaws.com/async-invoke?maxResults=1",
    "azure": "https://x.openai.azure.com/openai/v1/models",
    "openrouter": "https://openrouter.ai/api/v1/key",
    "perplexity": "https://api.perplexity.ai/router/v1/models",
    "ollama": "http://127.0.0.1:11434/v1/models",
}
KEY_HEADERS = {"anthropic": "x-api-key", "google": "x-goog-api-key", "azure": "api-key"}
ENVIRON = {"AWS_REGION": "eu-west-1", "AZURE_OPENAI_ENDPOINT": "https://x.openai.azure.com"}


@pytest.mark.parametrize("name", URLS)
def test_each_dialect_has_a_url_and_its_own_header_for_the_key(name: str) -> None:
    found = Target(registry.rows({}, ENVIRON)[name], "m", Secret(KEY))
    request = request_of(found)
    assert (request.method, request.url, request.body) == ("GET", URLS[name], b"")
    sent = request.headers[KEY_HEADERS.get(name, "Authorization")]
    assert sent.removeprefix("Bearer ") == KEY
    assert KEY not in request.url
    assert "Content-Type" not in request.headers


@pytest.mark.parametrize("row", BUILT_IN, ids=lambda row: row.name)
def test_each_built_in_row_can_be_checked(row: Provider) -> None:
    if row.dialect != "local":
        assert request_of(Target(row, "m")).method == "GET"


def test_each_dialect_of_a_host_has_a_path_to_check() -> None:
    assert set(PATHS) == set(registry.DIALECTS) - {"local"}


def test_a_row_with_a_query_or_a_model_in_its_url_has_a_whole_url() -> None:
    base = "https://x.example/openai/deployments/{model}"
    assert url_of(target(base, query="api-version=1")) == (
        "https://x.example/openai/deployments/m/models?api-version=1"
    )
    assert url_of(target("https://x.example", dialect="google", query="a=1")) == (
        "https://x.example/models?pageSize=1&a=1"
    )


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://user:secret@h.example:8/v1?key=secret", "https://h.example:8/v1"),
        ("http://127.0.0.1:1/v1", "http://127.0.0.1:1/v1"),
        ("", ""),
        ("{AZURE_OPENAI_ENDPOINT}/openai/v1", "{AZURE_OPENAI_ENDPOINT}/openai/v1"),
    ],
)
def test_a_url_is_shown_without_credentials(url: str, shown: str) -> None:
    assert public_url(url) == shown


# Several checks


def test_checks_run_at_the_same_time_and_a_stuck_one_is_given_up() -> None:
    def quick(name: str) -> Check:
        return Check(name, ok=True, state="ok", message="ok")

    given_up = threading.Event()

    def stuck() -> Check:
        given_up.wait(HANG_S)
        return quick("late")

    before = time.monotonic()
    targets = [Target(Provider(name=name), "m") for name in "abc"]
    found = check_all([stuck, partial(quick, "b"), stuck], targets, 0.1)
    assert [(one.provider, one.state) for one in found] == [
        ("a", "timed_out"), ("b", "ok"), ("c", "timed_out"),
    ]  # fmt: skip
    assert time.monotonic() - before < scaled(3)
    given_up.set()
