"""Tests of every dialect on its fixtures: raw bytes in, equal events out at any split of the bytes.

A fixture is a folder, tests/fixtures/<dialect>/<case>/, with some of these files:

    stream.*         a streamed body, as received
    body.json        a whole body: JSON, or a stream from a host that always streams
    refusal.json     {"status", "headers"} of a response whose status isn't 2xx
    refusal.body     the body of that response
    request.json     fields of the CompletionRequest (by default one prompt, "Hi")
    expect.json      the completion: {"model", "choices": [{"index", "text", "finish_reason",
                     "logprobs"}], "usage": its fields other than 0, or null}; or
                     {"error": {"message", "upstream_status", "upstream_code",
                     "upstream_message", "retry_after"}, "before": the choices before the error}

If a fixture has both a stream and a body, both must give the completion in expect.json. To add a
dialect, add a row to DIALECTS, and fixtures.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import msgspec
import pytest

import completion
from completion import Completion, CompletionRequest, Event, Finished, Used, flatten, fold
from errors import UpstreamError
from providers.anthropic import dialect as anthropic
from providers.base import Dialect
from providers.bedrock import dialect as bedrock
from providers.cohere import dialect as cohere
from providers.google import dialect as google
from providers.infill import dialect as infill
from providers.openai import dialect as openai
from streams.tally import Tally
from tests.support import frames
from tests.support.paths import FIXTURES
from tests.support.sampling import sampled

SMALL = 4096
"""The size in bytes up to which a stream is cut at every byte. A larger one is cut at about SAMPLES
bytes."""
SAMPLES = 500
FEW_SAMPLES = 12
"""The number of places at which `make test` cuts a stream. `make test-all` cuts at more."""


def blank_lines(stream: bytes) -> list[int]:
    """Return the offsets at which the events of a server-sent event stream end."""
    return [match.end() for match in re.finditer(rb"(?:\r\n|\n|\r)(?:\r\n|\n|\r)", stream)]


class Row(NamedTuple):
    dialect: Dialect
    event_ends: Callable[[bytes], list[int]] = blank_lines
    last: bytes | None = None
    """The bytes that end a stream. Anything after them is ignored."""


DIALECTS = {
    "openai": Row(openai, last=b"data: [DONE]\n\n"),
    "infill": Row(infill),
    "anthropic": Row(anthropic, last=b'data: {"type":"message_stop"}\n\n'),
    "cohere": Row(cohere, last=b"data: [DONE]\n\n"),
    "google": Row(google),
    "bedrock": Row(bedrock, event_ends=frames.ends),
}

GARBAGE = (b"\x00\xff garbage", b"data: {]\n\n", b'data: {"error":"late"}\n\n', b"\r\n" * 9)


class Case(NamedTuple):
    row: Row
    folder: Path

    @property
    def request(self) -> CompletionRequest:
        path = self.folder / "request.json"
        fields = json.loads(path.read_text()) if path.exists() else {}
        fields = {"prompts": ["Hi"], "stream": self.stream is not None, **fields}
        return msgspec.convert(fields, CompletionRequest)

    @property
    def expected(self) -> dict[str, Any]:
        expected: dict[str, Any] = json.loads((self.folder / "expect.json").read_text())
        return expected

    @property
    def stream(self) -> bytes | None:
        return next((path.read_bytes() for path in self.folder.glob("stream.*")), None)

    @property
    def body(self) -> bytes | None:
        path = self.folder / "body.json"
        return path.read_bytes() if path.exists() else None


CASES = [
    Case(row, folder)
    for name, row in DIALECTS.items()
    for folder in sorted((FIXTURES / name).iterdir())
]


def cases(holding: str) -> pytest.MarkDecorator:
    """Run a test for each case with a file of this name."""
    found = [case for case in CASES if list(case.folder.glob(holding))]
    ids = [f"{case.folder.parent.name}/{case.folder.name}" for case in found]
    return pytest.mark.parametrize("case", found, ids=ids)


class Outcome(NamedTuple):
    events: list[Event]
    error: dict[str, Any] | None


def error_fields(error: UpstreamError) -> dict[str, Any]:
    names = ("message", "upstream_status", "upstream_code", "upstream_message", "retry_after")
    fields = {name: getattr(error, name) for name in names}
    if fields["retry_after"] is None:
        del fields["retry_after"]
    return fields


def outcome(case: Case, request: CompletionRequest, chunks: Iterable[bytes]) -> Outcome:
    """Return the events of a stream up to its end or its error, and the error."""
    events: list[Event] = []
    try:
        for batch in case.row.dialect.events(chunks, request):
            events += batch
    except UpstreamError as error:
        return Outcome(events, error_fields(error))
    return Outcome(events, None)


def completion_fields(result: Completion) -> dict[str, Any]:
    """Return a completion in the format of expect.json."""
    choices = [msgspec.to_builtins(choice) for choice in result.choices]
    for choice in choices:
        if choice["logprobs"] is None:
            del choice["logprobs"]
    usage = result.usage and {
        name: value
        for name, value in msgspec.to_builtins(result.usage).items()
        if value and name != "source"
    }
    return {"model": result.model, "choices": choices, "usage": usage}


def all_finished(events: list[Event], request: CompletionRequest) -> bool:
    return len({event.index for event in events if isinstance(event, Finished)}) >= request.choices


Places: TypeAlias = Callable[[bytes], Iterable[int]]


def every_place(stream: bytes) -> Iterable[int]:
    """Return where to cut a stream: everywhere, or at SAMPLES places of a large one."""
    step = 1 if len(stream) <= SMALL else max(1, len(stream) // SAMPLES)
    return range(0, len(stream), step)


def few_places(stream: bytes) -> Iterable[int]:
    """Return FEW_SAMPLES places to cut a stream at, spread over all of it."""
    return range(0, len(stream), max(1, len(stream) // FEW_SAMPLES))


at_places = pytest.mark.parametrize(
    "places",
    [
        pytest.param(few_places, id="few-places"),
        pytest.param(every_place, id="every-place", marks=pytest.mark.thorough),
    ],
)


@cache
def stream_of(case: Case) -> bytes:
    assert case.stream is not None
    return case.stream


@cases("stream.*")
def test_a_stream_fixture_gives_its_expected_completion_or_error(case: Case) -> None:
    events, error = outcome(case, case.request, [stream_of(case)])
    expected = case.expected
    if "error" in expected:
        assert error == expected["error"]
        assert completion_fields(fold(events))["choices"] == expected.get("before", [])
    else:
        assert error is None
        assert completion_fields(fold(events)) == expected


@cases("body.json")
def test_a_body_fixture_gives_its_expected_completion_or_error(case: Case) -> None:
    assert case.body is not None
    expected = case.expected
    if "error" in expected:
        with pytest.raises(UpstreamError) as raised:
            case.row.dialect.complete(case.body, case.request)
        assert error_fields(raised.value) == expected["error"]
    else:
        assert (
            completion_fields(fold(case.row.dialect.complete(case.body, case.request))) == expected
        )


@cases("refusal.json")
def test_a_refusal_fixture_gives_its_expected_error(case: Case) -> None:
    response = json.loads((case.folder / "refusal.json").read_text())
    body = (case.folder / "refusal.body").read_bytes()
    error = case.row.dialect.error(response["status"], response["headers"], body)
    assert error_fields(error) == case.expected["error"]


@cases("stream.*")
def test_stream_and_body_of_a_fixture_give_equal_completions(case: Case) -> None:
    if case.body is None or "error" in case.expected:
        return
    streamed = fold(flatten(case.row.dialect.events([stream_of(case)], case.request)))
    assert streamed == fold(case.row.dialect.complete(case.body, case.request))


@cases("stream.*")
def test_the_final_usage_is_the_usage_that_the_provider_reported(case: Case) -> None:
    """No text follows the last usage, and no text is counted twice.

    Counts of 0 that can't be true are estimated.
    """
    events, error = outcome(case, case.request, [stream_of(case)])
    usage = fold(events).usage
    if error is None and usage is not None:
        tally = Tally(case.request.prompts)
        tally.add(events)
        found = tally.usage(failed=False)
        assert found.source == usage.source
        if usage.source == "provider":
            assert found == usage
        else:
            assert 0 in (usage.input_tokens, usage.output_tokens)
            assert found.input_tokens == (usage.input_tokens or 1)
            assert found.output_tokens == (usage.output_tokens or 2)


@cases("stream.*")
def test_each_usage_of_a_stream_is_consistent(case: Case) -> None:
    """`flask usage verify` checks the same of the ledger's rows."""
    for event in outcome(case, case.request, [stream_of(case)]).events:
        if isinstance(event, Used):
            usage = event.usage
            assert usage.cache_read_tokens + usage.cache_write_tokens <= usage.input_tokens
            assert usage.reasoning_tokens <= usage.output_tokens
            assert min(usage.input_tokens, usage.output_tokens) >= 0
            assert max(usage.input_tokens, usage.output_tokens) < 1 << 34


