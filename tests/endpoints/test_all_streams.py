"""Tests of endpoints/all_streams.py: the active calls of all keys, and their stop."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from completion import Delta, Started
from tests.gateway.test_gateway import Scripted, eventually, play, wait
from tests.support.pace import HANG_S
from tests.test_app import PROMPT, make_app, make_key

STREAMS = "/api/v1/streams"
ADA = "key_ada"


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    line, secret = make_key("operator", admin=True)
    user, of_user = make_key("ada", id=ADA)
    found: Any = make_app(tmp_path, monkeypatch, keys=line + user)
    found.admin = {"Authorization": f"Bearer {secret}"}
    found.ada = {"Authorization": f"Bearer {of_user}"}
    return found


def ask(site: Any, query: str = "") -> Any:
    answer = site.client.get(STREAMS + query, headers=site.admin)
    assert answer.status_code == 200, answer.data
    return answer.json


def stop(site: Any, key_id: str, stream_id: str, headers: Any = None) -> Any:
    path = f"{STREAMS}/{key_id}/{stream_id}/stop"
    return site.client.post(path, headers=headers or site.admin)


@pytest.fixture
def active(site: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Yield a site with two calls, `s-1` of ada and then `s-2` of another key."""
    attempts = [Scripted([Started("m", 3), Delta(0, "Hel")], wait), Scripted(wait)]
    play(monkeypatch, *attempts)
    threads = []
    for attempt, name, headers in zip(
        attempts, ("s-1", "s-2"), (site.ada, site.bearer), strict=True
    ):
        body = PROMPT | {"stream_id": name}
        sent = {"json": body, "headers": headers | {"X-Request-ID": f"r-{name}"}}
        thread = threading.Thread(
            target=site.client.post, args=("/api/v1/completions",), kwargs=sent, daemon=True
        )
        thread.start()
        threads.append(thread)
        assert attempt.reached.wait(HANG_S)
    yield site
    site.gateway.streams.end_all()
    for thread in threads:
        thread.join(HANG_S)


def test_a_server_without_calls_lists_none(site: Any) -> None:
    assert ask(site) == {"data": [], "total": 0, "processes": {"answered": 1, "missing": 0}}


def test_an_admin_key_lists_the_calls_of_all_keys(active: Any) -> None:
    found = ask(active)
    assert (found["total"], found["processes"]) == (2, {"answered": 1, "missing": 0})
    first, second = found["data"]
    assert first.pop("started_at").endswith("Z")
    assert first == {
        "key_id": ADA, "key_name": "ada", "stream_id": "s-1", "request_id": "r-s-1",
        "endpoint": "/api/v1/completions", "provider": "sim", "model": "m", "stream": False,
        "state": "answering", "input_tokens": 3, "output_tokens": 1, "resumable": False,
    }  # fmt: skip
    assert (second["key_name"], second["stream_id"], second["state"]) == ("test", "s-2", "waiting")


def test_the_list_can_be_limited_to_a_number_and_to_a_key(active: Any) -> None:
    oldest = ask(active, "?limit=1")
    assert [call["stream_id"] for call in oldest["data"]] == ["s-1"]
    assert oldest["total"] == 2
    for key in (ADA, "ada"):
        found = ask(active, f"?key={key}")
        assert (found["total"], found["data"][0]["stream_id"]) == (1, "s-1")
    assert ask(active, "?key=key_nobody")["total"] == 0
    for query in ("?limit=501", "?key=nobody", "?page=2"):
        assert active.client.get(STREAMS + query, headers=active.admin).status_code == 400


def test_an_admin_key_stops_a_call_of_any_key(active: Any) -> None:
    for _ in range(2):
        stopped = stop(active, ADA, "s-1")
        assert (stopped.status_code, stopped.json) == (200, {"success": True})
    assert eventually(lambda: ask(active)["total"] == 1)
    [left] = ask(active)["data"]
    assert left["stream_id"] == "s-2"
    assert stop(active, left["key_id"], "r-s-2").status_code == 200


def test_a_stop_of_an_unknown_call_is_404(active: Any) -> None:
    for key_id, stream_id in ((ADA, "s-2"), ("key_nobody", "s-1"), (ADA, "%00")):
        answer = stop(active, key_id, stream_id)
        assert (answer.status_code, answer.json["code"]) == (404, "stream_not_found")
    assert ask(active)["total"] == 2


def test_other_keys_can_neither_list_nor_stop_the_calls_of_all(active: Any) -> None:
    for headers, status in ((active.ada, 403), ({"Authorization": "Bearer no"}, 401)):
        assert active.client.get(STREAMS, headers=headers).status_code == status
        assert stop(active, ADA, "s-1", headers).status_code == status
    own = active.client.get("/api/v1/completions/streams", headers=active.ada).json
    fields = {"stream_id", "provider", "model", "started_at", "input_tokens", "output_tokens"}
    assert [set(call) for call in own] == [fields | {"resumable"}]
    assert ask(active)["total"] == 2
