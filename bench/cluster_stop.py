"""Measure the latency of a stop when the process that receives it doesn't run the call.

usage: cluster_stop.py [ROUNDS]     (default: 500, spread over the phases)
The script starts a Redis, a Postgres, and two gunicorn masters of two workers each, as the tests of
the cluster do. It cycles through all pairs of workers: one runs the call, the other gets the stop.
It prints milliseconds since the stop was sent.
"""

from __future__ import annotations

import sys
import uuid
from collections.abc import Sequence
from itertools import chain, cycle, islice, permutations, product
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench.stop_latency import show
from tests.support import fake as fp
from tests.support.calls import BEGUN, EVENT, ask, closed_after
from tests.support.clusters import stop, untroubled
from tests.support.fake import FakeProvider
from tests.support.raw_client import RawClient

PHASES = {
    "before headers": [fp.hold()],
    "silent": [*BEGUN, fp.hold()],
    "flowing": [*BEGUN, fp.repeat(EVENT.data, 0.002)],
}


class Took(NamedTuple):
    """Seconds since the stop was sent."""

    answer: float
    """Until the response to the stop."""
    closed: float
    """Until the connection to the provider was closed."""
    ended: float
    """Until the client had its complete response."""


def measure(
    fake: FakeProvider, steps: Sequence[fp.Step], client: RawClient, asked: RawClient
) -> Took:
    fake.reset()
    fake.script(steps)
    stream_id = uuid.uuid4().hex
    ask(client, stream=True, stream_id=stream_id)
    fake.wait_requests()
    if steps[0] != fp.hold():
        client.read_head()
        while "Hello" not in client.frame().text:
            pass
    answer = stop(asked, stream_id)
    assert answer.status == 200, answer
    if steps[0] == fp.hold():
        client.read_head()
    *_, last = client.frames()
    [request] = fake.wait_closed()
    return Took(answer.took, closed_after(request, answer.sent_at), last.at - answer.sent_at)


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 500
    found: dict[str, list[Took]] = {phase: [] for phase in PHASES}
    with (
        FakeProvider.start() as fake,
        untroubled(fake.base_url) as cluster,
        cluster.clients_to_each() as owners,
        cluster.clients_to_each() as asked,
    ):
        cases = cycle(product(permutations(cluster.workers(), 2), PHASES))
        for (owner, other), phase in islice(cases, rounds):
            took = measure(fake, PHASES[phase], owners[owner], asked[other])
            found[phase].append(took)
    for phase, all_took in [*found.items(), ("all", list(chain(*found.values())))]:
        show(f"remote stop, {phase}: upstream closed", [took.closed for took in all_took])
        show(f"remote stop, {phase}: response", [took.answer for took in all_took])
        show(f"remote stop, {phase}: client response complete", [took.ended for took in all_took])


if __name__ == "__main__":
    main()
