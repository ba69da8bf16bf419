"""Tests of llama.cpp's endpoints, /infill and /completion, as editors see them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from completion import Batch, Delta, Finished, Opaque, SourceFile, Started, Usage, Used
from errors import Unavailable, UpstreamError
from tests.endpoints.test_fim import Editor, editor
from tests.endpoints.test_openai import Upstream, answer, upstream

__all__ = ["editor", "upstream"]

INFILL = ["/infill", "/v1/infill"]
COMPLETION = ["/completion", "/completions"]
BODY = {"model": "coder/m", "input_prefix": "a", "input_suffix": "b"}
LLAMA = BODY | {"model": "llama/m"}


def pieces(text: str) -> list[Any]:
    """Return the JSON of a stream's data lines. There is no [DONE] among them."""
    return [json.loads(line[6:]) for line in text.split("\n") if line.startswith("data: ")]


def own(**fields: Any) -> bytes:
    return json.dumps(fields, separators=(",", ":")).encode()


# /infill at targets that aren't llama.cpp


@pytest.mark.parametrize("path", INFILL)
def test_a_whole_answer_is_compact_json_on_one_line(editor: Editor, path: str) -> None:
    found = editor.post(path, BODY)
    assert found.text == (
        '{"index":0,"content":"Hello","stop":true,"model":"coder/m","tokens_predicted":5,'
        '"tokens_evaluated":3,"stop_type":"eos","stopping_word":"","truncated":false}'
    )
    assert found.content_type == "application/json"


@pytest.mark.parametrize("path", INFILL)
def test_a_stream_has_stop_in_its_last_event_and_no_done(
    editor: Editor,
    upstream: Upstream,
    path: str,
) -> None:
    upstream.scripts = [answer("He", "llo", reason="length")]
    found = editor.post(path, BODY | {"stream": True})
    first, second, last = pieces(found.text)
    assert first == {"index": 0, "content": "He", "stop": False}
    assert second == {"index": 0, "content": "llo", "stop": False}
    assert (last["content"], last["stop"], last["stop_type"]) == ("", True, "limit")
    assert (last["tokens_predicted"], last["tokens_evaluated"]) == (5, 3)
    assert "[DONE]" not in found.text
    assert found.headers["X-Stream-ID"]


def test_the_prompt_goes_behind_the_prefix_and_files_before(
    editor: Editor,
    upstream: Upstream,
) -> None:
    extra = [{"text": "A", "filename": "a.py"}, {"text": "B"}]
    found = editor.post("/infill", BODY | {"prompt": "p", "input_extra": extra, "id_slot": 0})
    assert upstream.request.prompts == (
        (
            "<|repo_name|>repository\n<|file_sep|>a.py\nA\n<|file_sep|>tmp\nB\n<|file_sep|>current\n"
            "<|fim_prefix|>ap<|fim_suffix|>b<|fim_middle|>"
        ),
    )
    assert found.headers["X-Sluice-Dropped"] == "id_slot"


def test_several_results_are_an_array(editor: Editor, upstream: Upstream) -> None:
    upstream.play([Started(), Delta(1, "y"), Delta(0, "x"), Finished(0, "stop"),
                   Finished(1, "length")])  # fmt: skip
    found = editor.post("/infill", BODY | {"model": "fake/m", "n_cmpl": 2}).get_json()
    assert [(one["index"], one["content"], one["stop_type"]) for one in found] == [
        (0, "x", "eos"),
        (1, "y", "limit"),
    ]
    assert upstream.request.n == 2


def test_a_target_without_n_answers_with_an_object(editor: Editor, upstream: Upstream) -> None:
    found = editor.post("/infill", BODY | {"n_cmpl": 3})
    assert found.get_json()["content"] == "Hello"
    assert found.headers["X-Sluice-Dropped"] == "n_cmpl"
    assert upstream.request.n is None
    text = editor.post("/infill", BODY | {"n_cmpl": 3, "stream": True}).text
    assert [one["stop"] for one in pieces(text)] == [False, True]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ([""], {}),
        (
            ["content", "truncated", "timings/prompt_n", "x"],
            {"content": "Hello", "truncated": False},
        ),
        (["stop", "stop"], {"stop": True}),
        (["content/x", "/content", "content/"], {}),
    ],
)
def test_an_answer_is_cut_to_the_fields_that_were_asked_for(
    editor: Editor,
    fields: list[str],
    expected: Any,
) -> None:
    assert editor.post("/infill", BODY | {"response_fields": fields}).get_json() == expected


