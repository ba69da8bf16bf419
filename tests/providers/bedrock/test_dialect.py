"""The Bedrock dialect: requests, unsupported parameters, and responses that no fixture has.

If botocore is installed, the dialect is compared with botocore's serializer and parser.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from completion import (
    CompletionRequest,
    Delta,
    Finished,
    FinishReason,
    Started,
    Usage,
    Used,
    flatten,
    fold,
)
from errors import InvalidRequest, UpstreamError
from keys.redaction import Secret
from providers.base import Dialect, Provider, Target, UpstreamRequest
from providers.bedrock import dialect as bedrock
from providers.bedrock.errors import STATUSES
from providers.bedrock.response import FAILURES, REASONS
from tests.support.frames import event, exception, frame
from tests.support.paths import FIXTURES

HOST = "https://bedrock-runtime.us-east-1.amazonaws.com"
ROW = Provider(name="bedrock", dialect="bedrock", base_url=HOST)
MODEL = "us.anthropic.claude-haiku-4-5-20251001-v1:0"
ARN = "arn:aws:bedrock:us-east-1:123456789012:application-inference-profile/abc123"
TARGET = Target(ROW, MODEL, Secret("test-credential"))
BEDROCK = FIXTURES / "bedrock"

EVERYTHING: dict[str, Any] = {
    "max_tokens": 5,
    "temperature": 0.5,
    "top_p": 0.9,
    "stop": ("\n", "END"),
}
CONFIG = {"maxTokens": 5, "temperature": 0.5, "topP": 0.9, "stopSequences": ["\n", "END"]}
GUARD = {"guardrailIdentifier": "g", "guardrailVersion": "1"}


def request(**fields: Any) -> CompletionRequest:
    return CompletionRequest(**{"prompts": ("Hi",), **fields})


def body(target: Target = TARGET, **fields: Any) -> dict[str, Any]:
    decoded: dict[str, Any] = json.loads(bedrock.call(request(**fields), target).body)
    assert decoded.pop("messages") == [{"role": "user", "content": [{"text": "Hi"}]}]
    return decoded


BODIES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "no parameters": ({}, {}),
    "a stream changes only the path": ({"stream": True}, {}),
    "all parameters": (EVERYTHING, {"inferenceConfig": CONFIG}),
    **{
        name: ({name: EVERYTHING[name]}, {"inferenceConfig": {theirs: CONFIG[theirs]}})
        for name, theirs in bedrock.CONFIG.items()
    },
    "zero is a value": ({"temperature": 0.0}, {"inferenceConfig": {"temperature": 0.0}}),
    "empty means absent": ({"stop": (), "extra": {}}, {}),
    "unsupported parameters are not sent": (
        {"n": 2, "seed": 1, "echo": True, "logprobs": 1, "user": "u"},
        {},
    ),
    "extra fields of Converse": (
        {"extra": {"guardrailConfig": GUARD, "performanceConfig": {"latency": "optimized"}}},
        {"guardrailConfig": GUARD, "performanceConfig": {"latency": "optimized"}},
    ),
    "extra fields of the model": (
        {"extra": {"top_k": 4, "thinking": {"type": "disabled"}}},
        {"additionalModelRequestFields": {"top_k": 4, "thinking": {"type": "disabled"}}},
    ),
    "extra fields and additionalModelRequestFields are merged": (
        {"extra": {"top_k": 4, "additionalModelRequestFields": {"top_k": 4, "x": None}}},
        {"additionalModelRequestFields": {"top_k": 4, "x": None}},
    ),
    "inferenceConfig in extra": (
        {"top_p": 0.9, "extra": {"inferenceConfig": {"topP": 0.9, "maxTokens": 5}}},
        {"inferenceConfig": {"topP": 0.9, "maxTokens": 5}},
    ),
}


@pytest.mark.parametrize(("fields", "expected"), BODIES.values(), ids=BODIES)
def test_the_request_body_holds_the_requested_fields(
    fields: dict[str, Any], expected: dict[str, Any]
) -> None:
    assert body(**fields) == expected


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "messages": ({"extra": {"messages": []}}, "messages"),
    "the model": ({"extra": {"modelId": "x"}}, "modelId"),
    "another value in inferenceConfig": (
        {"top_p": 0.9, "extra": {"inferenceConfig": {"topP": 0.1}}},
        "topP",
    ),
    "a field of the model in two places": (
        {"extra": {"top_k": 4, "additionalModelRequestFields": {"top_k": 5}}},
        "top_k",
    ),
    "inferenceConfig is None": (
        {"max_tokens": 5, "extra": {"inferenceConfig": None}},
        "inferenceConfig",
    ),
    "inferenceConfig is []": (
        {"max_tokens": 5, "extra": {"inferenceConfig": []}},
        "inferenceConfig",
    ),
    "inferenceConfig is 7": ({"max_tokens": 5, "extra": {"inferenceConfig": 7}}, "inferenceConfig"),
    "additionalModelRequestFields is None": (
        {"max_tokens": 5, "extra": {"additionalModelRequestFields": None}},
        "additionalModelRequestFields",
    ),
    "additionalModelRequestFields is []": (
        {"max_tokens": 5, "extra": {"additionalModelRequestFields": []}},
        "additionalModelRequestFields",
    ),
    "additionalModelRequestFields is 7": (
        {"max_tokens": 5, "extra": {"additionalModelRequestFields": 7}},
        "additionalModelRequestFields",
    ),
}


@pytest.mark.parametrize(("fields", "name"), REFUSED.values(), ids=REFUSED)
def test_a_passed_on_field_that_contradicts_the_body_is_refused(
    fields: dict[str, Any], name: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        body(**fields)
    assert caught.value.param == name
    assert name in caught.value.message


def test_parameters_that_the_provider_row_lacks_are_not_sent() -> None:
    row = Provider(name="b", base_url=HOST, cannot=("temperature",))
    assert body(Target(row, "m"), temperature=1.0, top_p=0.5) == {"inferenceConfig": {"topP": 0.5}}


@pytest.mark.parametrize(
    ("model", "quoted"),
    [
        (MODEL, "us.anthropic.claude-haiku-4-5-20251001-v1%3A0"),
        (ARN, ARN.replace(":", "%3A").replace("/", "%2F")),
        ("a b?c#d", "a%20b%3Fc%23d"),
        ("..", ".."),
    ],
)
def test_the_url_quotes_the_model_and_names_the_operation(model: str, quoted: str) -> None:
    for base in (HOST, HOST + "/"):
        target = Target(Provider(name="bedrock", base_url=base), model)
        whole = bedrock.call(request(), target)
        assert (whole.method, whole.url) == ("POST", f"{HOST}/model/{quoted}/converse")
        streamed = bedrock.call(request(stream=True), target)
        assert streamed.url == f"{HOST}/model/{quoted}/converse-stream"


def test_the_query_of_a_provider_row_is_kept_in_the_url() -> None:
    target = Target(Provider(name="b", base_url=HOST, query="a=1"), "m")
    assert bedrock.call(request(), target).url == f"{HOST}/model/m/converse?a=1"


def test_headers_carry_the_key_and_the_accepted_type() -> None:
    headers = bedrock.call(request(), TARGET).headers
    assert headers["Authorization"] == "Bearer test-credential"
    assert headers["Accept"] == "application/json"
    streamed = bedrock.call(request(stream=True), TARGET).headers
    assert streamed["Accept"] == "application/vnd.amazon.eventstream"
    assert "Authorization" not in bedrock.call(request(), Target(ROW, "m")).headers


def test_unsupported_lists_what_converse_and_the_provider_row_lack() -> None:
    lacks = {"suffix", "best_of", "token_ids", "echo", "echo_logprobs", "prompt_list", "n"}
    lacks |= {"logprobs", "seed", "logit_bias", "user", "openai_extra"}
    lacks |= {"frequency_penalty", "presence_penalty"}
    assert bedrock.unsupported(TARGET) == lacks
    row = Provider(name="b", base_url=HOST, cannot=("stop",))
    assert bedrock.unsupported(Target(row, "m")) == lacks | {"stop"}


def test_the_bedrock_module_is_a_dialect() -> None:
    dialect: Dialect = bedrock
    assert dialect


# Responses

START = event("messageStart", {"role": "assistant"})
HELLO = event("contentBlockDelta", {"contentBlockIndex": 0, "delta": {"text": "Hello"}})
USAGE = {"inputTokens": 8, "outputTokens": 2, "totalTokens": 10}
METADATA = event("metadata", {"usage": USAGE})


def stop(word: str | None) -> bytes:
    return event("messageStop", {"stopReason": word})


def ended(word: str | None) -> FinishReason | None:
    stream = START + HELLO + stop(word) + METADATA
    (choice,) = fold(flatten(bedrock.events([stream], request(stream=True)))).choices
    return choice.finish_reason


@pytest.mark.parametrize("word", sorted(REASONS))
def test_a_stop_reason_is_translated(word: str) -> None:
    assert ended(word) == REASONS[word]


@pytest.mark.parametrize("word", ["end_turn", "stop_sequence", "tool_use", "something_new", None])
def test_any_other_stop_reason_becomes_stop(word: str | None) -> None:
    assert ended(word) == "stop"


@pytest.mark.parametrize("word", sorted(FAILURES))
def test_a_failure_stop_reason_raises_an_upstream_error(word: str) -> None:
    with pytest.raises(UpstreamError) as raised:
        ended(word)
    assert raised.value.upstream_code == word


def test_each_frame_yields_its_own_batch_of_events() -> None:
    chunks = [START, HELLO, stop("end_turn"), METADATA]
    assert list(bedrock.events(chunks, request(stream=True))) == [
        [Started()],
        [Delta(0, "Hello")],
        [Finished(0, "stop")],
        [Used(Usage(input_tokens=8, output_tokens=2))],
    ]


def test_no_chunk_is_read_after_the_metadata_frame() -> None:
    def chunks() -> Iterator[bytes]:
        yield START + HELLO + stop("end_turn") + METADATA
        raise AssertionError

    assert len(list(bedrock.events(chunks(), request(stream=True)))) == 1


@pytest.mark.parametrize(
    "rest", [METADATA[:20], METADATA[:1], b""], ids=["half a frame", "a byte", "nothing"]
)
def test_a_stream_cut_before_its_metadata_ends_without_usage(rest: bytes) -> None:
    stream = START + HELLO + stop("end_turn") + rest
    answer = fold(flatten(bedrock.events([stream], request(stream=True))))
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is None


@pytest.mark.parametrize("kind", sorted(STATUSES))
def test_each_error_type_maps_to_its_status(kind: str) -> None:
    with pytest.raises(UpstreamError) as raised:
        list(bedrock.events([START + exception(kind, {"message": "x"})], request(stream=True)))
    assert raised.value.upstream_status == STATUSES[kind]
    assert raised.value.upstream_code == kind
    for header in (kind, f"{kind}:http://internal.example/", f"com.example#{kind}"):
        error = bedrock.error(418, {"x-amzn-errortype": header}, b"{}")
        assert (error.upstream_status, error.upstream_code) == (STATUSES[kind], kind)


@pytest.mark.parametrize("original", [200, "500", None, 99])
def test_an_invalid_original_status_code_falls_back_to_424(original: Any) -> None:
    failed = exception("modelStreamErrorException", {"originalStatusCode": original})
    with pytest.raises(UpstreamError) as raised:
        list(bedrock.events([failed], request(stream=True)))
    assert raised.value.upstream_status == 424


def test_an_exception_frame_without_a_type_has_no_status_or_code() -> None:
    with pytest.raises(UpstreamError) as raised:
        list(bedrock.events([frame({":message-type": "exception"}, b"[]")], request(stream=True)))
    assert (raised.value.upstream_status, raised.value.upstream_code) == (None, None)


def test_a_json_body_instead_of_a_stream_has_a_size_limit() -> None:
    with pytest.raises(UpstreamError, match="larger than"):
        list(bedrock.events([b"{", *[b" " * (1 << 20)] * 5], request(stream=True)))


# Comparison with botocore


class Raw:
    """A response body with the methods that botocore's parsers call."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def stream(self, **_: Any) -> Iterator[bytes]:
        yield self._data

    def close(self) -> None:
        pass


