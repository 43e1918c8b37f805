"""The prefix cache: what it keeps, what it evicts, and that answers with it equal those without it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch

from kalm_cache import PassageIndex
from kalm_cache.errors import UnknownIdError, UsageError
from kalm_cache.model.kernels.prefix_kv import PrefixKV
from kalm_cache.model.prompts import Prompt, PromptTokens
from kalm_cache.scoring.prefix_cache import GIB, CachedPrefix, PrefixCache, PrefixKey, gib_with_room
from tests.indexes import TEXTS, build, settings_for
from tests.query_service.conftest import serving

IDS = list(TEXTS)
QUERIES = ["What is the capital of China?", "when does the ferry leave", ""]


def key(doc_id: str, generation: str = "000001", decoder: str = "one") -> PrefixKey:
    return PrefixKey(generation, decoder, doc_id, 4, (1, 2))


def kept(numbers: int) -> CachedPrefix:
    """A passage of 4 · numbers bytes."""
    return CachedPrefix(3, False, PrefixKV((1, 2), 1, torch.zeros(numbers)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, mini_folder: Path, embedder_folder: Path) -> Path:
    root = tmp_path_factory.mktemp("prefix-cache")
    build(root / "index", settings_for(mini_folder, embedder_folder), TEXTS)
    return root / "index"


@pytest.fixture(scope="module")
def plain(folder: Path) -> Iterator[PassageIndex]:
    with PassageIndex.open(folder, device="cpu") as index:
        yield index


def test_the_least_recently_used_passages_leave_when_the_bytes_are_used_up():
    prefix_cache = PrefixCache(100 / GIB)
    for doc_id in ("a", "b"):
        prefix_cache.put(key(doc_id), kept(10))
    assert prefix_cache.get([key("a")]) != [None]  # now b is the one that was not used for longest
    prefix_cache.put(key("c"), kept(10))
    assert [passage is not None for passage in prefix_cache.get([key("a"), key("b"), key("c")])] == [True, False, True]
    stats = prefix_cache.stats()
    assert (stats.hits, stats.misses, stats.evicted, stats.passages, stats.bytes) == (3, 1, 1, 2, 80)


def test_a_passage_larger_than_the_cache_is_not_taken():
    prefix_cache = PrefixCache(100 / GIB)
    prefix_cache.put(key("a"), kept(10))
    prefix_cache.put(key("b"), kept(26))
    assert [passage is not None for passage in prefix_cache.get([key("a"), key("b")])] == [True, False]


def test_a_passage_put_twice_counts_once():
    prefix_cache = PrefixCache(100 / GIB)
    prefix_cache.put(key("a"), kept(10))
    prefix_cache.put(key("a"), kept(20))
    assert (prefix_cache.stats().passages, prefix_cache.stats().bytes) == (1, 80)


def test_generations_decoders_ratios_and_prefixes_do_not_share_entries():
    prefix_cache = PrefixCache(1)
    prefix_cache.put(key("a"), kept(1))
    others = [
        key("a", "000002"),
        key("a", decoder="another"),
        PrefixKey("000001", "one", "a", 8, (1, 2)),
        PrefixKey("000001", "one", "a", 4, (1, 3)),
    ]
    assert prefix_cache.get(others) == [None] * 4


@pytest.mark.parametrize(("capacity", "dtype"), [(-1, "int8"), (0, "int8"), (1, "int4")])
def test_a_cache_of_no_size_or_of_another_dtype_is_refused(capacity: float, dtype: str):
    with pytest.raises(UsageError, match="prefix_cache"):
        PrefixCache(capacity, dtype)


# in a float32 run, what is rounded is the same on every processor
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 0.1), ("int8", 0.3)])
@pytest.mark.parametrize("chunk_size", [4, 8])
def test_margins_with_the_prefix_cache_equal_those_without_it(
    folder: Path, plain: PassageIndex, dtype: str, tolerance: float, chunk_size: int
):
    with PassageIndex.open(folder, device="cpu", prefix_cache_gib=1, prefix_cache_dtype=dtype) as index:
        for query in QUERIES * 2:
            expected = plain.margins(query, IDS, chunk_size=chunk_size)
            np.testing.assert_allclose(index.margins(query, IDS, chunk_size=chunk_size), expected, atol=tolerance)
        stats = index.prefix_cache.stats()
        assert (stats.hits, stats.misses, stats.passages) == (5 * len(IDS), len(IDS), len(IDS))
        assert stats.bytes > 0


def test_another_instruction_is_kept_apart(folder: Path, plain: PassageIndex):
    with PassageIndex.open(folder, device="cpu", prefix_cache_gib=1, prefix_cache_dtype="float32") as index:
        index.margins(QUERIES[0], IDS)
        for instruction in ("Find the passage.", ""):
            expected = plain.margins(QUERIES[0], IDS, instruction=instruction)
            got = index.margins(QUERIES[0], IDS, instruction=instruction)
            np.testing.assert_allclose(got, expected, atol=1e-5)
        assert index.prefix_cache.stats().hits == 0


def test_a_prompt_that_does_not_begin_with_the_prefix_is_served_from_the_pooled_states(
    folder: Path, plain: PassageIndex
):
    with PassageIndex.open(folder, device="cpu", prefix_cache_gib=1) as index:
        prefix = index.query_side.prefix(Prompt(""))
        odd = PromptTokens([*prefix[:-1], prefix[-1] + 1, 5], False, Prompt("odd"))
        passages = index.stored.read(IDS, [odd])
        assert [type(passage.states) for passage in passages] == [torch.Tensor] * len(IDS)
        assert index.prefix_cache.stats().misses == 0


@pytest.mark.parametrize("query", ["a", "?", " leading", "\n", "<Query>: x", "日本", "é", "<end_of_turn>"])
def test_the_prompt_of_any_query_begins_with_the_prefix_or_is_known_not_to(plain: PassageIndex, query: str):
    prefix = plain.query_side.prefix(Prompt(""))
    prompt = plain.query_side.tokenize(Prompt(query))
    assert 3 < len(prefix) < len(prompt.ids)
    assert tuple(prompt.ids[: len(prefix)]) == prefix


def test_ids_asked_for_twice_and_unknown_ones_are_treated_as_without_the_cache(folder: Path, plain: PassageIndex):
    with PassageIndex.open(folder, device="cpu", prefix_cache_gib=1, prefix_cache_dtype="float32") as index:
        twice = ["d3", "d1", "d3"]
        np.testing.assert_allclose(index.margins("ferry", twice), plain.margins("ferry", twice), atol=1e-5)
        with pytest.raises(UnknownIdError):
            index.margins("ferry", ["d1", "nowhere"])


def test_search_ranks_alike_with_and_without_the_cache(folder: Path, plain: PassageIndex):
    with PassageIndex.open(folder, device="cpu", prefix_cache_gib=1, prefix_cache_dtype="float32") as index:
        for _ in range(2):
            ranked = [result.doc_id for result in index.search(QUERIES[0], k=12, top_n=12).results]
            assert ranked == [result.doc_id for result in plain.search(QUERIES[0], k=12, top_n=12).results]


def test_the_service_reports_hits_and_bytes_of_the_prefix_cache(folder: Path):
    with serving(folder, prefix_cache_gib=1) as client:
        answers = [_rerank(client) for _ in range(2)]
        hits = client.get("/health").json()["prefix_cache"]
    assert answers[0] == pytest.approx(answers[1], abs=1e-6)
    assert (hits["hits"], hits["misses"], hits["passages"], hits["evicted"]) == (3, 3, 3, 0)
    assert 0 < hits["bytes"] < hits["capacity_bytes"] == GIB


def _rerank(client: httpx.Client) -> list[float]:
    answer = client.post("/rerank", json={"query": "ferry", "ids": ["d1", "d2", "d3"]}).json()
    return [result["relevance_score"] for result in answer["results"]]


def test_on_a_gpu_a_prefix_cache_leaves_memory_for_batches(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10 * GIB, 80 * GIB))
    assert gib_with_room(5.0, torch.device("cuda")) == 5.0
    assert not caplog.records
    assert gib_with_room(40.0, torch.device("cuda", 1)) == pytest.approx(7.0)
    assert "prefix_cache_gib is 40.0, and cuda:1 has 10.0 GiB free: 7.0 are used" in caplog.text
    assert gib_with_room(40.0, torch.device("cpu")) == 40.0
