"""Checks of a ledger after a load, which must pass whatever happened meanwhile."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from tests.support import fake as fp
from tests.support import mixture
from tests.support.books import Place, Row, assert_sound, by_request, open_rows, rows
from tests.support.fake import FakeProvider
from tests.support.load import Load, Sent, scripts
from tests.support.mixture import INPUT_NANO, OUTPUT_NANO
from tests.support.pace import HANG_S
from tests.support.servers import Server


@contextmanager
def serve(
    fake: FakeProvider, directory: Path | None = None, **env: str
) -> Iterator[tuple[Server, dict[str, str]]]:
    """Start a server for the kinds of `mixture`. Yield the server and its keys by name."""
    fake.named(scripts(mixture.everything()) | scripts(mixture.lasting()) | mixture.FALLBACK)
    server = Server(mixture.config(fake.base_url), env=mixture.ENV | env, directory=directory)
    keys = mixture.add_keys(server)
    server.key = keys["main"]
    with server:
        yield server, keys
    assert "Traceback" not in server.output()


def wait_settled(server: Server, place: Place, timeout: float = HANG_S) -> None:
    server.wait(lambda: not open_rows(place), timeout)


def assert_rows_are_the_accepted(load: Load, place: Place) -> dict[str, Row]:
    """Assert that exactly the accepted calls have rows, and that these are correct.

    Also assert that each client got the expected response. Return the rows by request id.
    """
    assert_sound(place)
    found = by_request(rows(place))
    accepted = {sent.id: sent for sent in load.sent if sent.kind.reason}
    assert set(found) == set(accepted)
    assert [sent for sent in load.sent if sent.failure] == []
    assert wrong_answers(load.sent) == []
    assert [d for id_, sent in accepted.items() if (d := differences(sent, found[id_]))] == []
    return found


def wrong_answers(all_sent: Iterable[Sent]) -> list[Sent]:
    return [s for s in all_sent if s.kind.act != "leave" and s.status != s.kind.status]


def differences(sent: Sent, row: Row) -> list[tuple[str, object, object]]:
    """Return the fields in which a row differs from the call's kind or the client's response.

    Each is a tuple of the field's name, the expected value and the actual value.
    """
    kind = sent.kind
    expected = {
        "key_id": f"key_{kind.key}",
        "endpoint": sent.path,
        "streamed": kind.stream,
        "byok": "byok_api_key" in kind.more,
        "status": kind.status,
        "end_reason": kind.reason,
        "attempts": kind.attempts,
    }
    if kind.act == "leave" and row["attempts"] == 0:  # the client left before the first attempt
        del expected["attempts"]
    found = [(name, value, row[name]) for name, value in expected.items() if row[name] != value]
    if sent.usage not in (None, usage_of(row)):
        found.append(("usage", sent.usage, usage_of(row)))
    return found and [("request_id", sent.id, row["request_id"]), *found]


def assert_usage_is_the_providers(
    load: Load, found: Mapping[str, Row], requests: Iterable[fp.Request]
) -> tuple[int, int]:
    """Assert that rows have the usage that the provider reported, or else an estimate.

    Also assert that costs match the tokens. Calls that didn't end as their kind demands are left
    out. Return the sums of the reported input and output tokens.
    """
    by_provider = reported(requests)
    ended = [s for s in load.sent if s.id in found and found[s.id]["end_reason"] == s.kind.reason]
    exact = [(s, found[s.id]) for s in ended if s.kind.exact]
    estimated = [(s, found[s.id]) for s in ended if not s.kind.exact]
    assert [
        pair for pair in exact if usage_of(pair[1]) != by_provider.get(pair[0].id, (0, 0))
    ] == []
    assert [pair for pair in exact if pair[1]["usage_source"] != "provider"] == []
    begun = [pair for pair in estimated if pair[1]["attempts"]]
    assert [pair for pair in begun if pair[1]["usage_source"] != "estimate"] == []
    never = [pair for pair in estimated if not pair[1]["attempts"]]  # the client left too early
    assert [pair for pair in never if usage_of(pair[1]) != (0, 0)] == []
    assert [row for row in found.values() if row["cost_nano"] != cost_of(row)] == []
    return total(usage_of(row) for _, row in exact)


def reported(requests: Iterable[fp.Request]) -> dict[str, tuple[int, int]]:
    return {asked(request): request.usage for request in requests if request.usage}


def asked(request: fp.Request) -> str:
    return request.prompt.partition(" ")[2]


def usage_of(row: Row) -> tuple[int, int]:
    return row["input_tokens"], row["output_tokens"]


def cost_of(row: Row) -> int:
    tokens = row["input_tokens"] * INPUT_NANO + row["output_tokens"] * OUTPUT_NANO
    return 0 if row["byok"] else int(tokens)


def total(usages: Iterable[tuple[int, int]]) -> tuple[int, int]:
    ins, outs = zip(*usages, strict=True)
    return sum(ins), sum(outs)


def assert_all_agree(
    server: Server, load: Load, place: Place, requests: Sequence[fp.Request]
) -> None:
    """Assert that clients, rows, daily sums, provider and metrics agree after a load."""
    found = assert_rows_are_the_accepted(load, place)
    sums = assert_usage_is_the_providers(load, found, requests)
    assert sums == total(reported(requests).values())
    assert_the_provider_was_called_for_rows_only(requests, found)
    assert_metrics_agree(server, found, load)


def assert_whole_answers_are_recorded(load: Load, found: Mapping[str, Row]) -> None:
    """Assert that each completely received response has a row that agrees with it."""
    accepted = (sent for sent in load.sent if sent.kind.reason)
    whole = [sent for sent in accepted if sent.whole and sent.status == sent.kind.status]
    assert whole
    assert [sent for sent in whole if sent.id not in found] == []
    assert [d for sent in whole if (d := differences(sent, found[sent.id]))] == []


def assert_survived(
    load: Load, place: Place, requests: Iterable[fp.Request], *, kills: int
) -> dict[str, Row]:
    """Assert that the ledger is correct after workers were killed under load.

    Completely received responses have their rows. Any other row is closed as interrupted, unless
    its call had completed before the client received the whole response. Return the rows by request
    id.
    """
    assert_sound(place)
    found = by_request(rows(place))
    requests = list(requests)
    assert_whole_answers_are_recorded(load, found)
    assert_usage_is_the_providers(load, found, requests)
    assert_the_provider_was_called_for_rows_only(requests, found)
    assert {row["end_reason"] for row in found.values()} == {"completed", "interrupted"}
    cut = [row for row in found.values() if row["end_reason"] == "interrupted"]
    assert len(cut) >= kills
    assert {(row["status"], row["usage_source"]) for row in cut} == {(500, "estimate")}
    return found


def assert_the_provider_was_called_for_rows_only(
    requests: Iterable[fp.Request], found: Mapping[str, Row]
) -> None:
    """Assert that each request at the provider has a row that counts it as an attempt."""
    reached = Counter(map(asked, requests))
    assert reached
    assert set(reached) <= set(found)
    assert [id_ for id_, count in reached.items() if count > found[id_]["attempts"] > 0] == []


def samples(server: Server) -> list[tuple[str, dict[str, str], float]]:
    """Return the samples of Sluice's metrics: name, labels, value."""
    connection = HTTPConnection("127.0.0.1", server.port, timeout=HANG_S)
    try:
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
    finally:
        connection.close()
    return [
        (sample.name, sample.labels, sample.value)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name.startswith("sluice_")
    ]