@pytest.mark.parametrize("fields", [None, []])
def test_without_fields_an_answer_is_whole(editor: Editor, fields: Any) -> None:
    assert len(editor.post("/infill", BODY | {"response_fields": fields}).get_json()) == 9


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_that_only_fills_the_cache_gets_no_text(
    editor: Editor,
    upstream: Upstream,
    *,
    stream: bool,
) -> None:
    found = editor.post("/infill", BODY | {"n_predict": 0, "stream": stream})
    last = pieces(found.text)[-1] if stream else found.get_json()
    assert (last["content"], last["stop"]) == ("", True)
    assert "Hello" not in found.text
    assert upstream.request.max_tokens == 1


@pytest.mark.parametrize(
    ("sent", "most"),
    [({"n_predict": 7}, 7), ({"max_tokens": 7}, 7), ({"n_predict": -1}, None),
     ({"max_tokens": -1}, None), ({"n_predict": 7, "max_tokens": 7}, 7), ({}, None)],
)  # fmt: skip
@pytest.mark.parametrize("path", ["/infill", "/completion"])
def test_a_number_of_tokens_below_0_means_no_limit(
    editor: Editor,
    upstream: Upstream,
    path: str,
    sent: Any,
    most: int | None,
) -> None:
    body = BODY if path == "/infill" else {"model": "coder", "prompt": "a"}
    assert editor.post(path, body | sent).status_code == 200
    assert upstream.request.max_tokens == most


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"input_prefix": None}, "input_prefix"),
        ({"input_suffix": 5}, "input_suffix"),
        ({"prompt": ["a"]}, "prompt"),
        ({"input_extra": {"text": "a"}}, "input_extra"),
        ({"input_extra": ["a"]}, "input_extra"),
        ({"input_extra": [{"filename": "a"}]}, "input_extra"),
        ({"input_extra": [{"text": 5}]}, "input_extra"),
        ({"response_fields": "content"}, "response_fields"),
        ({"response_fields": [5]}, "response_fields"),
        ({"n_predict": "many"}, "n_predict"),
        ({"n_predict": True}, "n_predict"),
        ({"n_predict": 5, "max_tokens": 6}, "n_predict"),
        ({"n_cmpl": 0}, "n_cmpl"),
        ({"N_PREDICT": 5}, "N_PREDICT"),
        ({"temperature": "hot"}, "temperature"),
        ({"stop": 5}, "stop"),
        ({"messages": []}, "messages"),
        ({"models": ["x/y"]}, "models"),
        ({"options": {"model": "x"}}, "model"),
    ],
)
@pytest.mark.parametrize("model", ["coder/m", "llama/m"])
def test_a_field_of_a_wrong_type_is_a_400_that_names_it(
    editor: Editor,
    upstream: Upstream,
    model: str,
    body: dict[str, Any],
    param: str,
) -> None:
    found = editor.post("/infill", BODY | {"model": model} | body)
    assert found.status_code == 400
    assert found.get_json()["error"]["param"] == param
    assert upstream.requests == []


@pytest.mark.parametrize("model", ["local/pydoc", "chatty/m"])
def test_a_model_that_cannot_fill_in_answers_400(editor: Editor, model: str) -> None:
    found = editor.post("/infill", BODY | {"model": model, "id_slot": 0})
    assert (found.status_code, found.get_json()["error"]["param"]) == (400, "suffix")


# /infill at a llama.cpp server

SCRIPT: list[Batch] = [
    [Started(), Opaque(own(index=0, content="He", stop=False), 0, 2)],
    [Opaque(own(index=0, content="", stop=True, timings={"n": 1.5}, tokens_cached=4), 0)],
    [Finished(0, "stop"), Used(Usage(3, 5))],
]


def test_a_stream_of_llamacpp_passes_through(editor: Editor, upstream: Upstream) -> None:
    upstream.play(*SCRIPT)
    found = editor.post("/infill", LLAMA | {"stream": True, "samplers": ["x"], "id_slot": 0})
    assert found.text == (
        'data: {"index":0,"content":"He","stop":false}\n\n'
        'data: {"index":0,"content":"","stop":true,"timings":{"n":1.5},"tokens_cached":4}\n\n'
    )
    assert "X-Sluice-Dropped" not in found.headers
    assert upstream.request.infill == {
        "input_prefix": "a", "input_suffix": "b", "samplers": ["x"], "id_slot": 0,
    }  # fmt: skip


