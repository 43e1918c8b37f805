"""Worker processes share one text cache, in a service of its own."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from kalm_cache.storage.text_cache import upkeep
from tests.waiting import wait_for

TEXTS = ["bees make honey", "a stone", "bees sting"]


@contextmanager
def served(model: Path, cache: Path, workers: int, *more: str) -> Iterator[str]:
    """The URL of `kalm-cache serve` without an index, which SIGTERM ends with 0."""
    flags = ["--model", str(model), "--text-cache", str(cache), "--workers", str(workers), "--port", "0", *more]
    program = "from kalm_cache.cli import main; main()"
    command = [sys.executable, "-c", program, "serve", *flags, "--device", "cpu", "--dtype", "float32"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            lines = iter(process.stderr.readline, "")
            yield next(found[1] for line in lines if (found := re.search(r"serving texts with \S+ on (\S+)", line)))
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=60)
            assert process.returncode == 0
        finally:
            process.kill()


def caches(url: str) -> list[str]:
    """`cache` of each text, asked over a connection of its own, so that any worker may answer."""
    wait_for(lambda: httpx.get(f"{url}/ready", timeout=60).status_code == 200)
    answer = httpx.post(f"{url}/v2/rerank", json={"query": "bees", "documents": TEXTS}, timeout=60)
    assert answer.status_code == 200, answer.text
    return [one["cache"] for one in answer.json()["results"]]


def test_what_two_workers_encode_at_one_moment_is_stored_once_and_answered_alike(
    mini_folder: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    with served(mini_folder, cache, workers=2) as url:
        wait_for(lambda: httpx.get(f"{url}/ready", timeout=60).status_code == 200)
        body = {"query": "bees", "documents": TEXTS, "return_margin": True}
        with ThreadPoolExecutor(8) as threads:
            asked = [threads.submit(httpx.post, f"{url}/v2/rerank", json=body, timeout=60) for _ in range(16)]
            answers = [each.result().json()["results"] for each in asked]
    margins = [{one["index"]: one["margin"] for one in answer} for answer in answers]
    assert all(each == pytest.approx(margins[0], abs=1e-4) for each in margins)
    assert upkeep.verify(cache) == upkeep.Verified(len(TEXTS), [])


def test_workers_share_a_text_cache_and_write_what_they_have_when_they_stop(mini_folder: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    with served(mini_folder, cache, workers=2) as url:
        assert caches(url) == ["encoded"] * 3
        wait_for(lambda: all(caches(url) == ["hit"] * 3 for _ in range(6)))  # whichever worker it meets
        httpx.post(f"{url}/rerank", json={"query": "bees", "documents": ["the last text"]}, timeout=60)
    assert upkeep.stats(cache).entries == len(TEXTS) + 1
