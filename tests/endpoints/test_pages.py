"""Tests of endpoints/pages.py: which clients get HTML or JSON, and what a page may load."""

from __future__ import annotations

import re
from contextlib import closing
from pathlib import Path

import pytest
from werkzeug.test import TestResponse

from config import VERSION
from endpoints import (
    native,
    pages,
)
from errors import InvalidRequest
from tests.test_app import Site, make_app

BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8"
TEMPLATES = Path(pages.__file__).parent.parent / "templates"


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    return make_app(tmp_path, monkeypatch)


def answered(site: Site, path: str, **headers: str) -> closing[TestResponse]:
    """Return the response to a GET in a context that closes its file."""
    return closing(site.client.get(path, headers=headers))


@pytest.mark.parametrize("path", ["/usage", "/admin"])
def test_the_usage_of_the_last_week_month_and_quarter_is_one_click_away(
    site: Site, path: str
) -> None:
    text = site.client.get(path).text
    assert re.findall(r'data-days="(\d+)">(.*?)<', text) == [
        ("7", "7 days"), ("30", "30 days"), ("90", "90 days"),
    ]  # fmt: skip


@pytest.mark.parametrize("accept", [BROWSER, "text/html", "text/html, application/json;q=0.9"])
def test_a_browser_gets_the_playground(site: Site, accept: str) -> None:
    answer = site.client.get("/", headers={"Accept": accept})
    assert answer.mimetype == "text/html"
    assert "<title>Playground" in answer.text
    assert "Accept" in answer.vary


@pytest.mark.parametrize(
    ("default", "first"),
    [("local/pydoc", "local/slow"), ("openai/gpt-4o-mini", "openai/gpt-4o-mini")],
)
def test_a_first_visit_has_the_slow_model_unless_the_operator_chose_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, default: str, first: str
) -> None:
    site = make_app(
        tmp_path, monkeypatch, default_model=default, environ={"OPENAI_API_KEY": "none"}
    )
    answer = site.client.get("/", headers={"Accept": BROWSER})
    assert f'data-default-model="{first}"' in answer.text


@pytest.mark.parametrize(
    "accept", [None, "*/*", "application/json", "image/png", "text/html;q=0.5, */*"]
)
def test_a_program_gets_json(site: Site, accept: str | None) -> None:
    answer = site.client.get("/", headers={"Accept": accept} if accept else {})
    assert answer.json == {"name": "sluice", "version": VERSION, "docs": "docs/reference/api.md"}
    assert "Accept" in answer.vary


@pytest.mark.parametrize("path", ["/", "/usage", "/docs", "/admin"])
def test_page_headers_allow_loading_only_from_the_gateway_origin(site: Site, path: str) -> None:
    answer = site.client.get(path, headers={"Accept": BROWSER})
    rules = dict(
        rule.split(" ", 1) for rule in answer.headers["Content-Security-Policy"].split("; ")
    )
    assert rules == {
        "default-src": "'none'",
        "script-src": "'self'",
        "style-src": "'self'",
        "img-src": "'self' data:",
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Referrer-Policy"] == "no-referrer"
    assert answer.headers["Cache-Control"] == "no-cache"


@pytest.mark.parametrize("path", ["/", "/usage", "/docs", "/admin"])
def test_static_files_named_by_a_page_exist_and_are_cached_for_a_year(
    site: Site, path: str
) -> None:
    text = site.client.get(path, headers={"Accept": BROWSER}).text
    names = re.findall(r'(?:src|href)="(/static/[^"]+)"', text)
    assert len(names) >= 3
    for name in names:
        with answered(site, name) as answer:
            assert answer.status_code == 200
            assert answer.cache_control.max_age == pages.YEAR_S
            assert answer.cache_control.immutable
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
            kinds = ("text/javascript", "application/javascript", "text/css", "image/svg+xml")
            assert answer.mimetype in kinds


def test_an_unversioned_static_file_is_revalidated_by_its_etag(site: Site) -> None:
    with answered(site, "/static/style.css") as first:
        assert first.status_code == 200
        assert first.headers["Cache-Control"] == "no-cache"
    with answered(site, "/static/style.css", **{"If-None-Match": first.headers["ETag"]}) as again:
        assert again.status_code == 304


@pytest.mark.parametrize(
    "name",
    ["nothing.js", "../app.py", "%2e%2e/app.py", "..%2fapp.py", "vendor", ""],
)
def test_an_unknown_static_path_answers_404_with_json(site: Site, name: str) -> None:
    with answered(site, f"/static/{name}") as answer:
        assert answer.status_code == 404
        assert answer.json is not None


def test_no_page_has_inline_scripts_or_styles() -> None:
    for path in TEMPLATES.iterdir():
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"<style|<script(?![^>]* src=)|\sstyle=|\son[a-z]+=|javascript:", text)
        assert not re.search(r'(?:src|href)="(?!\{\{ (?:static|base) \}\}/|#)', text)


def test_scripts_never_insert_text_as_html() -> None:
    for path in pages.STATIC.glob("*.js"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", text)
        assert "localStorage" not in text


@pytest.mark.parametrize("found", pages.RANGES, ids=lambda found: found.name)
def test_playground_ranges_match_what_the_api_accepts(found: pages.Range) -> None:
    def body(value: float) -> dict[str, object]:
        number = int(value) if found.step == "1" else value
        if found.name == "seed":  # a field of the OpenAI face
            return {"prompt": "Hi", "additional_params": {"seed": number}}
        return {"prompt": "Hi", found.name: number}

    least = 0.001 if found.name == "top_p" else found.least
    native.parse(body(least))
    native.parse(body(found.most))
    if found.name == "seed":  # the API accepts more, but JavaScript's numbers can't hold it
        return
    for beyond in (found.least - 1, found.most + 1):
        with pytest.raises(InvalidRequest):
            native.parse(body(beyond))


def test_the_static_version_changes_with_any_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "STATIC", tmp_path)
    found = set()
    for text in ("a", "b"):
        (tmp_path / "x.js").write_text(text)
        pages.version.cache_clear()
        found.add(pages.version())
    pages.version.cache_clear()
    assert len(found) == 2
