"""sigv4.py: signatures match the specification, and those of botocore's own client."""

from __future__ import annotations

import datetime
import hmac
import threading
from collections.abc import Callable
from hashlib import sha256
from typing import Any
from urllib.parse import quote, urlsplit

import pytest

from completion import (
    CompletionRequest,
)
from errors import UpstreamError
from keys.redaction import Secret
from providers.base import Provider, Target, UpstreamRequest
from providers.bedrock import dialect as bedrock

pytest.importorskip("botocore", reason="botocore is optional: requirements-bedrock.txt")

import botocore.auth
from botocore.credentials import Credentials
from botocore.exceptions import ProfileNotFound

from providers.bedrock import sigv4

NOW = datetime.datetime(2026, 11, 22, 12, 0, 0, tzinfo=datetime.UTC)
STAMP = "20261122T120000Z"
ACCESS, HIDDEN, TOKEN = "AKIDEXAMPLE", "not-a-secret", "a-session-token"
ROW = Provider(
    name="bedrock",
    dialect="bedrock",
    base_url="https://bedrock-runtime.eu-central-1.amazonaws.com",
)
ARN = "arn:aws:bedrock:eu-central-1:123456789012:application-inference-profile/abc123"
REQUEST = CompletionRequest(prompts=("naïve 🦊",), max_tokens=5)


class Session:
    """A fake of botocore's session with the given credentials and region."""

    def __init__(self, credentials: Any = None, region: str | None = None) -> None:
        self.credentials = credentials
        self.region = region

    def get_credentials(self) -> Any:
        if isinstance(self.credentials, Exception):
            raise self.credentials
        return self.credentials

    def get_config_variable(self, name: str) -> str | None:
        assert name == "region"
        return self.region


