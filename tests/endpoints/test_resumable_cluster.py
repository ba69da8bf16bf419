"""Tests of resumable calls at several processes that share a Redis.

Two apps in one process stand for the processes.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster import ownership
from completion import Batch, Delta, Finished, Usage, Used
from tests.endpoints.test_native import in_thread
from tests.endpoints.test_resumable import (
    ASKED,
    FACES,
    SSE,
    WORDS,
    ended,
    follow,
    numbers,
    state,
    text_of,
    words,
)
from tests.gateway.test_gateway import Scripted, eventually, play
from tests.support.pace import HANG_S
from tests.support.redis_server import RedisServer
from tests.support.servers import make_key
from tests.test_app import PROMPT, Site, make_app

OTHER_FACE = {FACES[0]: FACES[1], FACES[1]: FACES[0]}


class Pair:
    """Two sites with the same key."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> None:
        text, line = make_key()
        self.stranger, other_line = make_key("stranger")
        self.sites = []
        for name in ("a", "b"):
            (folder / name).mkdir()
            site = make_app(folder / name, monkeypatch, keys=line + other_line, **settings)
            site.secret = text
            site.app.extensions["sluice"].cluster.start()
            self.sites.append(site)

    def close(self) -> None:
        for site in self.sites:
            site.app.extensions["sluice"].close()


@pytest.fixture
def pair(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    redis_server: RedisServer,
) -> Iterator[tuple[Site, Site]]:
    monkeypatch.setattr(ownership, "SETTLED_S", 0.0)
    pair = Pair(tmp_path, monkeypatch, redis_url=redis_server.url)
    a, b = pair.sites
    yield a, b
    pair.close()


