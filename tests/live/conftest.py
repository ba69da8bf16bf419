"""Fixtures that the tests of a module share: a server, and a browser with its pages."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.daemons import CantRunError
from tests.support.fake import FakeProvider
from tests.support.servers import UNTROUBLED, Server, fake_rows

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, Request


@pytest.fixture(scope="module")
def module_server(fake_process: FakeProvider) -> Iterator[Server]:
    with Server(fake_rows(fake_process.base_url), env=UNTROUBLED) as server:
        yield server


@pytest.fixture
def server(module_server: Server, fake: FakeProvider) -> Server:
    """Return a server under gunicorn with gevent, whose providers are `fake` and `fakechat`."""
    return module_server


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Yield a Chromium. Without one, the test is skipped."""
    from playwright.sync_api import sync_playwright  # imported here because few tests need it

    from tests.support.browsers import launch

    with sync_playwright() as playwright:
        try:
            found = launch(playwright)
        except CantRunError as error:
            pytest.skip(str(error))
        yield found
        found.close()


@pytest.fixture(params=["light"])
def theme(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=["wide"])
def width(request: pytest.FixtureRequest) -> int:
    from tests.support.pages import WIDTHS

    return WIDTHS[request.param]


@pytest.fixture
def page(browser: Browser, server: Server, theme: Any, width: int) -> Iterator[Page]:
    """Yield a page of a new browser context; fail if it logged or loaded anything unexpected."""
    from tests.support.pages import VIOLATIONS

    context = browser.new_context(
        base_url=server.url, color_scheme=theme, viewport={"width": width, "height": 900}
    )
    context.set_default_timeout(10_000)
    context.grant_permissions(["clipboard-read", "clipboard-write"], origin=server.url)
    context.add_init_script(VIOLATIONS)
    faults: list[str] = []

    def asked(request: Request) -> None:
        if not request.url.startswith((server.url, "data:", "blob:")):
            faults.append(f"requested {request.url}")

    def logged(text: str) -> None:
        provoked = ("status of 4", "status of 5", "net::ERR_")  # errors that a test provoked
        if not any(part in text for part in provoked):
            faults.append(text)

    context.on("request", asked)
    context.on("console", lambda message: logged(message.text))
    context.on("weberror", lambda error: faults.append(str(error.error)))
    found = context.new_page()
    yield found
    for each in context.pages:
        faults += each.evaluate("window.violations")
    context.close()
    assert faults == []