class Peer:
    """A botocore client that serializes calls and parses given responses, but sends nothing."""

    def __init__(self) -> None:
        session = pytest.importorskip("botocore.session", reason="botocore is optional")
        found = session.Session()
        found.set_credentials("AKIDEXAMPLE", "not-a-secret")
        self.client = found.create_client("bedrock-runtime", "us-east-1", endpoint_url=HOST)
        self.client.meta.events.register("before-send", self._answer)
        self.sent: list[Any] = []
        self.data = b""
        self.kind = ""

    def _answer(self, request: Any, **_: Any) -> Any:
        from botocore.awsrequest import AWSResponse

        class Response(AWSResponse):  # type: ignore[misc]
            content = self.data

        self.sent.append(request)
        return Response(request.url, 200, {"content-type": self.kind}, Raw(self.data))

    def whole(self, data: bytes, **call: Any) -> Any:
        self.data, self.kind = data, "application/json"
        return self.client.converse(**call)

    def streamed(self, data: bytes, **call: Any) -> list[Any]:
        self.data, self.kind = data, "application/vnd.amazon.eventstream"
        return list(self.client.converse_stream(**call)["stream"])

    def call(self) -> Any:
        return self.sent.pop()


@pytest.fixture(scope="module")
def peer() -> Peer:
    return Peer()


