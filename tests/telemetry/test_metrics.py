"""Tests of telemetry/metrics.py: the metrics, their labels, and the bound on the labels."""

from __future__ import annotations

import json
import os
import re
import runpy
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import pytest
from prometheus_client import Gauge
from prometheus_client.metrics_core import Metric
from prometheus_client.multiprocess import mark_process_dead
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as prometheus

from completion import EndReason, Usage
from streams.replay_counts import ReplayCounts
from telemetry import metrics
from telemetry.key_metrics import MOST_KEYS, KeyLabels
from telemetry.metrics import (
    LIMITS,
    LONGEST_MODEL,
    MOST_MODELS,
    OTHER,
    REASONS,
    REFUSALS,
    Metrics,
)
from telemetry.multiprocess import FILE_BYTES
from tests.support.pace import HANG_S
from tests.support.paths import ROOT

PATH = "/v1/completions"


def make(**options: Any) -> Metrics:
    asked = dict.fromkeys(("streams_active", "ledger_queue", "cooling"), lambda: 0)
    return Metrics(**{**asked, **options})


def end(target: Metrics, model: str, reason: str = "completed", **fields: Any) -> None:
    """Record the end of a call."""
    call = {
        "endpoint": PATH,
        "provider": "sim",
        "status": 200,
        "usage": Usage(3, 2),
        "cost": 1,
        **fields,
    }
    target.ended(model=model, reason=reason, **call)


def value(target: Metrics, name: str, **labels: str) -> float | None:
    return target.registry.get_sample_value(name, labels)


def series(target: Metrics, name: str = "sluice_requests_total") -> list[dict[str, str]]:
    """Return the labels of each series of a metric."""
    found = (sample for metric in target.registry.collect() for sample in metric.samples)
    return [sample.labels for sample in found if sample.name == name]


def models(target: Metrics) -> set[str]:
    return {labels["model"] for labels in series(target)}


def families() -> dict[str, tuple[str, tuple[str, ...]]]:
    """Return the type and the labels of each of Sluice's metrics, by its name in a query."""
    target = make(redis_up=lambda: True)
    end(target, "m")
    target.watch_replicas(lambda: {("sim", "a:1"): 1})
    target.watch_replays(ReplayCounts())
    target.attempted("sim", 500, "provider_error", "a:1")
    count_keys(target)
    return shape(list(target.registry.collect()))


def count_keys(target: Metrics) -> None:
    """Add the metrics by key, and count a call and a refusal of a key."""
    target.watch_keys(lambda key_id: KeyLabels(key_id, "team"))
    assert target.keys is not None
    target.keys.ended("key_a", 200, Usage(3, 2), 1)
    target.keys.refused("key_a", "model_forbidden")


