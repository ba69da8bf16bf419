"""Tests of clients that disconnect when the policy is "drain".

The provider's response is read to its end, within bounds, so that the recorded usage is exact.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from tests.support import calls
from tests.support import fake as fp
from tests.support.calls import BEGUN, EVENT, ask, begin_stream, closed_after, settled, stop
from tests.support.fake import FakeProvider
from tests.support.pace import scaled
from tests.support.raw_client import RawClient
from tests.support.sampling import sampled
from tests.support.servers import Kind, Server, fake_rows

KINDS: tuple[Kind, ...] = ("gevent", "gthread")
NOTICED_S = 1.5
"""The seconds in which the sweeper notices a disconnect. It checks connections once a second."""
GONE_WITHIN_S = scaled(NOTICED_S)
DRAIN_S = scaled(3)
USAGE = (7, 99)
REST = [*(fp.event(frame) for frame in fp.chunks(["!"], usage=USAGE)), fp.event("[DONE]"),
        fp.last_chunk()]  # fmt: skip
DEAR = '[prices."fake/dear"]\ninput_per_mtok = 1\noutput_per_mtok = 1000000\n'
"""A price of one dollar per output token."""
ENV = {"SLUICE_DISCONNECT": "drain", "SLUICE_DISCONNECT_S": str(DRAIN_S),
       "SLUICE_DISCONNECT_USD": "0.5", "SLUICE_DRAIN_S": "1"}  # fmt: skip


def serve(fake: FakeProvider, kind: Kind = "gevent") -> Server:
    rows = fake_rows(fake.base_url)
    rows += calls.toml_row("cut", fake.base_url, disconnect="cancel")
    return Server(rows + DEAR, kind=kind, env=ENV)


@pytest.fixture(scope="module", params=sampled(KINDS, "gevent"))
def started(request: pytest.FixtureRequest, fake_process: FakeProvider) -> Iterator[Server]:
    with serve(fake_process, request.param) as server:
        yield server
        assert "Traceback" not in server.output()


@pytest.fixture
def server(started: Server, fake: FakeProvider) -> Server:
    """Return a server that drains for at most three seconds or half a dollar.

    The model `dear` of its row `fake` costs a dollar per token. Calls to its row `cut` are
    cancelled at once.
    """
    return started


def close(client: RawClient) -> None:
    client.close()


def reset(client: RawClient) -> None:
    client.reset()


def half_close(client: RawClient) -> None:
    client.half_close()


def used(line: dict[str, Any]) -> tuple[object, ...]:
    names = ("end_reason", "status", "input_tokens", "output_tokens", "usage_source")
    return tuple(line[name] for name in names)


EXACT = ("client_gone", 499, *USAGE, "provider")


@pytest.mark.parametrize("leave", [close, reset, half_close])
def test_a_drain_waits_for_a_silent_provider(
    server: Server, fake: FakeProvider, leave: Callable[[RawClient], None]
) -> None:
    fake.script([*BEGUN, fp.gate("rest"), *REST])
    with server.client() as client:
        stream_id = begin_stream(client)
        leave(client)
        time.sleep(NOTICED_S)
        assert [entry["stream_id"] for entry in calls.active(server)] == [stream_id]
        fake.open("rest")
        assert used(settled(server, stream_id)) == EXACT
    assert fake.requests[0].outcome == "finished"
    calls.wait_active(server, 0)


@pytest.mark.parametrize("leave", [close, reset])
def test_a_drain_reads_a_flowing_provider_to_its_end(
    server: Server, fake: FakeProvider, leave: Callable[[RawClient], None]
) -> None:
    # The gateway notices the disconnect when a write fails.
    flow = [step for _ in range(30) for step in (EVENT, fp.sleep(0.02))]
    fake.script([*BEGUN, *flow, *REST])
    with server.client() as client:
        stream_id = begin_stream(client)
        leave(client)
        assert used(settled(server, stream_id)) == EXACT
    assert fake.requests[0].outcome == "finished"


def test_a_full_mailbox_does_not_block_a_drain(server: Server, fake: FakeProvider) -> None:
    burst = fp.event(fp.chunks(["word " * 20_000], finish=None)[0])
    fake.script([*BEGUN, *[burst] * 100, *REST])
    with server.client(rcvbuf=4096) as client:
        stream_id = begin_stream(client)
        calls.wait_blocked(fake)
        assert fake.counts.active == 1
        client.reset()
        assert used(settled(server, stream_id)) == EXACT
    assert fake.requests[0].outcome == "finished"


def test_a_drain_waits_for_the_response_of_a_unary_call(server: Server, fake: FakeProvider) -> None:
    fake.script([fp.gate("rest"), *fp.answer(fp.body("whole", usage=USAGE))])
    with server.client() as client:
        ask(client, stream_id="unary")
        fake.wait_requests()
    time.sleep(NOTICED_S)
    fake.open("rest")
    [line] = wait_lines(server, 1, stream_id="unary")
    assert used(line) == EXACT


def wait_lines(server: Server, count: int, **fields: str) -> list[dict[str, Any]]:
    """Wait for exactly `count` log lines with these fields. Return the lines."""
    found: list[dict[str, Any]] = []

    def there() -> bool:
        lines = calls.log_lines(server)
        found[:] = [line for line in lines if fields.items() <= line.items()]
        return len(found) >= count

    server.wait(there)
    assert len(found) == count
    return found


def test_a_provider_failure_during_a_drain_starts_no_fallback(
    server: Server, fake: FakeProvider
) -> None:
    fake.script([fp.gate("rest"), *fp.error(503)])
    with server.client() as client:
        ask(client, stream=True, stream_id="failed", fallbacks=["fakechat/m"])
        fake.wait_requests()
    time.sleep(NOTICED_S)
    fake.open("rest")
    [line] = wait_lines(server, 1, stream_id="failed")
    assert used(line) == ("client_gone", 499, 0, 0, "provider")
    assert fake.counts.received == 1


def gone_after(fake: FakeProvider, since: float) -> float:
    [request] = fake.wait_closed()
    return closed_after(request, since)


def test_a_drain_is_bounded_in_time(server: Server, fake: FakeProvider) -> None:
    fake.script([*BEGUN, fp.hold()])
    with server.client() as client:
        stream_id = begin_stream(client)
        client.close()
        since = time.monotonic()
        assert DRAIN_S - 0.1 < gone_after(fake, since) < DRAIN_S + GONE_WITHIN_S + scaled(0.5)
    assert used(settled(server, stream_id)) == ("client_gone", 499, 2, 2, "estimate")


@pytest.mark.parametrize(("model", "bounded"), [("fake/dear", True), ("fake/unpriced", False)])
def test_a_drain_is_bounded_in_dollars_where_the_price_is_known(
    server: Server, fake: FakeProvider, model: str, bounded: bool
) -> None:
    fake.script([*BEGUN, fp.repeat(EVENT.data, 0.05)])
    with server.client() as client:
        stream_id = begin_stream(client, model=model)
        client.close()
        took = gone_after(fake, time.monotonic())
    assert took < GONE_WITHIN_S if bounded else took > DRAIN_S - 0.1
    assert used(settled(server, stream_id))[-1] == "estimate"


def test_a_provider_row_may_set_disconnect_to_cancel(server: Server, fake: FakeProvider) -> None:
    fake.script([*BEGUN, fp.hold()])
    with server.client() as client:
        stream_id = begin_stream(client, model="cut/m")
        client.close()
        assert gone_after(fake, time.monotonic()) < GONE_WITHIN_S
    assert used(settled(server, stream_id))[-1] == "estimate"


def test_a_drain_can_be_stopped(server: Server, fake: FakeProvider) -> None:
    fake.script([*BEGUN, fp.hold()])
    with server.client() as client:
        stream_id = begin_stream(client)
        client.close()
    time.sleep(NOTICED_S)
    answer = stop(server, stream_id)
    assert answer.status == 200
    assert gone_after(fake, answer.sent_at) < scaled(0.5)
    assert used(settled(server, stream_id))[:2] == ("client_gone", 499)
    calls.wait_active(server, 0)
    assert stop(server, stream_id).status == 200


@pytest.mark.parametrize("kind", sampled(KINDS, "gthread"))
def test_shutdown_ends_a_drain(fake: FakeProvider, kind: Kind) -> None:
    fake.script([*BEGUN, fp.hold()])
    with serve(fake, kind) as server:
        with server.client() as client:
            stream_id = begin_stream(client)
        time.sleep(NOTICED_S - 0.3)  # by now the drain has more than a second left
        since = time.monotonic()
        server.signal(signal.SIGTERM)
        assert 0.9 < gone_after(fake, since) < 1 + scaled(0.7)
        assert server.wait_exit() == 0
        assert used(settled_lines(server, stream_id)[0])[:2] == ("client_gone", 499)
    assert "Traceback" not in server.output()


def settled_lines(server: Server, stream_id: str) -> Sequence[dict[str, Any]]:
    """Return the log lines of a call. Unlike calls.settled, this works after the server's exit."""
    return [line for line in calls.log_lines(server) if line.get("stream_id") == stream_id]


def test_cancel_is_the_default_when_a_client_disconnects(fake: FakeProvider) -> None:
    fake.script([*BEGUN, fp.hold()])
    with Server(fake_rows(fake.base_url)) as server, server.client() as client:
        begin_stream(client)
        client.close()
        assert gone_after(fake, time.monotonic()) < GONE_WITHIN_S