ANSWER = b'{"output": {"message": {"role": "assistant", "content": []}}, "stopReason": "end_turn"}'
KNOWN: dict[str, Any] = {
    "guardrailConfig": GUARD,
    "performanceConfig": {"latency": "optimized"},
    "requestMetadata": {"a": "b"},
    "serviceTier": {"type": "flex"},
    "system": [{"text": "Be brief."}],
    "additionalModelRequestFields": {"top_k": 4},
    "additionalModelResponseFieldPaths": ["/stop_sequence"],
    "promptVariables": {"a": {"text": "b"}},
}


@pytest.mark.parametrize("model", [MODEL, ARN])
@pytest.mark.parametrize("stream", [False, True])
def test_botocore_and_the_dialect_send_equal_requests(peer: Peer, model: str, stream: bool) -> None:
    asked = request(**EVERYTHING, stream=stream, extra=KNOWN)
    ours: UpstreamRequest = bedrock.call(asked, Target(ROW, model))
    call = {
        "modelId": model,
        "messages": [{"role": "user", "content": [{"text": "Hi"}]}],
        "inferenceConfig": CONFIG,
        **KNOWN,
    }
    peer.streamed(b"", **call) if stream else peer.whole(ANSWER, **call)
    theirs = peer.call()
    assert (ours.method, ours.url) == (theirs.method, theirs.url)
    assert json.loads(ours.body) == json.loads(theirs.body)


