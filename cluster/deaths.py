"""The question which processes of the cluster are certainly dead.

- A process that is only silent may still run its calls. So its subscription must be gone too, which
  Redis notices as soon as a process is killed.
- The answer counts only in a process whose heartbeats have reached Redis for a while: after an
  outage of Redis all processes look dead for a moment.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from cluster.messages import CHANNEL
from cluster.ownership import PROCESSES, SILENT_S, Cluster
from cluster.redis_client import RedisClient


def dead(redis_client: RedisClient, cluster: Cluster, names: Iterable[str]) -> set[str]:
    """Return those of some processes that are certainly dead. Raises RedisAway."""
    asked = sorted(names)
    if not asked or not cluster.steady:
        return set()

    def ask(client: Any) -> Any:
        with client.pipeline(transaction=False) as pipe:
            pipe.time()
            pipe.pubsub_numsub(*[CHANNEL + name for name in asked])
            for name in asked:
                pipe.zscore(PROCESSES, name)
            return pipe.execute()

    (seconds, microseconds), subscribers, *beats = redis_client.run(ask)
    silent = seconds + microseconds / 1_000_000 - SILENT_S
    listening = {channel.decode() for channel, count in subscribers if count}
    return {
        name
        for name, beat in zip(asked, beats, strict=True)
        # Redis forgets a process after DEAD_S without a heartbeat.
        if beat is None or (beat < silent and CHANNEL + name not in listening)
    }
