"""replica_rows.py: the replicas of a row, as sluice.toml and the environment write them."""

from __future__ import annotations

from typing import Any

import pytest

from config import ConfigError
from keys.redaction import Secret
from providers import registry
from providers.base import Provider, Target

ONE, TWO = "http://10.0.0.1:8000/v1", "http://10.0.0.2:8000/v1"


def row(base_url: Any, environ: dict[str, str] | None = None, **more: Any) -> Provider:
    return registry.rows({"mine": {"base_url": base_url, **more}}, environ or {})["mine"]


def replicas(found: Provider) -> list[tuple[str, str, float]]:
    return [(one.name, one.url, one.weight) for one in found.replicas]


def test_a_list_may_mix_urls_and_tables() -> None:
    found = row([ONE + "/", {"url": TWO, "weight": 3}])
    assert found.base_url == ONE
    assert replicas(found) == [("10.0.0.1:8000", ONE, 1.0), ("10.0.0.2:8000", TWO, 3.0)]


@pytest.mark.parametrize("base_url", [ONE, [ONE], [{"url": ONE}]])
def test_one_url_makes_no_replicas(base_url: Any) -> None:
    found = row(base_url)
    assert (found.base_url, found.replicas) == (ONE, ())


def test_a_list_overrides_a_built_in_row() -> None:
    found = registry.rows({"vllm": {"base_url": [ONE, TWO]}})["vllm"]
    assert [one.url for one in found.replicas] == [ONE, TWO]
    assert found.completions is True


def test_a_variable_may_hold_several_urls() -> None:
    found = row("{MINE_URLS}", {"MINE_URLS": f"{ONE}, {TWO}/"})
    assert [one.url for one in found.replicas] == [ONE, TWO]
    assert row("{MINE_URLS}", {"MINE_URLS": ONE}).replicas == ()
    assert registry.missing(row("{MINE_URLS}"), {}) == ["MINE_URLS"]


def test_each_variable_in_a_list_is_needed() -> None:
    found = row([ONE, "{SECOND}/v1"])
    assert registry.missing(found, {}) == ["SECOND"]
    assert row([ONE, "{SECOND}/v1"], {"SECOND": "http://b:1"}).replicas[1].url == "http://b:1/v1"


def test_a_variable_within_a_url_or_a_list_holds_one_url() -> None:
    for base_url in ("{URLS}/v1", [ONE, "{URLS}"]):
        with pytest.raises(ConfigError, match="write several URLs as a list"):
            row(base_url, {"URLS": "http://a:1,http://b:1"})


def test_names_have_a_path_only_where_hosts_are_equal_and_never_a_password() -> None:
    found = row(["http://u:secret@a:1/x", "http://a:1/y", "http://b:1/x"])
    assert [one.name for one in found.replicas] == ["a:1/x", "a:1/y", "b:1"]


@pytest.mark.parametrize(
    ("base_url", "message"),
    [
        ([], "base_url is an empty list; write at least one URL"),
        ([ONE, ONE], "base_url has 10.0.0.1:8000/v1 twice; each replica needs a host, port"),
        (["http://h/v1", "http://H:80/v1/"], "base_url has h/v1 twice; each replica needs a host"),
        (["http://h/v1", "https://h/v1"], "base_url has h/v1 twice; each replica needs a host"),
        ([ONE, 5], "base_url, entry 2: expected a URL or a table {url, weight}, not 5"),
        (
            [{"url": ONE, "wieght": 2}],
            (
                "base_url, entry 1: wieght is not a field of a replica, which has url and weight; "
                "did you mean weight?"
            ),
        ),
        ([{"weight": 2}], "base_url, entry 1: url is missing, or is not text"),
        (
            [ONE, {"url": TWO, "weight": 0}],
            "base_url, entry 2: weight must be a number above 0 and at most 1000, not 0",
        ),
        (
            [{"url": ONE, "weight": float("nan")}],
            "base_url, entry 1: weight must be a number above 0 and at most 1000, not nan",
        ),
        ([{"url": ONE, "weight": True}], "base_url, entry 1: weight must be a number above 0 and"),
        ([ONE, "10.0.0.2:8000"], "base_url must begin with http:// or https://, not 10.0.0.2:8000"),
        ([ONE, "ftp://u:secret@h"], "base_url must begin with http:// or https://, not h"),
        (
            [ONE, "http://h:port/v1"],
            "base_url is not a valid URL: 'http://h:port/v1'; write several",
        ),
        ([ONE, "http://u:secret@h:99999"], "base_url is not a valid URL: 'h:99999'; write several"),
        ("http:///v1", "base_url is not a valid URL: 'http:///v1'; write several URLs as a list"),
        ([ONE, TWO + " "], f"base_url is not a valid URL: '{TWO} '; write several URLs as a list"),
        (f"{ONE},{TWO}", f"base_url is not a valid URL: '{ONE},{TWO}'; write several URLs as a"),
        ("http://a,b/v1", "base_url is not a valid URL: 'http://a,b/v1'; write several URLs as a"),
        ([ONE, "http://[::1"], "base_url has a URL whose host is invalid"),
        ([f"http://h{n}/v1" for n in range(101)], "base_url has 101 URLs; at most 100 are allowed"),
    ],
)
def test_a_mistake_in_the_list_is_named(base_url: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        row(base_url)
    assert f"[providers.mine]: {message}" in str(caught.value)


def test_the_field_replicas_is_refused_with_what_to_write_instead() -> None:
    with pytest.raises(ConfigError, match="write the URLs as a list in base_url"):
        row(ONE, replicas=[TWO])


def test_targets_of_replicas_keep_everything_but_the_url() -> None:
    target = Target(row([ONE, {"url": TWO, "weight": 2}]), "m", Secret("sk-1"), key_number=2)
    assert target.name == "mine/m"
    first, second = target.replicas
    assert (first.provider.base_url, second.provider.base_url) == (ONE, TWO)
    assert (second.replica, second.weight, second.key_number) == ("10.0.0.2:8000", 2.0, 2)
    assert second.name == "mine/m"
    assert second.credential == target.credential
    assert second.replicas == ()