@cases("stream.*")
def test_reading_a_stream_byte_by_byte_does_not_change_its_events(case: Case) -> None:
    stream, request = stream_of(case), case.request
    single = [stream[i : i + 1] for i in range(len(stream))]
    assert outcome(case, request, single) == outcome(case, request, [stream])


@at_places
@cases("stream.*")
def test_splitting_a_stream_in_two_anywhere_does_not_change_its_events(
    case: Case, places: Places
) -> None:
    stream, request = stream_of(case), case.request
    whole = outcome(case, request, [stream])
    for place in places(stream):
        assert outcome(case, request, [stream[:place], stream[place:]]) == whole, place


@cases("stream.*")
def test_empty_chunks_do_not_change_the_events_of_a_stream(case: Case) -> None:
    stream, request = stream_of(case), case.request
    chunks = [part for line in stream.splitlines(keepends=True) for part in (b"", line, b"")]
    assert outcome(case, request, chunks) == outcome(case, request, [stream])


@cases("stream.*")
def test_each_chunk_yields_at_most_one_batch_of_events(case: Case) -> None:
    """The events of a chunk are yielded together, and before the next chunk is read."""
    stream, request = stream_of(case), case.request
    asked = 0

    def chunks() -> Iterable[bytes]:
        nonlocal asked
        start = 0
        for end in [*case.row.event_ends(stream), len(stream)]:
            asked += 1
            yield stream[start:end]
            start = end

    served: list[int] = []
    with suppress(UpstreamError):
        served.extend(asked for _ in case.row.dialect.events(chunks(), request))
    assert served == sorted(set(served))


