"""How long a stop takes that reaches another process than the call's own.

usage: cluster_stop.py [ROUNDS]     (500 in all, over the phases)
Starts a Redis, a Postgres, and two gunicorn masters of two workers each, as the cluster's tests do.
Each stop is asked of another worker than the call's, every pair in turn; prints milliseconds from
the moment at which it was sent.
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
    """Seconds since the stop was sent, until: its answer, the end of the provider's connection, the
    end of the client's answer."""

    answer: float
    closed: float
    ended: float


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
        show(f"stop elsewhere, {phase}: upstream closed", [took.closed for took in all_took])
        show(f"stop elsewhere, {phase}: answered", [took.answer for took in all_took])
        show(f"stop elsewhere, {phase}: client has its end", [took.ended for took in all_took])


if __name__ == "__main__":
    main()
