"""The browser for tests: the Chromium that is installed here, never one that Playwright brings."""

from __future__ import annotations

import os
import shutil

from playwright.sync_api import Browser, Playwright

from tests.support.daemons import CantRunError

NAMES = ("chromium", "chromium-browser", "google-chrome")


def launch(playwright: Playwright) -> Browser:
    """Start the browser. Raises CantRunError if none is installed."""
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        raise CantRunError(f"none of {', '.join(NAMES)} is installed")
    sandbox = ["--no-sandbox"] if os.getuid() == 0 else []  # Chromium has no sandbox for root
    return playwright.chromium.launch(executable_path=program, args=sandbox)
