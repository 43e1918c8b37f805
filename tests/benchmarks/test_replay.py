"""The pieces of the replay: its stream, what it compares with, what it prepares, and what it makes of answers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.text_cache.asking import Asked
from benchmarks.text_cache.findings import goals_of, rows_of, tables
from benchmarks.text_cache.lru import Lru
from benchmarks.text_cache.prepared import Shape, fill, fill_up, states_in
from benchmarks.text_cache.replay import AllHeld
from benchmarks.text_cache.stream import Stream
from benchmarks.timing import Times
from kalm_cache.codec import get_codec
from kalm_cache.errors import UsageError
from kalm_cache.model.checkpoint import open_checkpoint
from kalm_cache.model.prompts import load_prompt_tokenizer
from kalm_cache.settings import load_settings
from kalm_cache.storage.text_cache.text_cache import TextCache, TextCacheOptions


def test_passages_come_by_zipfs_law_and_those_of_a_request_are_distinct() -> None:
    one = Stream(passages=100, tokens=16, documents=1).requests(20_000, seed=3)
    shares = np.sort(np.bincount(one.ravel(), minlength=100))[::-1] / len(one)
    expected = 1 / np.arange(1, 101) / sum(1 / rank for rank in range(1, 101))
    assert np.abs(shares - expected)[:5].max() < 0.01
    rows = Stream(passages=100, tokens=16, documents=50).requests(30, seed=3)
    assert rows.shape == (30, 50) and all(len(set(row)) == 50 for row in rows.tolist())


def test_another_part_of_the_stream_asks_for_the_same_passages_most() -> None:
    stream = Stream(passages=1000, tokens=16, documents=10)
    most = [np.bincount(stream.requests(500, seed).ravel(), minlength=1000).argmax() for seed in (0, 1)]
    assert most[0] == most[1]


def test_passages_have_as_many_tokens_as_asked_for() -> None:
    checkpoint = open_checkpoint("tiny")
    tokenizer = load_prompt_tokenizer(checkpoint.folder, checkpoint.config.encoder.vocab_size)
    texts = Stream(passages=20, tokens=64, documents=5).texts(tokenizer)
    assert {len(tokens.ids) for tokens in tokenizer.passages(texts, 1024)} == {64}
    assert len(set(texts)) == 20


def test_a_vocabulary_without_words_is_refused(mini_folder: Path) -> None:
    checkpoint = open_checkpoint(str(mini_folder))
    tokenizer = load_prompt_tokenizer(checkpoint.folder, checkpoint.config.encoder.vocab_size)
    with pytest.raises(UsageError, match="--tokenizer"):
        Stream(passages=5, tokens=64, documents=5).texts(tokenizer)


def test_the_dictionary_lets_the_least_recently_used_go() -> None:
    lru = Lru(max_bytes=2 * 16)
    for name in ("a", "b"):
        lru.put(name, torch.zeros(4))
    assert lru.get("a") is not None
    lru.put("c", torch.zeros(4))
    assert [lru.get(name) is not None for name in ("a", "b", "c")] == [True, False, True]
    assert len(lru) == 2


def test_prepared_states_are_those_that_a_service_finds(tmp_path: Path) -> None:
    settings = load_settings(model="tiny", dtype="float32", codec="int8")
    shape, texts = Shape(tokens=30, chunk_size=4, width=256, codec="int8"), ["one", "two"]
    with TextCache(TextCacheOptions(tmp_path / "cache", 16 << 20)) as cache:
        fill_up(cache, 1 << 20, shape)
        states = states_in(cache, settings, torch.float32)
        fill(states, texts, shape)
        found = states.look_up(AllHeld(1024), texts).found
        assert cache.counts.evicted == 0
    step = float(shape.states(2).abs().max()) / 127
    assert found["two"].tokens == 30
    assert get_codec("int8").payload_bytes(8, 256) == len(shape.record(shape.states(2)).payload)
    assert torch.allclose(found["two"].states, shape.states(2), atol=2 * step)


def test_goals_compare_throughputs_and_the_slowest_answers() -> None:
    warm = Asked([100.0] * 4, documents=8, hits=8)
    restarted = Asked([100.0, 100.0, 100.0, 300.0], documents=8, hits=8, first_answers_s=[2.25])
    by_id = Asked([98.0] * 4, documents=8, hits=8)
    rows = rows_of({"warm": warm, "restarted": restarted, "by id": by_id}, beside="by id")
    writer = {"writer idle": Asked([50.0, 100.0], 4, 4), "writer at its limit": Asked([50.0, 120.0], 4, 3)}
    writer_rows = rows_of(writer, beside="writer idle")
    assert [row["of_other"] for row in rows] == [0.98, 0.6533, 1.0]
    assert writer_rows[1]["hit_rate"] == 0.75
    goals = goals_of(rows, writer_rows, {"look-up": Times([3.0]), "decoder": Times([100.0])})
    assert [(goal["measured"], goal["holds"]) for goal in goals] == [
        (0.98, True), (0.6533, False), (0.03, True), (1.2, False),
    ]  # fmt: skip
    assert "| throughput, restarted / by id | 0.6533 | ≥ 0.95, missed |" in tables(rows, writer_rows, goals)
