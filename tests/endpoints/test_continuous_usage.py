"""Tests of stream_options.continuous_usage_stats: the usage so far on each chunk of a stream."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from flask import Flask

from app import create_app
from completion import Delta, Finished, Started, Thought, Usage, Used
from config import Settings
from tests.endpoints.test_openai import DONE, Face, Upstream, app, chunks, face, upstream
from tests.support import fake as fp
from tests.support.fake import FakeProvider
from tests.support.paths import TESTS
from tests.support.servers import settings_files

__all__ = ["app", "face", "upstream"]

OPTIONS = {"include_usage": True, "continuous_usage_stats": True}
Counts = list[tuple[str, int, int, bool]]


def counts(text: str) -> Counts:
    """Return each chunk's text, prompt tokens, completion tokens, and whether they are estimated.

    The chunk without choices is left out; its usage must be in the last one.
    """
    *parts, last = chunks(text)
    assert last["choices"] == []
    assert "cost" in last["usage"]
    assert text.endswith(DONE)
    for part in parts:
        usage = part["usage"]
        assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
        assert "cost" not in usage
    return [
        (
            part["choices"][0]["text"],
            part["usage"]["prompt_tokens"],
            part["usage"]["completion_tokens"],
            part["usage"].get("source") == "estimate",
        )
        for part in parts
    ]


def used(output: int, prompt: int = 3) -> Used:
    return Used(Usage(prompt, output))


def test_each_chunk_has_the_usage_that_the_host_reported_with_it(
    face: Face, upstream: Upstream
) -> None:
    upstream.play(
        [Started(), Delta(0, "a"), used(1), Delta(0, "bc"), used(3)],
        [Delta(0, "d"), used(4)],
        [Finished(0, "stop")],
    )
    assert counts(face.stream(stream_options=OPTIONS)) == [
        ("a", 3, 1, False),
        ("bc", 3, 3, False),
        ("d", 3, 4, False),
        ("", 3, 4, False),
    ]


def test_without_reports_the_usage_is_counted_and_marked(face: Face, upstream: Upstream) -> None:
    upstream.play(
        [Started(input_tokens=7)],
        [Delta(0, "a"), Delta(0, "b" * 40)],
        [Finished(0, "stop"), used(20, 7)],
    )
    assert counts(face.stream(stream_options=OPTIONS)) == [
        ("a", 7, 1, True),
        ("b" * 40, 7, 11, True),
        ("", 7, 20, False),
    ]


def test_reasoning_before_and_between_texts_is_counted_once(face: Face, upstream: Upstream) -> None:
    upstream.play(
        [Started(), Thought(40, 2)],
        [Thought(40, 2), Delta(0, "a")],
        [Thought(40, 2), Delta(0, "b"), Finished(0, "stop")],
    )
    found = [count for _, _, count, _ in counts(face.stream(stream_options=OPTIONS))]
    assert found == [21, 31, 31]


def test_counts_never_decrease(face: Face, upstream: Upstream) -> None:
    upstream.play([Started(), Delta(0, "a" * 400)], [Delta(0, "b"), used(5), Finished(0, "stop")])
    assert [count for _, _, count, _ in counts(face.stream(stream_options=OPTIONS))] == [100] * 3


@pytest.mark.parametrize(
    "options",
    [{"include_usage": True}, {"continuous_usage_stats": True}, {}, {"include_usage": False}],
)
def test_chunks_have_no_usage_unless_both_options_are_set(
    face: Face, upstream: Upstream, options: dict[str, Any]
) -> None:
    upstream.play([Started(), Delta(0, "a"), used(1), Finished(0, "stop")])
    found = chunks(face.stream(stream_options=options))
    assert all("usage" not in part for part in found if part["choices"])


def test_the_option_must_be_true_or_false(face: Face) -> None:
    answer = face.ask(stream=True, stream_options=OPTIONS | {"continuous_usage_stats": 1})
    assert answer.status_code == 400
    assert answer.get_json()["error"]["param"] == "continuous_usage_stats"


def test_added_fields_and_log_probabilities_stay_on_the_chunks(
    face: Face, upstream: Upstream
) -> None:
    upstream.play([Started(), Delta(1, "a"), Delta(0, "b"), Finished(0, "stop")])
    found = face.stream(n=2, stream_options=OPTIONS)
    assert [part["choices"][0]["index"] for part in chunks(found)[:-1]] == [1, 0, 0, 1]
    assert [count for _, _, count, _ in counts(found)] == [1, 2, 2, 2]


def test_a_stream_of_vllm_has_its_usage_on_each_chunk(
    tmp_path: Path, new_key: tuple[str, str], fake: FakeProvider
) -> None:
    raw = (TESTS / "fixtures" / "vllm" / "continuous_usage.sse").read_bytes()
    head = fp.head(200, {"Content-Type": "text/event-stream", "Content-Length": str(len(raw))})
    fake.script([head, fp.send(raw)])
    (tmp_path / "sluice.toml").write_text(f'[providers.vllm]\nbase_url = "{fake.base_url}"\n')
    (tmp_path / "keys.jsonl").touch(mode=0o600)
    (tmp_path / "keys.jsonl").write_text(new_key[1])
    app: Flask = create_app(Settings.from_env(settings_files(tmp_path)))
    text = Face(app, new_key[0]).stream(model="vllm/m", stream_options=OPTIONS)
    assert counts(text) == [
        (" fox", 3, 1, False),
        (" jumps over", 3, 4, False),
        (" it", 3, 5, False),
        ("", 3, 5, False),
    ]
    app.extensions["sluice"].gateway.tokenizers._transport.close()