def shape(families: Sequence[Metric]) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Return the types and labels of metric families, with one entry for a histogram."""
    return {
        **{
            sample.name: (family.type, tuple(sample.labels))
            for family in families
            for sample in family.samples
            if family.type != "histogram" and sample.name.startswith("sluice_")
        },
        **{family.name: ("histogram", ()) for family in families if family.type == "histogram"},
    }


OF_REPLICAS = {"sluice_replica_calls", "sluice_replica_attempts_total"}
OF_REPLAYS = {
    "sluice_replay_append_seconds_total",
    "sluice_replay_appends_total",
    "sluice_replay_copies",
    "sluice_replay_given_up_total",
    "sluice_replay_reads_total",
    "sluice_replay_redis_bytes",
    "sluice_replay_repeats_total",
}
OF_KEYS = {
    *("sluice_key_requests_total", "sluice_key_tokens_total", "sluice_key_cost_dollars_total"),
    "sluice_key_refusals_total",
}


# Counts


def test_an_ended_call_counts_once_in_each_metric() -> None:
    target = make()
    end(target, "m", usage=Usage(30, 12), cost=1_500_000_000)
    end(target, "m", usage=Usage(5, 1), cost=1)
    end(target, "m", "client_gone", status=499, usage=Usage(1, 0), cost=None)
    labels = {"endpoint": PATH, "provider": "sim", "model": "m"}
    assert value(target, "sluice_requests_total", **labels, status="200") == 2
    assert value(target, "sluice_requests_total", **labels, status="499") == 1
    assert value(target, "sluice_streams_ended_total", reason="completed") == 2
    assert value(target, "sluice_streams_ended_total", reason="client_gone") == 1
    assert value(target, "sluice_tokens_total", direction="input") == 36
    assert value(target, "sluice_tokens_total", direction="output") == 13
    assert value(target, "sluice_cost_dollars_total") == 1.500000001


def test_a_request_without_a_call_has_empty_provider_and_model_labels() -> None:
    target = make()
    target.answered("/api/v1/models", 200)
    target.answered(None, 404)
    empty = {"provider": "", "model": ""}
    assert series(target) == [
        {"endpoint": "/api/v1/models", **empty, "status": "200"},
        {"endpoint": OTHER, **empty, "status": "404"},
    ]
    assert value(target, "sluice_streams_ended_total", reason="completed") == 0


@pytest.mark.parametrize(
    ("status", "code", "label"),
    [
        (429, "provider_error", "429"),
        (599, "provider_error", "599"),
        (None, "provider_timeout", "provider_timeout"),
        (302, "provider_error", "provider_error"),
        (999, "provider_error", "provider_error"),
    ],
)
def test_a_failed_attempt_is_labeled_with_its_http_status_or_error_code(
    status: int | None, code: str, label: str
) -> None:
    target = make()
    target.attempted("sim", status, code)
    assert series(target, "sluice_upstream_errors_total") == [{"provider": "sim", "code": label}]


def test_a_successful_attempt_is_not_counted_as_an_upstream_error() -> None:
    target = make()
    target.attempted("sim", None, None)
    target.attempted("sim", 500, "provider_error")
    assert value(target, "sluice_attempts_total", provider="sim") == 2
    assert value(target, "sluice_upstream_errors_total", provider="sim", code="500") == 1


def test_durations_of_a_call_are_observed_only_where_they_exist() -> None:
    target = make()
    target.took(request_duration=0.3, first_event=None, overhead=0.002, stop=None)
    target.retried(2)
    assert value(target, "sluice_request_duration_seconds_count") == 1
    assert value(target, "sluice_request_duration_seconds_bucket", le="0.5") == 1
    assert value(target, "sluice_request_duration_seconds_bucket", le="0.25") == 0
    assert value(target, "sluice_first_event_seconds_count") == 0
    assert value(target, "sluice_overhead_seconds_sum") == 0.002
    assert value(target, "sluice_stop_seconds_count") == 0
    assert value(target, "sluice_retries_total") == 2


def test_quota_rejections_and_ledger_errors_are_counted() -> None:
    target = make()
    target.rejected("tokens")
    target.refused("model_forbidden")
    target.unrecorded()
    for _ in range(2):
        target.ledger_failed()
    assert value(target, "sluice_quota_rejections_total", limit="tokens") == 1
    assert value(target, "sluice_refusals_total", reason="model_forbidden") == 1
    assert value(target, "sluice_ledger_unrecorded_total") == 1
    assert value(target, "sluice_ledger_errors_total") == 2


def test_gauges_are_read_at_each_scrape() -> None:
    now = [3]
    target = make(
        streams_active=lambda: now[0],
        ledger_queue=lambda: now[0] + 1,
        cooling=lambda: now[0] + 2,
        redis_up=lambda: now[0] == 3,
    )
    assert value(target, "sluice_streams_active") == 3
    assert value(target, "sluice_redis_up") == 1
    now[0] = 5
    assert value(target, "sluice_streams_active") == 5
    assert value(target, "sluice_ledger_queue") == 6
    assert value(target, "sluice_cooldown") == 7
    assert value(target, "sluice_redis_up") == 0


def test_counts_of_resumable_streams_in_redis_are_added_up() -> None:
    target, counts = make(), ReplayCounts()
    target.watch_replays(counts)
    counts.bytes, counts.copies, counts.appends, counts.append_seconds = 5, 2, 3, 0.25
    for _ in range(2):
        assert value(target, "sluice_replay_redis_bytes") == 5
        assert value(target, "sluice_replay_copies") == 2
        assert value(target, "sluice_replay_appends_total") == 3
        assert value(target, "sluice_replay_append_seconds_total") == 0.25
    counts.bytes, counts.appends, counts.repeats, counts.reads = 0, 4, 1, 7
    assert value(target, "sluice_replay_redis_bytes") == 0
    assert value(target, "sluice_replay_appends_total") == 4
    assert value(target, "sluice_replay_repeats_total") == 1
    assert value(target, "sluice_replay_reads_total") == 7


def test_no_redis_metric_is_shown_without_redis() -> None:
    assert b"redis" not in make().render("")[0]


def test_a_failed_commit_counts_once_however_often_it_is_refreshed() -> None:
    target = make()
    target.ledger_failed()
    for _ in range(3):
        target.refresh()
    target.ledger_failed()
    assert value(target, "sluice_ledger_errors_total") == 2


def test_known_series_are_shown_as_zero_from_the_start() -> None:
    target = make()
    expected = {
        "sluice_streams_ended_total": [{"reason": reason} for reason in REASONS],
        "sluice_quota_rejections_total": [{"limit": limit} for limit in LIMITS],
        "sluice_refusals_total": [{"reason": reason} for reason in REFUSALS],
        "sluice_tokens_total": [{"direction": "input"}, {"direction": "output"}],
        "sluice_cost_dollars_total": [{}],
        "sluice_ledger_errors_total": [{}],
        "sluice_ledger_unrecorded_total": [{}],
    }
    for name, labels in expected.items():
        assert series(target, name) == labels
        assert [value(target, name, **each) for each in labels] == [0] * len(labels)


def test_the_reason_labels_are_the_end_reasons_of_a_call() -> None:
    assert set(REASONS) == set(get_args(EndReason))
    with pytest.raises(KeyError):
        end(make(), "m", "tired")


def test_two_apps_in_a_process_count_separately() -> None:
    first, second = make(), make()
    first.unrecorded()
    assert value(first, "sluice_ledger_unrecorded_total") == 1
    assert value(second, "sluice_ledger_unrecorded_total") == 0


def test_threads_lose_no_count() -> None:
    target = make()

    def work() -> None:
        for _ in range(500):
            end(target, "m")

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert value(target, "sluice_tokens_total", direction="input") == 6000
    assert [labels["model"] for labels in series(target)] == ["m"]


# The bound on models


@pytest.mark.parametrize("reason", [reason for reason in REASONS if reason != "completed"])
def test_a_model_that_was_never_served_has_no_label(reason: str) -> None:
    target = make()
    for number in range(3):
        end(target, f"made-up-{number}", reason, status=404)
    labels = {"endpoint": PATH, "provider": "sim", "model": OTHER, "status": "404"}
    assert series(target) == [labels]
    assert value(target, "sluice_requests_total", **labels) == 3


def test_failures_of_a_served_model_have_the_label_of_the_model() -> None:
    target = make()
    end(target, "m", "provider_error", status=502)
    end(target, "m")
    end(target, "m", "provider_error", status=502)
    assert [(labels["model"], labels["status"]) for labels in series(target)] == [
        (OTHER, "502"),
        ("m", "200"),
        ("m", "502"),
    ]


def test_served_models_above_the_maximum_are_labeled_other() -> None:
    target = make()
    for number in range(MOST_MODELS + 50):
        end(target, f"m-{number}")
    assert models(target) == {OTHER, *(f"m-{number}" for number in range(MOST_MODELS))}
    end(target, "m-0", "stopped", status=201)
    end(target, "m-0", provider="twin")
    assert {"endpoint": PATH, "provider": "sim", "model": "m-0", "status": "201"} in series(target)
    assert {"endpoint": PATH, "provider": "twin", "model": OTHER, "status": "200"} in series(target)
    assert len(series(target)) == MOST_MODELS + 3


def test_models_of_the_configuration_always_have_their_own_label() -> None:
    target = make()
    target.know(["sim/mine", "alias"])
    for number in range(MOST_MODELS + 1):
        end(target, f"m-{number}")
    assert "mine" not in models(target)
    end(target, "mine", "provider_error", status=502)
    assert models(target) == {"mine", OTHER, *(f"m-{number}" for number in range(MOST_MODELS))}


@pytest.mark.parametrize("model", ["x" * (LONGEST_MODEL + 1), "a\nb", "\ud800", "\x1b[31m"])
def test_a_long_or_unprintable_model_name_is_labeled_other(model: str) -> None:
    target = make()
    end(target, model)
    assert models(target) == {OTHER}
    assert target.render("")[0].isascii()


def test_a_model_name_with_quotes_is_one_label_value() -> None:
    target = make()
    name = 'a"} 1\\n\u00e9'
    end(target, name)
    text = target.render("")[0].decode()
    shown = {s.labels.get("model") for family in prometheus(text) for s in family.samples}
    assert name in shown


# The output

SCRAPER = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
    "application/openmetrics-text;version=0.0.1;q=0.5,"
    "text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("", "text/plain; version=0.0.4; charset=utf-8"),
        ("*/*", "text/plain; version=0.0.4; charset=utf-8"),
        ("text/plain", "text/plain; version=0.0.4; charset=utf-8"),
        ("text/plain;version=1.0.0", "text/plain; version=1.0.0; charset=utf-8"),
        ("application/openmetrics-text", "application/openmetrics-text; version=1.0.0"),
        (SCRAPER, "application/openmetrics-text; version=1.0.0; charset=utf-8"),
        ("application/openmetrics-text; version=abc", "text/plain; version=0.0.4"),
        ("application/openmetrics-text;version=2.sk-1234", "text/plain; version=0.0.4"),
        ('application/openmetrics-text;version="1.0.0"', "text/plain; version=0.0.4"),
        (f"text/plain;version={'9' * 5000}.0.0", "text/plain; version=0.0.4"),
    ],
)
def test_the_accept_header_selects_the_metrics_format(accept: str, kind: str) -> None:
    target = make()
    end(target, "m")
    target.attempted("sim", 500, "provider_error")
    text, content_type = target.render(accept)
    assert content_type.startswith(kind)
    openly = kind.startswith("application/openmetrics-text")
    assert text.endswith(b"# EOF\n") == openly
    parse = openmetrics if openly else prometheus
    found = list(parse(text.decode()))
    names = {sample.name for family in found for sample in family.samples}
    optional = {"sluice_redis_up"} | OF_REPLICAS | OF_REPLAYS | OF_KEYS
    assert set(families()) - optional == set(shape(found))
    assert not [name for name in names if name.endswith("_created")]


def test_metrics_of_the_python_process_are_shown() -> None:
    text = make().render("")[0].decode()
    assert "python_info{" in text
    assert "python_gc_collections_total{" in text


def test_the_documentation_has_every_metric_and_no_other() -> None:
    text = (ROOT / "docs" / "reference" / "metrics.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(sluice_\w+)` \| (\w+) \|([^|]*)\| [^|]+ \|$", text, re.MULTILINE)
    documented = {name: (kind, tuple(re.findall(r"\w+", labels))) for name, kind, labels in rows}
    assert documented == families()
    assert len(rows) == len(documented)
    assert set(re.findall(r"sluice_\w+_total|sluice_\w+_queue", text)) <= set(documented)
    assert f"first {metrics.MOST_MODELS} do" in text
    assert f"up to {metrics.LONGEST_MODEL} characters" in text
    assert f"first {MOST_KEYS} keys" in text


# Several processes

BEGIN = """
import logging, os, resource
from pathlib import Path
from tests.telemetry.test_metrics import *
def limit(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
def show(target, accept=""):
    print(json.dumps([os.getpid(), target.render(accept)[0].decode()]))
directory = Path(os.environ["PROMETHEUS_MULTIPROC_DIR"])
"""


def play(directory: Path, code: str) -> subprocess.CompletedProcess[str]:
    """Run code in a process that shares its metrics through a directory."""
    return subprocess.run(
        [sys.executable, "-c", BEGIN + code],
        cwd=ROOT,
        env={**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(directory)},
        capture_output=True,
        text=True,
        check=True,
        timeout=HANG_S,
    )


def shown(done: subprocess.CompletedProcess[str]) -> dict[str, float]:
    """Return the values that a process printed, by name and labels."""
    _, text = json.loads(done.stdout)
    return {
        " ".join([sample.name, *(sample.labels[name] for name in sorted(sample.labels))]): (
            sample.value
        )
        for family in prometheus(text)
        for sample in family.samples
    }


FIRST = """
target = make(streams_active=lambda: 3, cooling=lambda: 4, redis_up=lambda: False)
end(target, "m", usage=Usage(30, 12))
target.took(request_duration=20, stop=0.002)
target.ledger_failed()
target.refresh()
"""
COUNT = """
target = make(streams_active=lambda: 2, cooling=lambda: 1, redis_up=lambda: True)
for _ in range(2):
    end(target, "m", usage=Usage(5, 1))
target.watch_replays(ReplayCounts())
target.watch_replicas(lambda: {("sim", "a:1"): 1})
target.attempted("sim", 500, "provider_error", "a:1")
count_keys(target)
target.took(request_duration=0.2, stop=None)
target.ledger_failed()
"""
SECOND = f"{COUNT}show(target)"


def test_several_processes_show_their_sums(tmp_path: Path) -> None:
    play(tmp_path, FIRST)
    found = shown(play(tmp_path, SECOND))
    assert found[f"sluice_requests_total {PATH} m sim 200"] == 3
    assert found["sluice_streams_ended_total completed"] == 3
    assert found["sluice_tokens_total input"] == 40
    assert found["sluice_ledger_errors_total"] == 2
    assert found["sluice_streams_active"] == 5
    assert found["sluice_cooldown"] == 4
    assert found["sluice_redis_up"] == 0
    assert found["sluice_quota_rejections_total budget"] == 0
    assert found["sluice_request_duration_seconds_sum"] == pytest.approx(20.2)
    assert found["sluice_request_duration_seconds_bucket 0.25"] == 1
    assert found["sluice_stop_seconds_count"] == 1
    assert found["sluice_upstream_errors_total 500 sim"] == 1


def test_several_processes_show_every_sluice_metric_but_no_process_metric(tmp_path: Path) -> None:
    _, text = json.loads(play(tmp_path, SECOND).stdout)
    assert not [family for family in prometheus(text) if not family.name.startswith("sluice_")]
    together = {n: (kind, set(ls)) for n, (kind, ls) in shape(list(prometheus(text))).items()}
    assert together == {name: (kind, set(labels)) for name, (kind, labels) in families().items()}


def test_several_processes_can_answer_in_openmetrics(tmp_path: Path) -> None:
    code = f"{COUNT}show(target, 'application/openmetrics-text')"
    _, text = json.loads(play(tmp_path, code).stdout)
    assert set(shape(list(openmetrics(text)))) == set(families())  # type: ignore[no-untyped-call]


def test_a_process_without_a_redis_check_yet_does_not_report_redis_down(tmp_path: Path) -> None:
    play(tmp_path, "make(redis_up=lambda: True)")
    assert shown(play(tmp_path, SECOND))["sluice_redis_up"] == 1


def test_a_process_continues_the_counts_of_a_dead_process_with_its_pid(tmp_path: Path) -> None:
    pid, _ = json.loads(play(tmp_path, SECOND).stdout)
    reborn = f"(directory / 'counter_{pid}.db').rename(directory / f'counter_{{os.getpid()}}.db')"
    found = shown(play(tmp_path, f"{reborn}\n{SECOND}"))
    assert found[f"sluice_requests_total {PATH} m sim 200"] == 4


def test_child_exit_hook_removes_the_same_files_as_mark_process_dead(tmp_path: Path) -> None:
    modes = sorted(Gauge._MULTIPROC_MODES)
    left = []
    for name in ("ours", "theirs"):
        directory = tmp_path / name
        directory.mkdir()
        for pid in (12, 123):
            for kind in ("counter", *(f"gauge_{mode}" for mode in modes)):
                (directory / f"{kind}_{pid}.db").touch()
        if name == "ours":
            hook = runpy.run_path(str(ROOT / "gunicorn.conf.py"))["child_exit"]
            hook(SimpleNamespace(metrics=directory), SimpleNamespace(pid=12))
        else:
            mark_process_dead(12, str(directory))  # type: ignore[no-untyped-call]
        left.append({path.name for path in directory.iterdir()})
    assert left[0] == left[1]
    assert len(left[0]) < 2 * (len(modes) + 1)


# A full disk

MANY = """
for number in range(150):
    for status in range(200, 210):
        end(target, f"{number:0128}", status=status)
"""


def test_metric_files_are_allocated_on_disk_in_advance(tmp_path: Path) -> None:
    """Otherwise writing to a file's unallocated page on a full disk would kill the process."""
    found = shown(play(tmp_path, f"target = make(){MANY}show(target)"))
    assert len([name for name in found if name.startswith("sluice_requests_total")]) == 1500
    sizes = {path.name.rpartition("_")[0]: path.stat() for path in tmp_path.iterdir()}
    assert set(sizes) == {"counter", "histogram", "gauge_livesum", "gauge_livemax", "gauge_livemin"}
    assert sizes["counter"].st_size == 8 * FILE_BYTES
    assert [size for size in sizes.values() if size.st_blocks * 512 < size.st_size] == []


def test_known_series_still_count_when_the_disk_is_full(tmp_path: Path) -> None:
    code = f"{COUNT}limit(FILE_BYTES + 1000){MANY}end(target, 'm')\nshow(target)"
    done = play(tmp_path, code)
    found = shown(done)
    assert found[f"sluice_requests_total {PATH} m sim 200"] == 3
    assert found["sluice_streams_ended_total completed"] == 1503
    assert 50 < len([name for name in found if name.startswith("sluice_requests_total")]) < 300
    assert done.stderr == "there is no room for more metrics: No space left on device\n"
    assert {path.stat().st_size for path in tmp_path.iterdir()} == {FILE_BYTES}


def test_a_process_started_on_a_full_disk_shows_the_counts_of_others(
    tmp_path: Path,
) -> None:
    play(tmp_path, FIRST)
    done = play(tmp_path, f"limit(1000)\n{SECOND}")
    found = shown(done)
    assert found[f"sluice_requests_total {PATH} m sim 200"] == 1
    assert found["sluice_streams_active"] == 3
    assert "what this process counts will be missing in the metrics: " in done.stderr
    assert done.stderr.count("\n") == 1
    assert len(list(tmp_path.iterdir())) == 5


def test_a_process_without_the_metrics_directory_shows_its_own_counts(tmp_path: Path) -> None:
    done = play(tmp_path / "gone", SECOND)
    assert shown(done)[f"sluice_requests_total {PATH} m sim 200"] == 2
    assert "will be missing in the metrics: " in done.stderr
    assert done.stderr.count("\n") == 1


def test_replicas_have_their_attempts_and_calls_in_flight() -> None:
    calls = {("engines", "a:1"): 3, ("engines", "b:1"): 0}
    metrics = make()
    metrics.watch_replicas(lambda: calls)
    metrics.attempted("engines", None, None, "a:1")
    metrics.attempted("engines", 503, "provider_error", "b:1")
    metrics.attempted("openai", None, None)
    metrics.refresh()
    counted = series(metrics, "sluice_replica_attempts_total")
    assert sorted((one["replica"], one["code"]) for one in counted) == [("a:1", ""), ("b:1", "503")]
    labels = {"provider": "engines", "replica": "a:1"}
    assert value(metrics, "sluice_replica_calls", **labels) == 3
    assert value(metrics, "sluice_attempts_total", provider="engines") == 2