@pytest.fixture
def session(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return a function that replaces the session. Until it is called, the session has credentials
    with a session token."""
    monkeypatch.setattr(botocore.auth, "get_current_datetime", lambda: NOW)

    def use(*values: Any) -> None:
        monkeypatch.setattr(sigv4, "_session", lambda: Session(*values))

    use(Credentials(ACCESS, HIDDEN, TOKEN))
    return use


def a_call(model: str = ARN, row: Provider = ROW) -> tuple[UpstreamRequest, Target]:
    target = Target(row, model)
    return bedrock.call(REQUEST, target), target


def signature(call: UpstreamRequest, region: str, signed: list[str]) -> str:
    """Return the signature, computed as the specification says and without botocore."""
    parts = urlsplit(call.url)
    headers = {name.lower(): value for name, value in call.headers.items()}
    headers["host"] = parts.netloc
    lines = [f"{name}:{headers[name]}" for name in signed]
    body = sha256(call.body).hexdigest()
    path = quote(parts.path, safe="/~")  # the path as sent, quoted once more
    canonical = "\n".join([call.method, path, "", *lines, "", ";".join(signed), body])
    scope = f"{STAMP[:8]}/{region}/bedrock/aws4_request"
    digest = sha256(canonical.encode()).hexdigest()
    text = "\n".join(["AWS4-HMAC-SHA256", STAMP, scope, digest])
    key = b"AWS4" + HIDDEN.encode()
    for part in scope.split("/"):
        key = hmac.digest(key, part.encode(), "sha256")
    return hmac.digest(key, text.encode(), "sha256").hex()


@pytest.mark.usefixtures("session")
@pytest.mark.parametrize("model", [ARN, "anthropic.claude-v1:0", "a b~c"])
def test_the_signature_matches_the_sigv4_algorithm(model: str) -> None:
    call, target = a_call(model)
    signed = sigv4.sign(call, target)
    assert (signed.method, signed.url, signed.body) == (call.method, call.url, call.body)
    authorization = signed.headers.pop("Authorization")
    names = ["accept", "accept-encoding", "content-type", "host", "x-amz-date"]
    names.append("x-amz-security-token")
    added = {"X-Amz-Date": STAMP, "X-Amz-Security-Token": TOKEN}
    assert signed.headers == call.headers | added
    assert authorization == (
        f"AWS4-HMAC-SHA256 Credential={ACCESS}/20261122/eu-central-1/bedrock/aws4_request, "
        f"SignedHeaders={';'.join(names)}, Signature={signature(signed, 'eu-central-1', names)}"
    )


@pytest.mark.usefixtures("session")
def test_the_signature_headers_equal_those_of_the_botocore_client() -> None:
    import botocore.session

    own = botocore.session.Session()
    own.set_credentials(ACCESS, HIDDEN, TOKEN)
    client = own.create_client(
        "bedrock-runtime",
        "eu-central-1",
        config=botocore.client.Config(signature_version="v4"),
    )
    sent: list[Any] = []

    class Sent(Exception):
        pass

    def stop(request: Any, **_: Any) -> None:
        sent.append(request)
        raise Sent

    client.meta.events.register("before-send", stop)
    with pytest.raises(Sent):
        client.converse(modelId=ARN, messages=[{"role": "user", "content": [{"text": "Hi"}]}])
    (theirs,) = sent
    headers = {name: _text(value) for name, value in theirs.headers.items()}
    added = ("Authorization", "X-Amz-Date", "X-Amz-Security-Token")
    names = headers["Authorization"].partition("SignedHeaders=")[2].partition(",")[0].split(";")
    plain = {n: value for n, value in headers.items() if n.lower() in names and n not in added}
    ours = sigv4.sign(
        UpstreamRequest(theirs.method, theirs.url, plain, theirs.body), Target(ROW, ARN)
    )
    assert {name: ours.headers[name] for name in added} == {name: headers[name] for name in added}


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


@pytest.mark.usefixtures("session")
def test_a_call_with_a_byok_key_is_not_signed() -> None:
    target = Target(ROW, ARN, Secret("test-credential"), byok=True)
    call = bedrock.call(REQUEST, target)
    assert sigv4.sign(call, target) is call


@pytest.mark.parametrize(
    ("host", "region"),
    [
        ("bedrock-runtime.us-east-1.amazonaws.com", "us-east-1"),
        ("bedrock-runtime-fips.us-gov-west-1.amazonaws.com", "us-gov-west-1"),
        ("bedrock-runtime.cn-north-1.amazonaws.com.cn", "cn-north-1"),
        ("vpce-0a1-b2.bedrock-runtime.ap-southeast-2.vpce.amazonaws.com", "ap-southeast-2"),
        ("bedrock.internal.example", "eu-west-3"),
        ("127.0.0.1:9100", "eu-west-3"),
    ],
)
def test_the_region_comes_from_the_host_or_the_aws_configuration(
    session: Callable[..., None], host: str, region: str
) -> None:
    session(Credentials(ACCESS, HIDDEN), "eu-west-3")
    call, target = a_call(row=Provider(name="bedrock", base_url=f"https://{host}"))
    signed = sigv4.sign(call, target).headers
    assert f"/{region}/bedrock/aws4_request" in signed["Authorization"]
    assert "X-Amz-Security-Token" not in signed


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((None,), "No AWS credentials are configured on this server."),
        ((ProfileNotFound(profile="x"),), "The AWS credentials could not be loaded: "),
        ((Credentials(ACCESS, HIDDEN),), "No AWS region is configured on this server."),
    ],
)
def test_missing_aws_credentials_or_region_raise_an_upstream_error(
    session: Callable[..., None], values: tuple[Any, ...], message: str
) -> None:
    session(*values)
    call, target = a_call(row=Provider(name="bedrock", base_url="https://bedrock.example"))
    with pytest.raises(UpstreamError) as raised:
        sigv4.sign(call, target)
    assert raised.value.message.startswith(message)
    assert HIDDEN not in raised.value.message


def test_threads_share_a_single_botocore_session(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", HIDDEN)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-north-1")
    sigv4._session.cache_clear()
    call, target = a_call(row=Provider(name="bedrock", base_url="https://bedrock.example"))
    found: list[str] = []

    def work() -> None:
        found.append(sigv4.sign(call, target).headers["Authorization"])

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert all(f"Credential={ACCESS}/" in text and "/eu-north-1/" in text for text in found)
    assert sigv4._session() is sigv4._session()
    sigv4._session.cache_clear()


@pytest.mark.usefixtures("session")
def test_a_session_token_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("DEBUG"):
        sigv4.sign(*a_call())
    assert TOKEN not in caplog.text
