"""Tests of cli/development.py. tests/live/test_shutdown.py has those with a real server."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from cli import development
from cli.development import OpenResponses, drain


def begin(responses: OpenResponses) -> Any:
    return cast(Any, responses({}, lambda *_: None))


def test_a_response_is_open_until_it_is_closed() -> None:
    responses = OpenResponses(lambda *_: [b"a", b"b"])
    first, second = begin(responses), begin(responses)
    assert list(first) == [b"a", b"b"]
    assert len(responses) == 2
    first.close()
    assert len(responses) == 1
    second.close()
    assert len(responses) == 0


def test_a_response_that_fails_is_not_open() -> None:
    def fail(*_: Any) -> Any:
        raise OSError

    responses = OpenResponses(fail)
    with pytest.raises(OSError):
        begin(responses)
    assert len(responses) == 0


class Streams(list[str]):
    """The streams of a gateway, which end when they are told to."""

    def end_all(self) -> None:
        self.clear()


def test_a_drain_cuts_connections_that_follow_streams_of_other_processes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(development, "WATCH_S", 0.001)
    responses = OpenResponses(lambda *_: [b"a"])
    follower = begin(responses)
    gateway = SimpleNamespace(streams=Streams(), draining=False)
    shared_replays = SimpleNamespace(leave=follower.close)
    monkeypatch.setattr(development, "DRAIN_S", 0.0)
    drain(cast(Any, SimpleNamespace(gateway=gateway, shared_replays=shared_replays)), responses)
    assert len(responses) == 0
    assert gateway.draining


def test_a_drain_without_redis_ends_the_streams_that_are_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(development, "WATCH_S", 0.001)
    monkeypatch.setattr(development, "DRAIN_S", 0.0)
    gateway = SimpleNamespace(streams=Streams(["a"]), draining=False)
    services = cast(Any, SimpleNamespace(gateway=gateway, shared_replays=None))
    drain(services, OpenResponses(lambda *_: []))
    assert gateway.streams == []
