"""A real browser, wherever there is one."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright

# Headless and quiet: no sandbox (it needs a user namespace that root in a container has not), nothing to the outside.
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@contextmanager
def browser() -> Iterator[Browser]:
    """The system's Chromium, or Playwright's own; without either the test is skipped, on CI it fails."""
    with sync_playwright() as playwright:
        installed = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
        if installed is None and not Path(playwright.chromium.executable_path).exists():
            reason = "no browser: install Debian's chromium, or run 'playwright install chromium'"
            if os.environ.get("CI"):
                pytest.fail(reason)
            pytest.skip(reason)
        launched = playwright.chromium.launch(executable_path=installed, args=ARGUMENTS)
        yield launched
        launched.close()
