"""Tests of resumable calls at the paths that editors call."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from completion import Batch, Delta, Finished, Opaque, Started, Usage, Used
from tests.endpoints.test_fim import BETA, FIM, MISTRAL, Editor, editor
from tests.endpoints.test_llamacpp import BODY, COMPLETION, INFILL, LLAMA, own
from tests.endpoints.test_openai import Upstream, answer, upstream
from tests.gateway.test_gateway import eventually

__all__ = ["editor", "upstream"]

PROMPT = {"model": "fake/m", "prompt": "def f("}
CALLS: list[tuple[str, dict[str, Any]]] = [
    *((path, MISTRAL) for path in FIM),
    (BETA, MISTRAL),
    *((path, BODY) for path in INFILL),
    *((path, PROMPT) for path in COMPLETION),
]
NAMES = {"resumable": True, "stream_id": "e-1"}
VARIED = r'"(id|created)":("[^"]*"|[0-9]+)'


def get(editor: Editor, path: str, **headers: str) -> Any:
    return editor.app.test_client().get(
        f"{path}/e-1", headers=editor.headers | headers, buffered=True
    )


def result(editor: Editor, path: str) -> Any:
    def ended() -> bool:
        return get(editor, path).json["expires_at"] is not None

    assert eventually(ended)
    return get(editor, path).json["result"]


@pytest.mark.parametrize(("path", "body"), CALLS)
def test_a_stream_of_an_editor_has_ids_and_can_be_followed(
    editor: Editor, upstream: Upstream, path: str, body: dict[str, Any]
) -> None:
    upstream.scripts = [answer("He", "llo", reason="length")]
    plain = editor.post(path, body | {"stream": True}).text
    found = editor.post(path, body | NAMES | {"stream": True})
    assert found.headers["X-Sluice-Resumable"] == "1"
    text = found.text.removeprefix(":open\n")
    numbers = [int(n) for n in re.findall(r"^id: (\d+)$", text, re.MULTILINE)]
    assert numbers == list(range(1, len(numbers) + 1))
    without_ids = re.sub(r"^id: \d+\n", "", text, flags=re.MULTILINE)
    assert re.sub(VARIED, "", without_ids) == re.sub(VARIED, "", plain)
    again = get(editor, path, **{"Accept": "text/event-stream", "Last-Event-ID": "1"})
    assert again.text == text.partition("\n\n")[2]
    assert get(editor, "/v1/completions").status_code == 404


@pytest.mark.parametrize(("path", "body"), CALLS)
def test_a_whole_answer_of_an_editor_is_that_of_a_plain_call(
    editor: Editor, upstream: Upstream, path: str, body: dict[str, Any]
) -> None:
    upstream.scripts = [answer("He", "llo", reason="length")]
    plain = editor.post(path, body).text
    found = editor.post(path, body | NAMES).text
    assert re.sub(VARIED, "", found) == re.sub(VARIED, "", plain)
    assert result(editor, path) == json.loads(found)


PIECES = [
    own(index=0, content="He", stop=False, tokens=[1]),
    own(index=0, content="llo", stop=False, tokens=[2]),
    own(index=0, content="", stop=True, tokens=[], timings={"n": 1.5}, model="x.gguf"),
]
PIECE_BATCHES: list[Batch] = [[Opaque(piece, 0, 3)] for piece in PIECES]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (None, {"index": 0, "content": "Hello", "stop": True, "tokens": [1, 2]}
         | {"timings": {"n": 1.5}, "model": "x.gguf"}),
        (["content", "timings/n"], {"content": "Hello", "timings/n": 1.5}),
        (["model"], {"model": "x.gguf"}),
    ],
)  # fmt: skip
def test_pieces_of_llamacpp_add_up_to_its_whole_answer(
    editor: Editor, upstream: Upstream, fields: list[str] | None, expected: dict[str, Any]
) -> None:
    upstream.play(
        [Started()],
        *PIECE_BATCHES,
        [Finished(0, "stop"), Used(Usage(3, 2))],
    )
    found = editor.post("/infill", LLAMA | NAMES | {"response_fields": fields})
    assert json.loads(found.text) == expected
    frames = get(editor, "/infill", Accept="text/event-stream").text
    assert frames.startswith("id: 1\ndata: " + PIECES[0].decode())
    assert frames.count("id: ") == 3


def test_a_silent_call_of_an_editor_has_no_text(editor: Editor, upstream: Upstream) -> None:
    upstream.play([Started(), Delta(0, "x"), Finished(0, "length"), Used(Usage(3, 1))])
    found = editor.post("/infill", BODY | NAMES | {"n_predict": 0, "stream": True})
    assert found.text.count("data: ") == 1
    assert result(editor, "/infill")["content"] == ""