@pytest.mark.parametrize("path", FACES)
def test_another_process_answers_as_the_one_that_made_the_call(
    pair: tuple[Site, Site], monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    here, there = pair
    play(monkeypatch, words())
    answer = here.post(ASKED, path, buffered=True)
    assert answer.headers["X-Sluice-Resumable"] == "1"
    assert ended(there, path) == ended(here, path)
    last = numbers(answer.text)[-1]
    for after in range(last):
        found = follow(there, path, after)
        assert (found.status_code, found.headers["X-Sluice-Resumable"]) == (200, "1")
        assert found.text == follow(here, path, after).text
    assert follow(there, path, last).status_code == 204
    assert follow(there, path, last + 1).status_code == 400
    assert follow(there, OTHER_FACE[path]).status_code == 404
    assert there.client.get(f"{path}/s-2", headers=there.bearer).status_code == 404


def test_a_follower_at_another_process_gets_the_stream_as_it_comes(
    pair: tuple[Site, Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = pair
    path, more = FACES[1], threading.Event()
    rest: Batch = [Delta(0, "two"), Finished(0, "stop"), Used(Usage(8, 2))]
    play(monkeypatch, Scripted([Delta(0, "one")], lambda: more.wait(HANG_S), rest))
    thread, made = in_thread(lambda: here.post(ASKED, path, buffered=True))
    assert eventually(lambda: follow_state(there, path) == "in_progress")
    answer = there.client.get(f"{path}/s-1", headers=there.bearer | SSE)
    frames = answer.iter_encoded()
    found = b""
    while b"one" not in found:
        found += next(frames)
    more.set()
    found += b"".join(frames)
    thread.join(HANG_S)
    assert found.removeprefix(b":open\n").decode() == made[0].text.removeprefix(":open\n")


def follow_state(site: Site, path: str) -> str:
    """Return the status of the stream at a site, or its error's code."""
    found = site.get(f"{path}/s-1").json or {}
    return str(found.get("status") or found["error"]["code"])


def test_a_background_call_is_known_everywhere_at_once(
    pair: tuple[Site, Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = pair
    path = FACES[0]
    play(monkeypatch, *[words() for _ in range(5)])
    for number in range(5):
        stream_id = f"b-{number}"
        body = PROMPT | {"background": True, "stream_id": stream_id}
        assert here.post(body, path).status_code == 202
        assert state(there, path, stream_id)["stream_id"] == stream_id
        assert ended(there, path, stream_id)["result"]["data"] == "".join(WORDS)


def test_a_call_that_begins_without_redis_says_that_only_its_process_has_it(
    pair: tuple[Site, Site], monkeypatch: pytest.MonkeyPatch, redis_server: RedisServer
) -> None:
    here, there = pair
    path = FACES[1]
    parts = here.app.extensions["sluice"]
    play(monkeypatch, words(), words())
    redis_server.crash()
    try:
        assert eventually(lambda: not parts.redis_client.available)
        answer = here.post(ASKED, path, buffered=True)
        assert answer.headers["X-Sluice-Resumable"] == "0"
        comment, _, frames = answer.text.partition("\n")
        assert comment == ": this process only: Redis is unavailable"
        assert text_of(frames) == "".join(WORDS)
        assert numbers(frames) == list(range(1, len(numbers(frames)) + 1))
        assert follow(here, path, 0).headers["X-Sluice-Resumable"] == "1"
        refused = follow(there, path, 0)
        assert (refused.status_code, refused.headers["Retry-After"]) == (503, "1")
    finally:
        redis_server.restart()
    assert eventually(lambda: follow_state(there, path) == "completed"), "Redis gets it later"
    assert follow(there, path, 0).text == follow(here, path, 0).text


def test_streams_of_a_server_that_forbids_redis_are_unavailable_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, redis_server: RedisServer
) -> None:
    monkeypatch.setattr(ownership, "SETTLED_S", 0.0)
    pair = Pair(tmp_path, monkeypatch, redis_url=redis_server.url, replay_redis=0)
    here, there = pair.sites
    play(monkeypatch, words())
    answer = here.post(ASKED, FACES[0], buffered=True)
    assert answer.headers["X-Sluice-Resumable"] == "1"
    assert follow(here, FACES[0]).status_code == 200
    assert follow(there, FACES[0]).status_code == 503
    missing = there.client.get(f"{FACES[0]}/s-2", headers=there.bearer | SSE)
    assert missing.status_code == 404
    client = redis_server.client()
    assert client.keys("sluice:replay*") == []
    client.close()
    pair.close()


@pytest.mark.parametrize("replay_redis", [0, 1 << 20])
def test_the_id_of_a_kept_stream_isnt_free_at_another_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, redis_server: RedisServer, replay_redis: int
) -> None:
    monkeypatch.setattr(ownership, "SETTLED_S", 0.0)
    pair = Pair(tmp_path, monkeypatch, redis_url=redis_server.url, replay_redis=replay_redis)
    plain = {**PROMPT, "stream": True}
    for number in range(5):  # the id is tried at once, before the end is in Redis
        play(monkeypatch, words())
        stream_id = {"X-Stream-ID": f"s-{number}"}
        body = {**PROMPT, "stream": True, "resumable": True}
        assert (
            pair.sites[0].post(body, FACES[0], headers=stream_id, buffered=True).status_code == 200
        )
        for sent in (body, plain):
            for site in pair.sites:
                refused = site.post(sent, FACES[0], headers=stream_id)
                assert (refused.status_code, refused.json["error"]) == (409, "stream_exists")  # type: ignore[index]
                assert "still kept" in refused.text
    pair.close()


def test_another_key_cannot_see_or_follow_a_stream_at_another_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, redis_server: RedisServer
) -> None:
    monkeypatch.setattr(ownership, "SETTLED_S", 0.0)
    pair = Pair(tmp_path, monkeypatch, redis_url=redis_server.url)
    here, there = pair.sites
    play(monkeypatch, words())
    here.post(ASKED, FACES[0], buffered=True)
    assert ended(there, FACES[0])["status"] == "completed"
    for headers in ({}, SSE):
        theirs = {"Authorization": f"Bearer {pair.stranger}", **headers}
        assert there.client.get(f"{FACES[0]}/s-1", headers=theirs).status_code == 404
    pair.close()