def test_the_last_event_of_a_stream_is_cut_to_the_fields(
    editor: Editor,
    upstream: Upstream,
) -> None:
    upstream.play(*SCRIPT)
    fields = ["timings/n", "tokens_cached"]
    found = editor.post("/infill", LLAMA | {"stream": True, "response_fields": fields})
    first, last = pieces(found.text)
    assert first["content"] == "He"
    assert last == {"timings/n": 1.5, "tokens_cached": 4}


def test_the_last_event_is_cut_if_its_server_writes_spaces(
    editor: Editor,
    upstream: Upstream,
) -> None:
    data = b'{"content": "a", "stop": true, "timings": {"n": 1.5}}'
    upstream.play([Started(), Opaque(data, 0, 1), Finished(0, "stop"), Used(Usage(3, 1))])
    found = editor.post("/infill", LLAMA | {"stream": True, "response_fields": ["timings/n"]})
    assert pieces(found.text) == [{"timings/n": 1.5}]


WHOLE = own(index=0, content="Hello", stop=True, timings={"n": 1.50}, model="x.gguf")


def test_a_whole_answer_of_llamacpp_passes_through(editor: Editor, upstream: Upstream) -> None:
    upstream.play([Started(), Opaque(WHOLE, 0, 5), Finished(0, "stop"), Used(Usage(3, 5))])
    assert editor.post("/infill", LLAMA).data == WHOLE
    cut = editor.post("/infill", LLAMA | {"response_fields": ["content", "timings/n"]})
    assert cut.text == '{"content":"Hello","timings/n":1.5}'
    assert editor.post("/infill", LLAMA | {"response_fields": [""]}).text == "{}"


def test_several_results_of_llamacpp_are_an_array(editor: Editor, upstream: Upstream) -> None:
    upstream.play([Opaque(b'{"content":"x"}'), Opaque(b'{"content":"y"}', 1), Finished(0, "stop"),
                   Finished(1, "stop")])  # fmt: skip
    found = editor.post("/infill", LLAMA | {"n_cmpl": 2})
    assert found.text == '[{"content":"x"},{"content":"y"}]'


def test_a_parameter_whose_value_is_no_default_of_llamacpp_is_sent(
    editor: Editor,
    upstream: Upstream,
) -> None:
    sent = {"top_p": 1, "n_cmpl": 1, "frequency_penalty": 0, "stop": ["", "x"], "seed": -1}
    editor.post("/infill", LLAMA | sent | {"n_predict": -1, "prompt": "", "cache_prompt": True})
    assert upstream.request.infill == {
        "input_prefix": "a", "input_suffix": "b", "prompt": "", "cache_prompt": True,
        "top_p": 1, "n_cmpl": 1, "frequency_penalty": 0, "stop": ("x",), "seed": -1,
    }  # fmt: skip


def test_fields_of_sluice_are_not_sent_to_llamacpp(editor: Editor, upstream: Upstream) -> None:
    more = {"provider": "llama", "stream_id": "x", "byok_api_key": "my-own-key", "fallbacks": []}
    found = editor.post("/infill", LLAMA | more)
    assert found.status_code == 200
    assert set(upstream.request.infill) == {"input_prefix", "input_suffix"}
    assert upstream.request.files == ()


def test_files_count_as_input_when_a_call_is_admitted(
    editor: Editor,
    upstream: Upstream,
) -> None:
    upstream.play([Started(), Opaque(WHOLE, 0, 5), Finished(0, "stop")])
    extra = [{"text": "x" * 400, "filename": "a.py"}]
    editor.post("/infill", LLAMA | {"input_extra": extra})
    assert upstream.request.files == (SourceFile("a.py", "x" * 400),)
    client = editor.app.test_client()
    rows = client.get("/api/v1/user/requests", headers=editor.headers).get_json()["data"]
    assert rows[0]["tokens"]["input"] > 100


@pytest.mark.parametrize("begun", [False, True])
def test_a_stopped_stream_of_llamacpp_ends_with_stop(
    editor: Editor,
    upstream: Upstream,
    *,
    begun: bool,
) -> None:
    upstream.play(*(SCRIPT[:1] if begun else []), editor.stop, None)
    found = editor.post("/infill", LLAMA | {"stream": True, "stream_id": "mine"})
    last = pieces(found.text)[-1]
    assert (last["stop"], last["stop_type"], last["content"]) == (True, "none", "")
    assert len(pieces(found.text)) == 1 + begun


