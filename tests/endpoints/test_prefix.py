"""Tests of endpoints/prefix.py: requests of proxies that serve Sluice under a path prefix."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from endpoints import prefix
from tests.endpoints.test_pages import BROWSER
from tests.test_app import Site, make_app


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    return make_app(tmp_path, monkeypatch)


@pytest.fixture
def trusting(site: Site) -> Site:
    site.client.application.extensions["trusts"] = lambda _: True
    return site


def links(text: str) -> set[str]:
    return set(re.findall(r'(?:src|href)="([^"#]+)"', text))


def page(site: Site, path: str = "/", script: str = "", **headers: str) -> set[str]:
    answer = site.client.get(
        path, headers={"Accept": BROWSER, **headers}, environ_overrides={"SCRIPT_NAME": script}
    )
    assert answer.status_code == 200, answer.text
    return links(answer.text)


PATHS = ("/", "/usage", "/docs")


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("script", ["/llm", "/a/b", "/llm/"])
def test_links_of_a_page_begin_with_script_name(site: Site, path: str, script: str) -> None:
    found = page(site, path, script)
    assert all(link.startswith(script.rstrip("/") + "/") for link in found)
    assert not any("//" in link for link in found)
    assert found == {script.rstrip("/") + link for link in page(site, path)}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("sent", ["/llm", "/llm/", " /llm "])
def test_links_of_a_page_begin_with_the_prefix_of_a_trusted_proxy(
    trusting: Site, path: str, sent: str
) -> None:
    header = {"X-Forwarded-Prefix": sent}
    removed = page(trusting, path, **header)
    assert removed == {"/llm" + link for link in page(trusting, path)}
    assert page(trusting, "/llm" + path, **header) == removed


def test_the_prefix_of_an_untrusted_proxy_changes_nothing(site: Site) -> None:
    header = {"X-Forwarded-Prefix": "/llm"}
    assert page(site, **header) == page(site)
    assert site.client.get("/llm/usage", headers=header).status_code == 404
    document = json.loads(site.client.get("/openapi.json", headers=header).data)
    assert document["servers"] == [{"url": "/"}]


@pytest.mark.parametrize(
    "sent",
    [
        "",
        "/",
        "//evil.example",
        "/llm//x",
        "http://evil.example",
        "evil.example",
        "/../x",
        "/a/./b",
        "/a/..",
        '/"><script>',
        "/a?b",
        "/a#b",
        "/a, /b",
        "/a,/b",
        "/\\evil.example",
        "/a%2f..",
    ],
)
def test_an_odd_prefix_is_ignored(trusting: Site, sent: str) -> None:
    assert page(trusting, **{"X-Forwarded-Prefix": sent}) == page(trusting)


def test_script_name_takes_precedence_over_the_header(trusting: Site) -> None:
    found = page(trusting, script="/one", **{"X-Forwarded-Prefix": "/two"})
    assert all(link.startswith("/one/") for link in found)


def test_a_script_name_is_quoted_in_links(site: Site) -> None:
    assert any(link.startswith("/a%20%22b/static/") for link in page(site, script='/a "b'))


@pytest.mark.parametrize("sent", ["/v1", "/api/v1", "/usage"])
def test_a_prefix_that_looks_like_a_route_is_not_removed_from_the_route(
    trusting: Site, sent: str
) -> None:
    header = {"X-Forwarded-Prefix": sent}
    assert trusting.client.get("/v1/models", headers=header).status_code == 401
    assert trusting.client.get("/usage", headers=header).status_code == 200
    assert trusting.client.get(f"{sent}/health", headers=header).status_code == 200


def test_the_openapi_document_names_the_prefix_as_its_server(trusting: Site) -> None:
    def served(**headers: str) -> Any:
        return json.loads(trusting.client.get("/openapi.json", headers=headers).data)

    plain = served()
    assert plain["servers"] == [{"url": "/"}]
    below = served(**{"X-Forwarded-Prefix": "/llm"})
    assert below == plain | {"servers": [{"url": "/llm"}]}
    assert served() == plain


def test_a_redirect_stays_below_the_prefix(trusting: Site) -> None:
    for path in ("//usage", "/llm//usage"):
        answer = trusting.client.get(path, headers={"X-Forwarded-Prefix": "/llm"})
        if answer.status_code == 308:
            assert answer.headers["Location"].endswith("/llm/usage")


def test_a_path_without_a_slash_gets_one() -> None:
    environ = {"SCRIPT_NAME": "/llm/", "PATH_INFO": "usage"}
    prefix.apply(environ, prefix.is_trusted, lambda _: False)
    assert environ == {"SCRIPT_NAME": "/llm", "PATH_INFO": "/usage"}
