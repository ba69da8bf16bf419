"""Tests of every fixture of every dialect through the whole gateway.

The fake provider sends the fixture's raw bytes. A client of the OpenAI face must get the response
that the fixture expects.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
import requests

from tests.providers.test_dialects import CASES, DIALECTS, Case
from tests.support import fake as fp
from tests.support.fake import FakeProvider
from tests.support.pace import HANG_S
from tests.support.sampling import sampled
from tests.support.servers import UNTROUBLED, Server

STREAMS = [case for case in CASES if case.stream is not None]
BODIES = [case for case in CASES if case.body is not None]
REFUSALS = [case for case in CASES if (case.folder / "refusal.json").exists()]
STEP = 3
"""`make test` sends every third fixture through the gateway. tests/providers decodes them all."""
ROW = '[providers.{0}-host]\ndialect = "{0}"\nbase_url = "{1}"\ncompletions = true\n'


@pytest.fixture(scope="module")
def hosts(fake_process: FakeProvider) -> Iterator[Server]:
    """Yield a server that has a row for each dialect. All rows lead to the fake provider."""
    rows = (ROW.format(dialect, fake_process.base_url) for dialect in DIALECTS)
    with Server("".join(rows), env=UNTROUBLED) as server:
        yield server


def name(case: Case) -> str:
    return f"{case.folder.parent.name}/{case.folder.name}"


def asked(case: Case, *, stream: bool) -> dict[str, Any]:
    """Return the fixture's request in the form of the OpenAI face."""
    fields = msgspec.to_builtins(case.request)
    extra = fields.pop("extra")
    prompts = fields.pop("prompts")
    body = {key: value for key, value in fields.items() if value not in (None, [], {}, False)}
    return {
        **body,
        **extra,
        "model": f"{case.folder.parent.name}-host/m",
        "prompt": prompts if len(prompts) > 1 else prompts[0],
        "stream": stream,
        "stream_options": {"include_usage": True},
    }


def post(server: Server, body: dict[str, Any]) -> requests.Response:
    headers = {"Authorization": f"Bearer {server.key}"}
    return requests.post(f"{server.url}/v1/completions", json=body, headers=headers, timeout=HANG_S)


def read_stream(text: str) -> tuple[dict[int, dict[str, Any]], Any, Any, bool]:
    """Return a stream's choices by index, its usage, its error, and True if it has a [DONE]."""
    choices: dict[int, dict[str, Any]] = {}
    usage = error = None
    done = False
    for line in text.split("\n"):
        if line == "data: [DONE]":
            done = True
        elif line.startswith("data: "):
            chunk = json.loads(line[6:])
            usage, error = chunk.get("usage") or usage, chunk.get("error") or error
            for part in chunk.get("choices", ()):
                choice = choices.setdefault(part["index"], {"text": "", "finish_reason": None})
                choice["text"] += part["text"]
                choice["finish_reason"] = part["finish_reason"] or choice["finish_reason"]
    return choices, usage, error, done


STATUSES = {400: 400, 404: 404, 413: 413, 422: 400, 429: 429}
"""Sluice's status by the provider's status. Any other status becomes a 502."""


def status_of(expected: dict[str, Any]) -> int:
    return STATUSES.get(expected["error"]["upstream_status"], 502)


def expected_choices(expected: dict[str, Any], key: str) -> dict[int, dict[str, Any]]:
    return {
        choice["index"]: {"text": choice["text"], "finish_reason": choice["finish_reason"]}
        for choice in expected.get(key) or ()
    }


def check_usage(expected: dict[str, Any] | None, usage: dict[str, Any]) -> None:
    """Assert that each count is the provider's or, if it reported none, marked as an estimate."""
    found = {"input_tokens": usage["prompt_tokens"], "output_tokens": usage["completion_tokens"]}
    if usage.get("source") == "estimate":
        assert all(found.values())
        found = {name: count for name, count in found.items() if name in (expected or {})}
    else:
        assert expected is not None
    assert found == {name: (expected or {}).get(name, 0) for name in found}


@pytest.mark.parametrize("case", sampled(STREAMS, *STREAMS[::STEP]), ids=name)
def test_streamed_fixture_of_each_dialect_reaches_the_openai_client(
    case: Case, hosts: Server, fake: FakeProvider
) -> None:
    stream = case.stream
    assert stream is not None
    content_type = {"content-type": "text/event-stream"}
    fake.script([fp.head(headers=content_type), *([fp.send(stream)] if stream else []), fp.close()])
    answer = post(hosts, asked(case, stream=True))
    expected = case.expected
    if "error" not in expected:
        choices, usage, error, done = read_stream(answer.content.decode())
        assert (choices, error, done) == (expected_choices(expected, "choices"), None, True)
        check_usage(expected["usage"], usage)
    elif answer.status_code == 200:
        choices, _, error, done = read_stream(answer.content.decode())
        assert choices == expected_choices(expected, "before")
        assert error["code"]
        assert not done
    else:
        assert not any(choice["text"] for choice in expected.get("before") or ())
        assert answer.status_code == status_of(expected)


@pytest.mark.parametrize("case", sampled(BODIES, *BODIES[::STEP]), ids=name)
def test_unary_fixture_of_each_dialect_reaches_the_openai_client(
    case: Case, hosts: Server, fake: FakeProvider
) -> None:
    body = case.body
    assert body is not None
    head = fp.head(headers={"content-type": "application/json", "content-length": str(len(body))})
    fake.script([head, *([fp.send(body)] if body else [])])
    answer = post(hosts, asked(case, stream=False))
    expected = case.expected
    if "error" in expected:
        assert answer.status_code >= 400
        assert answer.json()["error"]["code"]
        return
    found = answer.json()
    choices = {
        choice["index"]: {"text": choice["text"], "finish_reason": choice["finish_reason"]}
        for choice in found["choices"]
    }
    assert choices == expected_choices(expected, "choices")
    check_usage(expected["usage"], found["usage"])


@pytest.mark.parametrize("case", sampled(REFUSALS, *REFUSALS[::STEP]), ids=name)
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_refusal_fixture_of_each_dialect_answers_the_mapped_status(
    case: Case, stream: bool, hosts: Server, fake: FakeProvider
) -> None:
    refusal = json.loads((case.folder / "refusal.json").read_text())
    body = (case.folder / "refusal.body").read_bytes()
    fake.script(fp.error(refusal["status"], body, refusal["headers"]))
    answer = post(hosts, asked(case, stream=stream))
    assert answer.status_code == status_of(case.expected)
    if answer.status_code == 429:
        assert int(answer.headers["Retry-After"]) >= 1