@cases("stream.*")
@pytest.mark.parametrize("garbage", sampled(GARBAGE, GARBAGE[0]), ids=range(len(GARBAGE)))
def test_bytes_after_the_end_of_a_stream_are_ignored(case: Case, garbage: bytes) -> None:
    stream, request, last = stream_of(case), case.request, case.row.last
    if last is None or last not in stream:
        return
    stream = stream[: stream.index(last) + len(last)]
    whole = outcome(case, request, [stream])
    assert outcome(case, request, [stream + garbage]) == whole
    assert outcome(case, request, [stream, garbage, garbage]) == whole


@at_places
@cases("stream.*")
def test_a_truncated_stream_raises_unless_every_choice_has_finished(
    case: Case, places: Places
) -> None:
    """This holds for cuts at the end of any event and for cuts inside events."""
    stream, request = stream_of(case), case.request
    whole = outcome(case, request, [stream])
    for place in sorted({*case.row.event_ends(stream), *places(stream)} - {len(stream)}):
        cut = outcome(case, request, [stream[:place]])
        assert cut.events == whole.events[: len(cut.events)], place
        if cut.error is None:
            assert all_finished(cut.events, request) or cut == whole, place


def test_each_dialect_has_fixtures_of_each_kind() -> None:
    for name in DIALECTS:
        for kind in ("stream.*", "body.json", "refusal.json"):
            assert list((FIXTURES / name).glob(f"*/{kind}")), (name, kind)


def test_each_fixture_has_an_expectation_and_only_known_files() -> None:
    known = {"body.json", "request.json", "expect.json", "refusal.json", "refusal.body"}
    for case in CASES:
        files = {path.name for path in case.folder.iterdir()}
        assert not {f for f in files - known if not f.startswith("stream.")}, case.folder
        assert "expect.json" in files, case.folder
        assert files & {"body.json", "refusal.json"} or case.stream is not None, case.folder


def test_request_fixtures_use_only_known_fields() -> None:
    """A misspelt field would be ignored in request.json. In expect.json, the comparison fails."""
    names = set(completion.CompletionRequest.__struct_fields__)
    for case in CASES:
        path = case.folder / "request.json"
        assert not path.exists() or set(json.loads(path.read_text())) <= names, case.folder
