"""Verification finds what is wrong though every receipt is right: content, counts, CURRENT."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import faiss
import numpy as np
import pytest

from indexer.integrity.verify import IndexDamage, verify_index
from kalm_cache.errors import IndexNotFoundError
from kalm_cache.generations.current import write_current
from kalm_cache.generations.generation import open_current
from kalm_cache.generations.manifest import SCHEMA_VERSION, Counts
from kalm_cache.storage.passage_store import NO_COMMON, ordinal_key, pack_text
from tests.indexer.verified import BM25, DENSE, PASSAGES, SEAL, STATES, problems
from tests.indexes import TEXTS, build, seal_again, settings_for, shard_of
from tests.stores import Contents, change_contents, read_contents


def change(index: Path, apply: Callable[[Contents], object]) -> None:
    """Change the store behind the back of everything, every checksum right, and seal the generation again."""
    change_contents(shard_of(index), apply)
    seal_again(index)


def ordinal_of(index: Path, doc_id: str) -> int:
    return read_contents(shard_of(index)).meta(doc_id).ordinal


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"codec": 6}, "its codec has number 6, the manifest says fp16"),
        ({"codec": 5 | 0x80}, "its codec has number 133, the manifest says fp16"),
        ({"codec": 77}, "its codec has number 77, the manifest says fp16"),
        ({"chunk_size": 8}, "its chunk size is 8, the manifest says 4"),
        ({"chunk_size": 0}, "its chunk size is 0, the manifest says 4"),
        ({"width": 32}, "its states are 32 wide, the manifest says 64"),
        ({"tokens": 5000}, "it has 5000 tokens, the manifest says 1 to 1024"),
        ({"tokens": 0}, "it has 0 tokens, the manifest says 1 to 1024"),
        ({"payload": b"short"}, "holds 5 bytes, its header says"),
    ],
)
def test_a_record_that_does_not_fit_is_named(index: Path, fields: dict[str, object], expected: str):
    change(index, lambda contents: contents.set_record("d3", **fields))
    found = [problem for file, doc_id, problem in problems(index) if (file, doc_id) == (STATES, "d3")]
    assert any(expected in problem for problem in found)
    assert {doc_id for _, doc_id, _ in problems(index)} == {"d3"}


@pytest.mark.parametrize("level", [1, 3, 19])
def test_every_zstd_level_reads_the_same_and_is_no_damage(
    tmp_path: Path, mini_folder: Path, embedder_folder: Path, level: int
):
    build(tmp_path / "index", settings_for(mini_folder, embedder_folder, codec=f"bf16+zstd{level}"), TEXTS)
    assert problems(tmp_path / "index") == []


def test_states_that_are_not_finite_are_named(index: Path):
    def spoil(contents: Contents) -> None:
        record = contents.record("d3")
        contents.set_record("d3", payload=np.full((record.rows, record.width), np.nan, "<f2").tobytes())

    change(index, spoil)
    assert problems(index) == [(STATES, "d3", "its states are not finite")]


def test_a_text_that_is_another_ones_is_named(index: Path):
    def spoil(contents: Contents) -> None:
        contents.set_identity("d3", contents.meta("d3")._replace(content_hash=bytes(16)))

    change(index, spoil)
    assert problems(index) == [(PASSAGES, "d3", "its text is not the one that its states were made from")]


def test_a_number_that_leads_to_another_passage_is_named(index: Path):
    ordinal, other = ordinal_of(index, "d3"), ordinal_of(index, "d4")
    change(index, lambda contents: contents.ordinals.update({ordinal_key(ordinal): (NO_COMMON, b"", b"d4")}))
    assert problems(index) == [(PASSAGES, "d4", f"ordinal {ordinal} leads to it, its own is {other}")]


def test_a_number_of_its_own_that_is_not_there_is_named(index: Path):
    ordinal = ordinal_of(index, "d3")

    def spoil(contents: Contents) -> None:
        del contents.ordinals[ordinal_key(ordinal)]

    change(index, spoil)
    assert (PASSAGES, "d3", f"its ordinal {ordinal} is not there") in problems(index)


def test_a_second_number_of_a_passage_is_named(index: Path):
    change(index, lambda contents: contents.ordinals.update({ordinal_key(50): (NO_COMMON, b"", b"d3")}))
    own = ordinal_of(index, "d3")
    assert (PASSAGES, "d3", f"ordinal 50 leads to it, its own is {own}") in problems(index)
    assert (SEAL, None, "ordinal 50 was given, but the next one to give is 12") in problems(index)


@pytest.mark.parametrize(("database", "file"), [("blocks", STATES), ("passages", PASSAGES)])
def test_a_record_or_passage_that_is_gone_is_missed_by_its_counterpart(index: Path, database: str, file: str):
    change(index, lambda contents: getattr(contents, database).pop(b"d3"))
    found = problems(index)
    what = "its record is not there, and the passage is" if file == STATES else "it is not there, and its record is"
    assert (file, "d3", what) in found
    if file == PASSAGES:
        assert (PASSAGES, "d3", f"ordinal {number_of_lost(index)} leads to it, and it is not there") in found


def number_of_lost(index: Path) -> int:
    contents = read_contents(shard_of(index))
    (key,) = [key for key, (_, _, doc_id) in contents.ordinals.items() if doc_id == b"d3"]
    return int.from_bytes(key, "big")


def test_a_passage_that_is_gone_from_everywhere_is_missed_by_the_counts(index: Path):
    def spoil(contents: Contents) -> None:
        del contents.ordinals[ordinal_key(contents.meta("d3").ordinal)]
        del contents.blocks[b"d3"], contents.passages[b"d3"]

    change(index, spoil)
    found = problems(index)
    assert any("the records add up to Counts(passages=11" in problem for _, _, problem in found)
    assert (SEAL, None, "it says 12 passages, there are 11") in found


def test_a_text_that_is_gone_is_missed(index: Path):
    def spoil(contents: Contents) -> None:
        common, fields, _ = contents.passages[b"d3"]
        contents.passages[b"d3"] = (common, fields, b"")

    change(index, spoil)
    assert problems(index) == [(PASSAGES, "d3", "its text is missing")]


def test_a_text_in_an_index_that_keeps_none_is_named(tmp_path: Path, mini_folder: Path, embedder_folder: Path):
    index = tmp_path / "index"
    build(index, settings_for(mini_folder, embedder_folder, store_text=False), TEXTS)

    def spoil(contents: Contents) -> None:
        common, fields, _ = contents.passages[b"d3"]
        contents.passages[b"d3"] = (common, fields, pack_text(TEXTS["d3"]))

    change(index, spoil)
    assert problems(index) == [(PASSAGES, "d3", "it has a text, in an index that keeps none")]


def test_numbers_and_ids_that_are_none_are_named(index: Path):
    def spoil(contents: Contents) -> None:
        contents.ordinals[b"short"] = (NO_COMMON, b"", b"d3")
        contents.ordinals[ordinal_key(50)] = (NO_COMMON, b"", b"\xff\xfe")

    change(index, spoil)
    found = [problem for _, _, problem in problems(index)]
    assert "ordinal b'short' has 5 bytes, not 8; run kalm-cache verify" in found
    assert "id b'\\xff\\xfe' is not UTF-8; run kalm-cache verify" in found


def test_counts_that_the_manifest_has_wrong_are_named(index: Path):
    counts = open_current(index).manifest.counts
    seal_again(index, counts=replace(counts, tokens=counts.tokens + 1))
    said = str(replace(counts, tokens=counts.tokens + 1))
    assert any(str(counts) in problem and said in problem for _, _, problem in problems(index))
    (segment,) = open_current(index).manifest.segments
    fewer = Counts(11, 0, 0, 0, 0)
    seal_again(index, counts=fewer, segments=[replace(segment, counts=fewer)])
    assert {(DENSE, None, "holds 12 passages, expected 11"), (BM25, None, "holds 12 passages, expected 11")} < {
        *problems(index)
    }
    more = Counts(13, 0, 0, 0, 0)  # than its range of ordinals has room for
    seal_again(index, segments=[replace(segment, counts=more)])
    [(file, _, problem)] = problems(index)
    assert (file, "the ordinals of segment 00000 do not fit" in problem) == ("manifest.json", True)


def test_a_manifest_of_another_generation_is_named(index: Path):
    seal_again(index, generation="000007")
    assert problems(index) == [("manifest.json", None, "is that of generation 000007")]


def rewrite_dense(index: Path, ordinals: list[int]) -> None:
    path = shard_of(index) / "first_stage" / "dense.faiss"
    dense = faiss.IndexIDMap(faiss.IndexFlatIP(8))
    dense.add_with_ids(np.ones((len(ordinals), 8), np.float32), np.array(ordinals, np.int64))
    faiss.write_index(dense, str(path))
    seal_again(index)


def test_a_first_stage_of_other_passages_is_named(index: Path):
    rewrite_dense(index, [*range(11), 40])
    np.save(shard_of(index) / "first_stage" / "bm25" / "numbers.npy", np.array([*range(11), 10]))
    seal_again(index)
    problem = "its ordinals are not those of the store, the first to differ: {}"
    assert problems(index) == [(DENSE, None, problem.format([11, 40])), (BM25, None, problem.format([11]))]


def test_a_first_stage_of_fewer_passages_is_named(index: Path):
    rewrite_dense(index, [*range(11)])
    np.save(shard_of(index) / "first_stage" / "bm25" / "numbers.npy", np.arange(11))
    seal_again(index)
    assert problems(index)[0] == (DENSE, None, "holds 11 passages, expected 12")
    assert problems(index)[1][0] == BM25


@pytest.mark.parametrize("content", [b"", b"rubbish" * 100])
def test_first_stage_files_with_right_receipts_that_cannot_be_read_are_named(index: Path, content: bytes):
    (shard_of(index) / "first_stage" / "dense.faiss").write_bytes(content)
    (shard_of(index) / "first_stage" / "bm25" / "numbers.npy").write_bytes(content)
    seal_again(index)
    found = problems(index)
    assert [(file, doc_id) for file, doc_id, _ in found] == [(DENSE, None), (BM25, None)]
    assert all(problem.startswith("cannot be read: ") for _, _, problem in found)


def test_a_first_stage_that_is_not_there_is_named(index: Path):
    shutil.rmtree(shard_of(index) / "first_stage")
    seal_again(index)
    assert [(file, doc_id) for file, doc_id, _ in problems(index)] == [(DENSE, None), (BM25, None)]


def test_a_store_with_right_receipts_that_is_none_is_named(index: Path):
    (shard_of(index) / "passages.lmdb").write_bytes(b"garbage" * 1000)
    seal_again(index)
    assert {(file, doc_id) for file, doc_id, _ in problems(index)} >= {(PASSAGES, None)}


@pytest.mark.parametrize("content", [b"", b"000002\n", b"00000", b"000001\n\n", b"\xff\xfe", b"0000\x001\n", b"."])
def test_a_damaged_current_is_named(index: Path, content: bytes):
    (index / "CURRENT").write_bytes(content)
    report = verify_index(index)
    assert [(damage.file, damage.doc_id) for damage in report.damaged] == [("CURRENT", None)]


def test_a_current_that_names_no_generation_is_named(index: Path):
    write_current(index, "000002")
    assert verify_index(index).damaged == [
        IndexDamage("CURRENT", None, "names '000002', which is not one of ['000001']")
    ]


def test_a_missing_current_beside_a_generation_is_damage(index: Path):
    (index / "CURRENT").unlink()
    assert [damage.file for damage in verify_index(index).damaged] == ["CURRENT"]


def test_a_manifest_of_another_schema_is_damage(index: Path):
    path = index / "generations" / "000001" / "manifest.json"
    path.write_text(path.read_text().replace(f'"schema_version": {SCHEMA_VERSION}', '"schema_version": 99'))
    (damage,) = verify_index(index).damaged
    assert damage.file == "manifest.json"
    assert f"schema version 99, this version reads {SCHEMA_VERSION}" in damage.problem


def test_a_manifest_that_was_laid_out_anew_is_damage(index: Path):
    path = index / "generations" / "000001" / "manifest.json"
    path.write_text(path.read_text().replace("\n  ", "\n   ", 1))
    assert verify_index(index).damaged == [IndexDamage("manifest.json", None, "was changed after it was published")]


def test_a_folder_where_nothing_was_published_is_not_found(tmp_path: Path):
    with pytest.raises(IndexNotFoundError):
        verify_index(tmp_path)
    with pytest.raises(IndexNotFoundError):
        verify_index(tmp_path / "none")
