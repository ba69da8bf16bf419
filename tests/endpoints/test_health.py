"""Tests of endpoints/health.py: /health and /ready, which need no key."""

from __future__ import annotations

from pathlib import Path

import pytest

from routing.circuit_breaker import FAILURES
from routing.router import Route
from tests.test_app import Site, make_app


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    return make_app(tmp_path, monkeypatch)


@pytest.mark.parametrize("draining", [True, False])
def test_health_answers_200_whether_or_not_the_worker_drains(site: Site, draining: bool) -> None:
    site.gateway.draining = draining
    answer = site.client.get("/health")
    assert (answer.status_code, answer.json) == (200, {"status": "ok"})


@pytest.mark.parametrize("slash", ["", "/"])
def test_ready_answers_503_while_the_worker_drains(site: Site, slash: str) -> None:
    answer = site.client.get("/ready" + slash)
    assert (answer.status_code, answer.json) == (200, {"status": "ready"})
    site.gateway.draining = True
    answer = site.client.get("/ready" + slash)
    assert (answer.status_code, answer.json) == (503, {"status": "draining"})
    assert answer.headers["Retry-After"] == "1"


def test_a_call_is_accepted_while_the_worker_drains(site: Site) -> None:
    site.gateway.draining = True
    answer = site.post({"prompt": "Hi", "max_tokens": 1})
    assert answer.status_code == 200


def test_ready_and_metrics_show_the_open_circuit_breakers(site: Site) -> None:
    breakers = site.gateway.reader.breakers
    (target,) = site.gateway.router.targets(Route(model="sim/" + "m" * 500))
    for _ in range(FAILURES):
        breakers.failed(target)
    breakers.limited(target, 30)
    (other,) = site.gateway.router.targets(Route(model="sim/other"))
    breakers.limited(other, 30)
    answer = site.client.get("/ready")
    assert answer.status_code == 200
    assert answer.json is not None
    cooling = answer.json["cooling"]
    assert set(cooling) == {("sim/" + "m" * 500)[:128], "sim/other", "sim (key 1)"}
    assert all(0 < seconds <= 30 for seconds in cooling.values())
    assert "sluice_cooldown 3.0" in site.client.get("/metrics").text