def metric(server: Server, name: str, **labels: str) -> float:
    return sum(
        value
        for found, own, value in samples(server)
        if found == name and labels.items() <= own.items()
    )


def assert_metrics_agree(server: Server, found: Mapping[str, Row], load: Load) -> None:
    """Assert that the metrics agree with the rows and with the rejected calls."""
    counts: Counter[tuple[Any, ...]] = Counter()
    reasons: Counter[str] = Counter()
    for name, labels, value in samples(server):
        if name == "sluice_requests_total" and not labels["endpoint"].count("<"):
            counts[labels["endpoint"], labels["provider"], int(labels["status"])] += int(value)
        elif name == "sluice_streams_ended_total" and value:
            reasons[labels["reason"]] += int(value)
    rows_ = found.values()
    expected = Counter((row["endpoint"], row["provider"], row["status"]) for row in rows_)
    expected += Counter((s.path, "", s.kind.status) for s in load.sent if not s.kind.reason)
    assert counts == expected
    assert reasons == Counter(row["end_reason"] for row in rows_)
    for direction, column in (("input", "input_tokens"), ("output", "output_tokens")):
        tokens = metric(server, "sluice_tokens_total", direction=direction)
        assert tokens == sum(row[column] for row in rows_)
    cost = round(metric(server, "sluice_cost_dollars_total") * 1e9)
    assert cost == sum(row["cost_nano"] for row in rows_)
    refused = Counter(s.kind.name for s in load.sent if not s.kind.reason)
    for limit, kind in (("requests", "limited"), ("tokens", "tokenless"), ("budget", "broke")):
        assert metric(server, "sluice_quota_rejections_total", limit=limit) == refused[kind]
    assert metric(server, "sluice_ledger_queue") == 0
    assert metric(server, "sluice_streams_active") == 0
