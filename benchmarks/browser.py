"""A headless Chromium for looking at the search page. Knows nothing of the page or the service.

Debian's `chromium` with Playwright's Python package: nothing is downloaded.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Browser, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


def find_chromium() -> str | None:
    """Where Chromium is; `None` = nowhere."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


@contextmanager
def open_chromium() -> Iterator[Browser]:
    """A browser with a profile of its own, which is deleted when it closes.

    Raises:
        SystemExit: there is no Chromium; says how to get it.
    """
    path = find_chromium()
    if path is None:
        raise SystemExit("no chromium on this machine; run: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, headless=True, args=[*FLAGS])
        try:
            yield browser
        finally:
            browser.close()
