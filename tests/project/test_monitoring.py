"""Tests of deploy/grafana and deploy/prometheus: their metrics exist, and their PromQL is valid."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.support.pace import HANG_S
from tests.support.paths import FIXTURES, ROOT
from tests.telemetry.test_metrics import families

PROMETHEUS = ROOT / "deploy" / "prometheus"
DASHBOARD: dict[str, Any] = json.loads((ROOT / "deploy" / "grafana" / "sluice.json").read_text())
SUFFIXES = ("_bucket", "_sum", "_count")
PROMTOOL = shutil.which("promtool")

needs_promtool = pytest.mark.skipif(
    PROMTOOL is None, reason="promtool isn't installed (Debian: apt install prometheus)"
)


def asked() -> list[str]:
    return [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]


def promtool(*arguments: str | Path) -> None:
    assert PROMTOOL is not None
    done = subprocess.run(
        [PROMTOOL, *arguments], capture_output=True, text=True, timeout=HANG_S, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def known() -> set[str]:
    found: set[str] = set()
    for name, (kind, _) in families().items():
        found |= {name + suffix for suffix in SUFFIXES} if kind == "histogram" else {name}
    return found


@pytest.mark.parametrize("where", ["dashboard", "alerts"])
def test_every_metric_in_the_dashboard_and_alerts_exists(where: str) -> None:
    text = "\n".join(asked()) if where == "dashboard" else (PROMETHEUS / "alerts.yml").read_text()
    names = set(re.findall(r"\bsluice_\w+", text))
    assert len(names) > 5
    assert names <= known()


def test_the_dashboard_shows_every_metric() -> None:
    text = "\n".join(asked())
    missing = {name for name in families() if not re.search(rf"\b{name}(_bucket)?\b", text)}
    assert missing == set()


def test_dashboard_panels_do_not_overlap() -> None:
    places = [panel["gridPos"] for panel in DASHBOARD["panels"]]
    cells = [
        (x, y)
        for place in places
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(places)


@needs_promtool
def test_prometheus_configuration_and_rules_are_valid() -> None:
    promtool("check", "config", PROMETHEUS / "prometheus.yml")


@needs_promtool
def test_alerts_fire_as_their_rule_tests_expect() -> None:
    promtool("test", "rules", FIXTURES / "alerts_test.yml")


@needs_promtool
def test_dashboard_expressions_are_valid_promql(tmp_path: Path) -> None:
    rules = [
        {"record": f"panel:{n}", "expr": expr.replace("$__rate_interval", "5m")}
        for n, expr in enumerate(asked())
    ]
    path = tmp_path / "rules.yml"  # JSON is YAML
    path.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
    promtool("check", "rules", path)
