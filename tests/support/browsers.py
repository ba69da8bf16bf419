"""The browser that the tests drive: this machine's Chromium, never one of Playwright's own."""

from __future__ import annotations

import os
import shutil

from playwright.sync_api import Browser, Playwright

from tests.support.daemons import CantRunError

NAMES = ("chromium", "chromium-browser", "google-chrome")


def launch(playwright: Playwright) -> Browser:
    """Raises CantRunError where there is none."""
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        raise CantRunError(f"none of {', '.join(NAMES)} is installed here")
    sandbox = ["--no-sandbox"] if os.getuid() == 0 else []  # root can't have one
    return playwright.chromium.launch(executable_path=program, args=sandbox)
