"""A picture of the search page: starts a service on an index, asks it a question, shows why the first result is first.

    python -m benchmarks.screenshot [--index demo-index] [--out docs/images/search-page.png] [--query TEXT]
        [--width 1280] [--height 900] [--theme light|dark]

`kalm-cache demo` makes the demo's index. Playwright drives Debian's Chromium (apt-get install chromium): nothing is
downloaded.
"""

from __future__ import annotations

import argparse
import io
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from urllib.parse import urlencode

from playwright.sync_api import Browser, sync_playwright

from kalm_cache.settings import load_settings
from query_service.app import create_app
from query_service.server import address_of, bind, make_server, open_service

QUERY = "Where can one find the formerly Huguenot farms in South Africa?"  # its answer moves up, and more moves
MAX_BYTES = 300_000
COLOURS = 256
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


@contextmanager
def running_service(index: Path) -> Iterator[str]:
    """The address of a service over an index, on a free port."""
    server = make_server(create_app(open_service(index, load_settings())))
    with bind("127.0.0.1", 0) as listener:
        thread = Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            while not server.started:
                time.sleep(0.05)
            yield address_of(listener)
        finally:
            server.should_exit = True
            thread.join()


def take_picture(address: str, query: str, size: tuple[int, int], theme: str) -> bytes:
    """A PNG of the page after a search, with the first result explained; size in CSS pixels."""
    with open_chromium() as browser:
        context = browser.new_context(
            viewport={"width": size[0], "height": size[1]}, color_scheme=theme, reduced_motion="reduce"
        )
        page = context.new_page()
        where = f"{address}/?{urlencode({'q': query, 'k': 50})}"
        page.goto(where)
        page.locator(".why").first.wait_for()
        page.reload()  # what the first search reads and makes, the second one finds
        page.locator(".why").first.click()
        page.locator("mark").first.wait_for()
        page.mouse.move(1, 1)
        page.evaluate("document.activeElement.blur()")
        page.wait_for_timeout(400)  # colours fade
        return _few_colours(page.screenshot())


def _few_colours(png: bytes) -> bytes:
    """The same picture with a palette: a third of the bytes."""
    from PIL import Image  # tests open Chromium without it

    reduced = io.BytesIO()
    image = Image.open(io.BytesIO(png)).convert("RGB")
    image.quantize(COLOURS, kmeans=3, dither=Image.Dither.NONE).save(reduced, "png", optimize=True)
    return reduced.getvalue()


def main() -> None:
    """Take the picture that the arguments describe."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--index", type=Path, default=Path("demo-index"))
    parser.add_argument("--out", type=Path, default=Path("docs/images/search-page.png"))
    parser.add_argument("--query", default=QUERY)
    parser.add_argument("--width", type=int, default=1280)
    parser.add_argument("--height", type=int, default=900)
    parser.add_argument("--theme", choices=("light", "dark"), default="light")
    given = parser.parse_args()
    with running_service(given.index) as address:
        picture = take_picture(address, given.query, (given.width, given.height), given.theme)
    given.out.write_bytes(picture)
    print(f"{given.out}: {len(picture):,} bytes")
    if len(picture) > MAX_BYTES:
        raise SystemExit(f"more than {MAX_BYTES:,} bytes: take a smaller picture")


if __name__ == "__main__":
    main()
