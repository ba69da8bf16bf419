"""Tests of the simulation of many processes at one Redis."""

from __future__ import annotations

import pytest

from bench.call_processes import PACE, crowd, plan, play
from bench.recording import STREAM_ID, Recording
from tests.support.redis_server import RedisServer

PROCESS = b"0123456789abcdef"
CALLS, REQUESTS = b"sluice:calls:key_0-23_5678901", b"LIMITS:LIMITER/key_0-23_5678901/9/1/minute"
ADMIT = (b"LPUSH", REQUESTS, b"1.5")
CLAIM, RELEASE = (b"HSET", CALLS, STREAM_ID, PROCESS), (b"HDEL", CALLS, STREAM_ID)
BEAT = (b"ZADD", b"sluice:fleet", b"1", PROCESS)
RECORDING = Recording([CLAIM, ADMIT], [RELEASE], [BEAT])
KEYS = [b"key_%012d" % number for number in range(3)]


def test_a_plan_has_heartbeats_and_calls_whose_ends_follow_their_starts() -> None:
    steps = plan(RECORDING, KEYS, rate=100, seconds=5)
    beats = [step for step in steps if b"sluice:fleet" in step.data]
    starts = [step for step in steps if step.calls]
    assert len(beats) == 5
    assert 350 < len(starts) < 650
    assert len(steps) == len(beats) + 2 * len(starts)
    assert len({step.data for step in starts}) == len(starts)  # each call has its own id
    assert len({step.data for step in beats}) == 1  # a process keeps its id
    assert steps == sorted(steps, key=lambda step: step.due)
    assert not any(PROCESS in step.data or STREAM_ID in step.data for step in steps)


def test_all_calls_of_a_simulation_are_counted(redis_server: RedisServer) -> None:
    found = play(redis_server, [crowd(RECORDING, KEYS, 2 * PACE) for _ in range(3)])
    assert (found.calls, found.commands) == (6 * PACE, 18 * PACE)
    with redis_server.client() as client:
        assert sum(client.llen(name) for name in client.keys("LIMITS:*")) == 6 * PACE


@pytest.mark.parametrize(
    ("recording", "problem"),
    [
        (RECORDING._replace(end=[BEAT]), "calls are left"),
        (RECORDING._replace(start=[CLAIM]), "0 of 32 calls were admitted"),
        (RECORDING._replace(end=[(b"HDEL", CALLS)]), "refused a command"),
    ],
)
def test_a_simulation_fails_if_its_calls_do(
    redis_server: RedisServer, recording: Recording, problem: str
) -> None:
    with pytest.raises(RuntimeError, match=problem):
        play(redis_server, [crowd(recording, KEYS, PACE)])
