"""What an index says about itself."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from kalm_cache.errors import IndexNotFoundError, StoreError
from kalm_cache.generations.current import write_current
from kalm_cache.generations.stats import index_stats
from tests.indexes import TEXTS, build, make_embedder, settings_for, shard_of
from tests.stores import records_of


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory, mini_folder: Path) -> Path:
    folder = tmp_path_factory.mktemp("stats")
    settings = settings_for(mini_folder, make_embedder(folder / "embedder"), max_length=40, codec="int8", chunk_size=8)
    build(folder / "index", settings, TEXTS)
    return folder / "index"


def test_stats_are_those_of_the_live_generation(index: Path, mini_folder: Path):
    stats = index_stats(index)
    assert (stats.passages, stats.codec, stats.chunk_size, stats.width) == (12, "int8", 8, 64)
    assert (stats.model, stats.generation, stats.store_text) == (str(mini_folder), "000001", True)
    assert stats.embedder == str(index.parent / "embedder")
    assert 0 < stats.truncated < 12


def test_file_bytes_are_the_sizes_of_all_files_of_the_generation(index: Path):
    files = [path for path in (index / "generations" / "000001").rglob("*") if path.is_file()]
    assert {"manifest.json", "states.lmdb", "passages.lmdb", "dense.faiss"} <= {path.name for path in files}
    stats = index_stats(index)
    assert stats.file_bytes == sum(len(path.read_bytes()) for path in files)
    assert stats.bytes_per_passage == round(stats.file_bytes / 12, 1)
    assert stats.bytes_per_token == round(stats.file_bytes / stats.tokens, 1)


def test_each_file_is_measured_and_those_of_the_states_beside_their_payloads(index: Path):
    folder, stats = index / "generations" / "000001", index_stats(index)
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    assert stats.files == sizes
    assert stats.states_bytes == sizes["shards/00000/states.lmdb"]
    assert stats.passages_bytes == sizes["shards/00000/passages.lmdb"]
    assert stats.first_stage_bytes == sum(size for name, size in sizes.items() if "/first_stage/" in name)
    assert stats.states_overhead == round(stats.states_bytes / stats.payload_bytes, 3)
    assert stats.states_bytes_per_passage == round(stats.states_bytes / 12, 1)
    assert stats.states_bytes_per_token == round(stats.states_bytes / stats.tokens, 1)


def test_counts_are_those_of_the_records(index: Path):
    records = records_of(shard_of(index)).values()
    stats = index_stats(index)
    assert stats.tokens == sum(record.tokens for record in records)
    assert stats.pooled_states == sum(record.rows for record in records)
    assert stats.truncated == sum(record.truncated for record in records)
    assert stats.payload_bytes == sum(len(record.payload) for record in records)


def test_the_json_fields_come_in_the_documented_order(index: Path):
    fields = json.loads(json.dumps(dataclasses.asdict(index_stats(index))))
    documented = ["passages", "tokens", "payload_bytes", "file_bytes", "bytes_per_passage", "codec", "chunk_size"]
    assert list(fields)[:9] == [*documented, "model", "generation"]


def test_an_empty_index_has_averages_of_zero(tmp_path: Path, mini_folder: Path):
    build(tmp_path / "index", settings_for(mini_folder, make_embedder(tmp_path / "embedder")), {})
    stats = index_stats(tmp_path / "index")
    assert (stats.passages, stats.tokens, stats.payload_bytes) == (0, 0, 0)
    assert (stats.bytes_per_passage, stats.bytes_per_token) == (0.0, 0.0)
    assert (stats.states_overhead, stats.states_bytes_per_passage, stats.states_bytes_per_token) == (0.0, 0.0, 0.0)
    assert stats.file_bytes > 0


def test_without_an_index_and_with_a_damaged_one_the_errors_say_so(tmp_path: Path):
    with pytest.raises(IndexNotFoundError):
        index_stats(tmp_path)
    (tmp_path / "generations" / "000001").mkdir(parents=True)
    (tmp_path / "generations" / "000001" / "manifest.json").write_text("{")
    write_current(tmp_path, "000001")
    with pytest.raises(StoreError):
        index_stats(tmp_path)