def test_a_stop_after_the_last_piece_of_llamacpp_sends_no_second_one(
    editor: Editor,
    upstream: Upstream,
) -> None:
    last = own(index=0, content="", stop=True, stop_type="eos")
    ended = Opaque(last, 0, 0, ends=(0,))
    upstream.play(*SCRIPT[:1], [ended], editor.stop, None)
    found = editor.post("/infill", LLAMA | {"stream": True, "stream_id": "mine"})
    assert [one.get("stop_type") for one in pieces(found.text)] == [None, "eos"]


def test_a_stopped_whole_answer_of_llamacpp_is_what_there_is(
    editor: Editor,
    upstream: Upstream,
) -> None:
    upstream.play(editor.stop, None)
    found = editor.post("/infill", LLAMA | {"stream_id": "mine"}).get_json()
    assert (found["content"], found["stop_type"]) == ("", "none")


def test_a_failed_stream_ends_with_an_error(editor: Editor, upstream: Upstream) -> None:
    upstream.play(SCRIPT[0], Unavailable("Later."))
    found = editor.post("/infill", LLAMA | {"stream": True})
    assert pieces(found.text)[-1]["error"]["code"] == "unavailable"


def test_what_is_invisible_of_a_failed_attempt_never_reaches_the_client(
    editor: Editor,
    upstream: Upstream,
) -> None:
    progress = Opaque(own(index=0, content="", prompt_progress=1), 0, 0, visible=False)
    upstream.scripts = [[[Started(), progress], UpstreamError("It broke.")], answer("Hello")]
    found = editor.post("/infill", LLAMA | {"stream": True, "fallbacks": ["coder/m"]})
    assert [one["content"] for one in pieces(found.text)] == ["Hello", ""]
    assert "prompt_progress" not in found.text
    assert [target.name for target in upstream.targets] == ["llama/m", "coder/m"]


def test_what_is_invisible_of_a_good_attempt_comes_before_its_text(
    editor: Editor,
    upstream: Upstream,
) -> None:
    progress = Opaque(own(index=0, content="", prompt_progress=1), 0, 0, visible=False)
    upstream.play([Started(), progress], *SCRIPT)
    found = editor.post("/infill", LLAMA | {"stream": True})
    assert ["prompt_progress" in one for one in pieces(found.text)] == [True, False, False]


def test_line_separators_in_llamacpps_data_are_escaped(editor: Editor, upstream: Upstream) -> None:
    data = '{"content":"\u2028","stop":true}'.encode()
    upstream.play([Opaque(data, 0, 3), Finished(0, "stop")])
    found = editor.post("/infill", LLAMA | {"stream": True})
    assert found.text == 'data: {"content":"\\u2028","stop":true}\n\n'


# /completion


@pytest.mark.parametrize("path", COMPLETION)
def test_completion_takes_and_answers_llamacpps_fields(
    editor: Editor,
    upstream: Upstream,
    path: str,
) -> None:
    body = {"prompt": "<|fim_prefix|>a", "n_predict": 9, "stop": ["x"], "cache_prompt": True}
    found = editor.post(path, body).get_json()
    assert (found["content"], found["stop"]) == ("Hello", True)
    request = upstream.request
    assert (request.prompts, request.suffix) == (("<|fim_prefix|>a",), None)
    assert (request.max_tokens, request.stop) == (9, ("x",))
    assert request.openai_extra == {"cache_prompt": True}


@pytest.mark.parametrize("path", COMPLETION)
def test_a_stream_of_completion_has_content_and_stop_in_each_event(
    editor: Editor,
    path: str,
) -> None:
    found = editor.post(path, {"prompt": "a", "stream": True})
    assert [(one["content"], one["stop"]) for one in pieces(found.text)] == [
        ("Hello", False),
        ("", True),
    ]
    assert "[DONE]" not in found.text


def test_completion_without_tokens_echoes_no_more_than_v1_completions_does(
    editor: Editor,
    upstream: Upstream,
) -> None:
    editor.post("/completion", {"prompt": "a", "n_predict": 0})
    assert upstream.request.max_tokens == 0
