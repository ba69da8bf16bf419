"""Tests of emulated stop sequences in a real server, with the openai SDK and a fake provider."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
from openai import OpenAI

from tests.support import fake as fp
from tests.support.calls import EVENT, ask, begin_stream, closed_after, complete, settled, stop
from tests.support.fake import FakeProvider
from tests.support.pace import scaled
from tests.support.servers import UNTROUBLED, Server

STOPS = ["<1>", "<2>", "<3>", "<4>", "\n\n", "END"]
ROWS = """
[providers.fake]
base_url = "{url}"
completions = true
limits = {{stop = 4}}

[providers.none]
base_url = "{url}"
cannot = ["stop"]
"""


@pytest.fixture(scope="module")
def few_server(fake_process: FakeProvider) -> Iterator[Server]:
    with Server(ROWS.format(url=fake_process.base_url), env=UNTROUBLED) as server:
        yield server
        assert "Traceback" not in server.output()


@pytest.fixture
def server(few_server: Server, fake: FakeProvider) -> Server:
    """Return a server whose provider `fake` takes four stop sequences, and `none` none."""
    return few_server


@pytest.fixture
def client(server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[OpenAI]:
    monkeypatch.setenv("NO_PROXY", "*")
    with OpenAI(base_url=f"{server.url}/v1", api_key=server.key, max_retries=0) as client:
        yield client


def endless(*texts: str, chat: bool = False) -> list[fp.Step]:
    """Return a stream with some texts, that goes on until its connection is closed."""
    begun = fp.sse(fp.chunks(texts, finish=None, chat=chat), done=False, complete=False)
    return [*begun, fp.repeat(EVENT.data, 0.01)]


@pytest.mark.parametrize("model", ["fake/m", "none/m"])
def test_the_upstream_closes_at_once_at_an_emulated_stop_sequence(
    client: OpenAI, fake: FakeProvider, model: str
) -> None:
    fake.script(endless("One", " two\n", "\nthree", chat=model == "none/m"))
    stream = client.completions.create(
        model=model, prompt="a", stop=STOPS, stream=True, stream_options={"include_usage": True}
    )
    *chunks, last = list(stream)
    ended = time.monotonic()
    assert "".join(chunk.choices[0].text for chunk in chunks) == "One two"
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    assert last.usage is not None
    assert last.usage.completion_tokens >= 3  # with what came together with the stop sequence
    [request] = fake.wait_closed()
    assert closed_after(request, ended) < scaled(1)
    assert request.json.get("stop", []) == (STOPS[:4] if model == "fake/m" else [])


def test_the_upstream_closes_when_each_of_several_choices_has_ended(
    client: OpenAI, fake: FakeProvider
) -> None:
    def chunk(index: int, text: str, finish: str | None = None) -> dict[str, Any]:
        [made] = fp.chunks([text], finish=None)
        made["choices"][0] |= {"index": index, "finish_reason": finish}
        return made

    frames = [chunk(0, "a"), chunk(1, "b"), chunk(2, "c"), chunk(0, "EN"), chunk(1, "E")]
    frames += [chunk(2, ""), chunk(2, "", "length"), chunk(0, "D"), chunk(1, "ND")]
    again = fp.event(chunk(0, "more"))
    fake.script([*fp.sse(frames, done=False, complete=False), fp.repeat(again.data, 0.01)])
    texts, reasons = ["", "", ""], [""] * 3
    for part in client.completions.create(model="fake/m", prompt="a", n=3, stop=STOPS, stream=True):
        [choice] = part.choices
        texts[choice.index] += choice.text
        reasons[choice.index] = choice.finish_reason
    ended = time.monotonic()
    assert (texts, reasons) == (["a", "b", "c"], ["stop", "stop", "length"])
    [request] = fake.wait_closed()
    assert closed_after(request, ended) < scaled(1)


@pytest.mark.parametrize("echo", [True, False])
def test_a_whole_answer_ends_at_an_emulated_stop_sequence(
    client: OpenAI, fake: FakeProvider, echo: bool
) -> None:
    fake.script(fp.answer(fp.body("One two\n\nthree", finish="length", usage=(3, 5))))
    found = client.completions.create(model="fake/m", prompt="Say: ", stop=STOPS, echo=echo)
    [choice] = found.choices
    assert (choice.text, choice.finish_reason) == ("Say: " * echo + "One two", "stop")
    assert found.usage is not None
    assert found.usage.completion_tokens == 5
    [request] = fake.requests
    assert request.json == {"model": "m", "prompt": "Say: ", "stop": STOPS[:4]}


def test_text_with_log_probabilities_ends_at_an_emulated_stop_sequence(
    client: OpenAI, fake: FakeProvider
) -> None:
    body = fp.body("One two\n\nthree")
    body["choices"][0]["logprobs"] = {
        "tokens": ["One", " two", "\n", "\nth", "ree"],
        "token_logprobs": [-0.1, -0.2, -0.3, -0.4, -0.5],
        "top_logprobs": None,
        "text_offset": [0, 3, 7, 8, 11],
    }
    fake.script(fp.answer(body))
    found = client.completions.create(model="fake/m", prompt="a", stop=STOPS, logprobs=0)
    [choice] = found.choices
    assert choice.text == "One two"
    assert choice.logprobs is not None
    assert choice.logprobs.tokens == ["One", " two"]


def test_the_native_face_ends_at_an_emulated_stop_sequence(
    server: Server, fake: FakeProvider
) -> None:
    fake.script(fp.answer(fp.body("One two\n\nthree")))
    found = complete(server, additional_params={"stop": STOPS})
    assert (found["data"], found["finish_reason"]) == ("One two", "stop")


def test_the_log_shows_a_completed_call_with_an_estimated_usage(
    server: Server, fake: FakeProvider
) -> None:
    texts = fp.chunks(["One", " two", "\n\n"], finish=None)
    fake.script([*fp.sse(texts, done=False, complete=False), fp.hold()])
    with server.client() as client:
        stream_id = begin_stream(client, additional_params={"stop": STOPS})
        client.body()
    line = settled(server, stream_id)
    assert (line["status"], line["end_reason"], line["output_tokens"]) == (200, "completed", 3)


def test_a_stream_that_is_stopped_while_text_is_held_back_does_not_show_it(
    server: Server, fake: FakeProvider
) -> None:
    held = fp.sse(fp.chunks(["One", " EN"], finish=None), done=False, complete=False)
    fake.script([*held, fp.hold()])
    with server.client() as client:
        ask(client, stream=True, stream_id="held", additional_params={"stop": STOPS})
        client.read_head()
        while client.frame().json.get("data") != "One":
            pass
        answer = stop(server, "held")
        assert answer.status == 200
        frames = list(client.frames())
    assert "EN" not in "".join(str(frame.data) for frame in frames)
    [request] = fake.wait_closed()
    assert closed_after(request, answer.sent_at) < scaled(1)
