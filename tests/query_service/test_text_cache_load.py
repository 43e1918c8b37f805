"""Two services and a warm job use one cache under load: no error, and every answer is the uncached one."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from kalm_cache.reranker import KaLMReranker
from kalm_cache.storage.text_cache import upkeep
from tests.query_service.test_text_cache_processes import served
from tests.texts import long_text
from tests.waiting import wait_for

TEXTS = [f"{i}: {long_text(40 + i % 10, seed=i)}" for i in range(1500)]
STATES = {"KALM_CACHE_CODEC": "fp32", "KALM_CACHE_CHUNK_SIZE": "1"}  # 19 MiB in all: more than the file may have
QUERIES = ["bees", "Where does the ferry leave?"]
THREADS, REQUESTS, DOCUMENTS = 4, 50, 20
GIB = 1 / 64
BATCHES = 1e-4  # what a margin differs by in a batch of others; the codec is exact


def drawn(seed: int) -> tuple[str, list[int]]:
    """A query and its documents: some often, most seldom."""
    draw = random.Random(seed)
    return draw.choice(QUERIES), [int(len(TEXTS) * draw.random() ** 3) for _ in range(DOCUMENTS)]


def ask(url: str, seed: int) -> dict[tuple[str, int], float]:
    """The margins of a request."""
    query, rows = drawn(seed)
    body = {"query": query, "documents": [TEXTS[row] for row in rows], "return_margin": True}
    answer = httpx.post(f"{url}/v2/rerank", json=body, timeout=120)
    assert answer.status_code == 200, answer.text
    return {(query, rows[one["index"]]): one["margin"] for one in answer.json()["results"]}


@pytest.mark.slow
def test_two_services_and_a_warm_job_share_a_cache_under_load(
    mini_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in STATES.items():
        monkeypatch.setenv(name, value)
    cache, corpus = tmp_path / "cache", tmp_path / "corpus.jsonl"
    corpus.write_text("".join(json.dumps({"_id": str(i), "text": text}) + "\n" for i, text in enumerate(TEXTS)))
    flags = ["--model", str(mini_folder), "--text-cache", str(cache), "--text-cache-gib", str(GIB), "--device", "cpu"]
    warm = [sys.executable, "-c", "from kalm_cache.cli import main; main()", "warm", str(corpus), *flags, "--json"]
    with (
        served(mini_folder, cache, 1, "--text-cache-gib", str(GIB)) as one,
        served(mini_folder, cache, 1, "--text-cache-gib", str(GIB)) as other,
        subprocess.Popen([*warm, "--dtype", "float32"], stdout=subprocess.PIPE, text=True) as job,
        ThreadPoolExecutor(2 * THREADS) as threads,
    ):
        for url in (one, other):
            wait_for(lambda url=url: httpx.get(f"{url}/ready", timeout=60).status_code == 200)  # type: ignore[misc]
        asked = [threads.submit(ask, (one, other)[seed % 2], seed) for seed in range(2 * REQUESTS)]
        answers = [each.result() for each in asked]
        report = json.loads(job.communicate(timeout=300)[0])
        health = [httpx.get(f"{url}/health", timeout=60).json()["text_cache"] for url in (one, other)]
    assert (job.returncode, report["passages"], report["dropped"]) == (0, len(TEXTS), 0)
    assert [each["off"] for each in health] == ["", ""]
    assert [each["damaged"] for each in health] == [0, 0]
    assert all(each["hits"] for each in health)
    assert upkeep.verify(cache).problems == []
    assert upkeep.stats(cache).file_bytes <= GIB * 2**30
    seen = {pair: margin for answer in answers for pair, margin in answer.items()}
    reranker = KaLMReranker(str(mini_folder), device="cpu", dtype="float32", chunk_size=1)
    uncached = reranker.predict([(query, TEXTS[row]) for query, row in seen], return_margin=True)
    expected = {pair: scored["margin"] for pair, scored in zip(seen, uncached, strict=True)}
    for answer in answers:
        assert answer == pytest.approx({pair: expected[pair] for pair in answer}, abs=BATCHES)
