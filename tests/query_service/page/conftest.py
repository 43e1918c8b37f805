"""The search page in a real browser, before a real service on loopback over a small index made with `tiny`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlencode

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect

from benchmarks.screenshot import find_chromium, open_chromium
from kalm_cache.settings import load_settings
from tests.indexes import build
from tests.query_service.conftest import serving, serving_texts

QUERY = "Who leads the bees to the flowers?"
HOSTILE = '<img src=x onerror="window.hacked=1"><script>window.hacked=1</script><b>bold</b> bees &amp; flowers'
EMOJI = "🐝👩‍👩‍👧‍👦 𝒃𝒆𝒆𝒔: honey bees 🕺🏽 dance to lead the others of the hive to the flowers 🌸 that they found."
TEXTS = {
    "hostile": HOSTILE,
    "emoji": EMOJI,
    "ferry": "The ferry to the island leaves at nine in the morning, except on Sundays, and flowers are sold on board.",
    "gravity": "Gravity attracts bodies toward one another, and leads apples to the ground.",
    "hive": "In a hive lives one queen. " * 30 + "The bees leave it for flowers.",
    **{
        f"d{i}": f"Bees number {i} and flowers number {i * 7} were counted by hand in year {1900 + i}."
        for i in range(12)
    },
}
KEY = "a-key-of-the-service"


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    build(folder, load_settings(device="cpu", dtype="float32", chunk_size=2, max_length=96), TEXTS)
    return folder


@pytest.fixture(scope="session")
def api(folder: Path) -> Iterator[httpx.Client]:
    with serving(folder) as client:
        yield client


@pytest.fixture(scope="session")
def text_api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    with serving_texts(Path("tiny"), text_cache=str(tmp_path_factory.mktemp("texts"))) as client:
        yield client


@pytest.fixture(scope="session")
def locked_api(folder: Path) -> Iterator[httpx.Client]:
    with serving(folder, api_keys=KEY) as client:
        yield client


@pytest.fixture(scope="module")  # closed before other modules run: its event loop would be in their way
def browser() -> Iterator[Browser]:
    if find_chromium() is None:
        pytest.skip("no chromium on this machine: apt-get install chromium")
    os.environ["PLAYWRIGHT_SKIP_VALIDATE_HOST_REQUIREMENTS"] = "1"  # Debian's chromium brings its own libraries
    expect.set_options(timeout=10_000)
    with open_chromium() as opened:
        yield opened


@pytest.fixture
def visit(browser: Browser, api: httpx.Client) -> Iterator[Callable[..., Page]]:
    """Open the page, with settings in its address. In the end: no errors, and no request to anyone else."""
    pages: list[Page] = []
    problems: list[str] = []

    def open_page(client: httpx.Client = api, *, script: str | None = None, **given: object) -> Page:
        options = {name: given.pop(name) for name in ("color_scheme", "viewport") if name in given}
        context = browser.new_context(reduced_motion="reduce", **options)
        context.set_default_timeout(15_000)
        page = context.new_page()
        origin = str(client.base_url).rstrip("/")
        page.on(
            "console", lambda message: problems.append(message.text) if _matters(message.text, message.type) else None
        )
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on(
            "request", lambda request: None if request.url.startswith(f"{origin}/") else problems.append(request.url)
        )
        pages.append(page)
        page.goto(f"{origin}/?{urlencode(given)}" if given else f"{origin}/")
        return page

    yield open_page
    for page in pages:
        page.context.close()
    assert not problems


def _matters(text: str, kind: str) -> bool:
    """Answers that are errors (401, 422, …) are logged by Chromium itself, and belong to these tests."""
    return kind in ("error", "warning") and not text.startswith("Failed to load resource")
