"""A pytest plugin that reports the failure of a shared fixture only once.

pytest raises the error of a shared fixture again for each test that uses the fixture. The first of
these tests reports the error. The other tests are skipped, with a message that names the first.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest

first_tests: dict[int, tuple[BaseException, str]] = {}
"""The test that reported an error, by the error's id(). Keeping the error keeps the id unique."""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[Any]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.when == "setup" and report.failed and call.excinfo is not None:
        error = call.excinfo.value
        _, first = first_tests.setdefault(id(error), (error, item.nodeid))
        if first != item.nodeid:
            path, line, _ = item.location
            report.outcome = "skipped"
            report.longrepr = (path, line or 0, f"Skipped: see {first}, whose fixture failed")
    return report