ANSWERED = [
    folder
    for folder in sorted(BEDROCK.iterdir())
    if "error" not in json.loads((folder / "expect.json").read_text())
    and not any(
        word in folder.name for word in ("odd", "unknown", "surrogates", "after_", "instead")
    )
]
"""The fixtures with a completion, except those that botocore, which is stricter, rejects."""


def text_of(blocks: list[dict[str, Any]]) -> str:
    cited = [block.get("citationsContent", {}).get("content", []) for block in blocks]
    pieces = zip(blocks, cited, strict=True)
    return "".join(
        block.get("text", "") + "".join(piece["text"] for piece in inner) for block, inner in pieces
    )


def expectation(text: str, reason: str, usage: dict[str, int]) -> dict[str, Any]:
    """Return what botocore parsed in the format of expect.json."""
    counts = {
        "input_tokens": sum(
            usage.get(name, 0)
            for name in ("inputTokens", "cacheReadInputTokens", "cacheWriteInputTokens")
        ),
        "output_tokens": usage.get("outputTokens", 0),
        "cache_read_tokens": usage.get("cacheReadInputTokens", 0),
        "cache_write_tokens": usage.get("cacheWriteInputTokens", 0),
    }
    choice = {"index": 0, "text": text, "finish_reason": REASONS.get(reason, "stop")}
    counted = {name: count for name, count in counts.items() if count}
    return {"model": None, "choices": [choice], "usage": counted or None}


@pytest.mark.parametrize("folder", ANSWERED, ids=lambda folder: folder.name)
def test_botocore_parses_each_fixture_as_expected(peer: Peer, folder: Path) -> None:
    call = {"modelId": MODEL, "messages": []}
    expected = json.loads((folder / "expect.json").read_text())
    if (folder / "body.json").exists():
        answer = peer.whole((folder / "body.json").read_bytes(), **call)
        text = text_of(answer["output"]["message"]["content"])
        assert expectation(text, answer["stopReason"], answer.get("usage", {})) == expected
    if (folder / "stream.bin").exists():
        events = peer.streamed((folder / "stream.bin").read_bytes(), **call)
        merged = {name: value for each in events for name, value in each.items()}
        deltas = [e["contentBlockDelta"]["delta"] for e in events if "contentBlockDelta" in e]
        text = "".join(delta.get("text", "") for delta in deltas)
        usage = merged.get("metadata", {}).get("usage", {})
        assert expectation(text, merged["messageStop"]["stopReason"], usage) == expected
