"""Tests of a real server and its pages behind an nginx that serves them under a path prefix."""

from __future__ import annotations

import http.client
import json
import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urljoin

import pytest
from playwright.sync_api import expect, sync_playwright

from tests.live.test_gunicorn_options import get, listening
from tests.live.test_nginx import configure, listens
from tests.support import calls
from tests.support.browsers import launch
from tests.support.daemons import CantRunError
from tests.support.pace import HANG_S
from tests.support.servers import Kind, Server, free_port

pytestmark = pytest.mark.thorough

LOCATIONS = {
    "removed": "location /sluice/ {{ proxy_pass http://127.0.0.1:{port}/; "
    "proxy_set_header X-Forwarded-Prefix /sluice; {more} }}",
    "kept": "location /sluice/ {{ proxy_pass http://127.0.0.1:{port}; "
    "proxy_set_header X-Forwarded-Prefix /sluice; {more} }}",
    "script_name": "location /sluice/ {{ proxy_pass http://127.0.0.1:{port}; "
    "proxy_set_header SCRIPT_NAME /sluice; {more} }}",
}
MORE = (
    "proxy_set_header Host $http_host; proxy_http_version 1.1; "
    'proxy_set_header Connection ""; proxy_buffering off;'
)


@contextmanager
def proxied(server: Server, location: str) -> Iterator[int]:
    """Yield the port of an nginx with one location."""
    with tempfile.TemporaryDirectory(prefix="sluice-nginx-") as name:
        port = free_port()
        text = LOCATIONS[location].format(port=server.port, more=MORE)
        command = configure(Path(name), f"server {{ listen 127.0.0.1:{port}; {text} }}")
        process = subprocess.Popen(command, stderr=subprocess.PIPE)
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=HANG_S)
        try:
            server.wait(lambda: process.poll() is not None or listens(connection))
            yield port
        finally:
            connection.close()
            process.terminate()
            process.communicate(timeout=HANG_S)


def fetched(port: int, path: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=HANG_S)
    connection.request("GET", path, headers={"Accept": "text/html"})
    response = connection.getresponse()
    text = response.read().decode(errors="replace")
    connection.close()
    return response.status, text


def crawl(port: int) -> set[str]:
    """Fetch the pages and all files that they refer to. Return the paths."""
    found: set[str] = set()
    waiting = ["/sluice/"]
    while waiting:
        path = waiting.pop()
        if path in found:
            continue
        found.add(path)
        status, text = fetched(port, path)
        assert status == 200, path
        names = re.findall(r'(?:src|href)="([^"#]+)"', text) if "<!doctype" in text else []
        if path.endswith(".js") and "vendor" not in path:
            names += re.findall(r'from "([^"]+)"', text)
        waiting += [urljoin(path, name) for name in names]
    return found


@pytest.mark.parametrize("location", LOCATIONS)
@pytest.mark.parametrize("kind", ["gevent", "gthread"])
def test_everything_that_pages_refer_to_is_below_the_prefix(kind: Kind, location: str) -> None:
    with Server(kind=kind) as server, proxied(server, location) as port:
        found = crawl(port)
        assert all(path.startswith("/sluice/") for path in found)
        names = {path.rpartition("/")[2] for path in found}
        assert {"usage", "docs", "openapi.json", "common.js", "sse.js", "style.css"} <= names
        document = json.loads(fetched(port, "/sluice/openapi.json")[1])
        assert document["servers"] == [{"url": "/sluice"}]
        assert calls.get(server, "/openapi.json").json["servers"] == [{"url": "/"}]


@pytest.mark.parametrize("location", ["removed", "kept", "script_name"])
def test_a_proxy_that_is_not_trusted_can_set_no_prefix(location: str) -> None:
    with (
        Server(env={"FORWARDED_ALLOW_IPS": "10.9.9.9"}) as server,
        proxied(server, location) as port,
    ):
        status, text = fetched(port, "/sluice/usage")
        if location == "removed":
            assert status == 200
            assert '"/sluice' not in text
        else:
            assert status == 404


@pytest.mark.parametrize("kind", ["server.worker.Worker", "gthread"])
@pytest.mark.parametrize("script", ["/llm", "/llm/"])
def test_the_environment_may_set_the_prefix(tmp_path: Path, kind: str, script: str) -> None:
    with listening(tmp_path, "-k", kind, SCRIPT_NAME=script) as port:
        assert json.loads(get("127.0.0.1", port, "/llm/health")) == {"status": "ok"}
        text = get("127.0.0.1", port, "/llm/usage")
        assert {link.split("/")[1] for link in re.findall(r'(?:src|href)="(/[^"]+)"', text)} == {
            "llm"
        }
        assert json.loads(get("127.0.0.1", port, "/llm/openapi.json"))["servers"] == [
            {"url": "/llm"}
        ]


@pytest.mark.parametrize("location", ["removed", "script_name"])
def test_the_pages_work_in_a_browser_below_the_prefix(location: str) -> None:
    with (
        Server() as server,
        proxied(server, location) as port,
        sync_playwright() as playwright,
    ):
        try:
            browser = launch(playwright)
        except CantRunError as error:
            pytest.skip(str(error))
        origin = f"http://127.0.0.1:{port}"
        page = browser.new_page()
        page.set_default_timeout(15_000)
        asked: list[str] = []
        failed: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.on("response", lambda r: failed.append(r.url) if r.status >= 400 else None)
        page.goto(f"{origin}/sluice/")
        page.get_by_label("Your Sluice key").fill(server.key)
        page.get_by_role("button", name="Sign in").click()
        page.get_by_label("Prompt", exact=True).fill("The best way to open a file is")
        page.keyboard.press("Control+Enter")
        expect(page.locator("#live-tokens")).to_contain_text("\N{ALMOST EQUAL TO}")
        page.keyboard.press("Escape")
        expect(page.locator("#ending")).to_contain_text("Stopped")
        expect(page.locator("#code")).to_contain_text(f"{origin}/sluice/api/v1/completions")
        page.get_by_role("link", name="Usage").click()
        expect(page.locator("#sum-requests")).to_have_text("1")
        assert page.url == f"{origin}/sluice/usage"
        page.goto(f"{origin}/sluice/docs")
        health = page.locator("#health")
        health.locator("summary").first.click()
        health.get_by_role("button", name="Send").click()
        expect(health.get_by_label("Response", exact=True)).to_contain_text("ok")
        browser.close()
    assert failed == []
    assert [u for u in asked if not u.startswith((f"{origin}/sluice/", "data:", "blob:"))] == []
