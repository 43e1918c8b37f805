"""Verification finds and names every damage, and no damage ends it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import faiss
import lmdb
import numpy as np
import pytest

from indexer.job import Encoders
from indexer.verify import Damage, verify_generation, verify_index
from kalm_cache.codec import get_codec
from kalm_cache.errors import IndexNotFoundError
from kalm_cache.generation import Counts, open_current
from kalm_cache.record import Record, pack_record, unpack_record
from kalm_cache.settings import Settings
from kalm_cache.store import PassageStore, pack_text
from tests.indexes import TEXTS, build, seal_again, settings_for, shard_of

STORE = "shards/00000/passages.lmdb"
DENSE = "shards/00000/first_stage/dense.faiss"
BM25 = "shards/00000/first_stage/bm25"
FILES = [
    STORE,
    DENSE,
    "build.json",
    "manifest.json",
    *(
        f"{BM25}/{name}"
        for name in (
            "analysis.json",
            "data.csc.index.npy",
            "indices.csc.index.npy",
            "indptr.csc.index.npy",
            "numbers.npy",
            "params.index.json",
            "vocab.index.json",
        )
    ),
]


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory, settings: Settings, encoders: Encoders) -> Path:
    folder = tmp_path_factory.mktemp("clean") / "index"
    build(folder, settings, TEXTS, encoders=encoders)
    return folder


@pytest.fixture
def index(clean: Path, tmp_path: Path) -> Path:
    """An index of one's own, to be damaged."""
    return Path(shutil.copytree(clean, tmp_path / "index"))


def change(index: Path, database: str, key: bytes, value: bytes | None) -> None:
    """Put (or delete) an entry of the store behind the back of everything, and seal the generation again."""
    path = shard_of(index) / "passages.lmdb"
    with lmdb.open(str(path), subdir=False, lock=False, max_dbs=4) as raw:
        db = raw.open_db(database.encode())
        with raw.begin(write=True) as txn:
            txn.delete(key, db=db) if value is None else txn.put(key, value, db=db)
    seal_again(index)


def record_of(index: Path, doc_id: str) -> Record:
    with PassageStore(shard_of(index) / "passages.lmdb") as store:
        (value,) = store.records([doc_id])
    record = unpack_record(doc_id.encode(), value or b"")
    return replace(record, payload=bytes(record.payload))


def change_record(index: Path, doc_id: str, **fields: object) -> None:
    """Give one passage a record with a right checksum and wrong fields."""
    changed = replace(record_of(index, doc_id), **fields)
    change(index, "records", doc_id.encode(), pack_record(doc_id.encode(), changed))


def problems(index: Path) -> list[tuple[str, str | None, str]]:
    report = verify_index(index)
    assert report.ok == (not report.damaged)
    return [(damage.file, damage.doc_id, damage.problem) for damage in report.damaged]


def flip_middle(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x20
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def cut_in_half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def overwrite(path: Path) -> None:
    path.write_bytes(np.random.default_rng(0).bytes(path.stat().st_size))


def make_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def test_a_clean_index_is_ok_and_everything_in_it_was_checked(clean: Path):
    report = verify_index(clean)
    assert (report.ok, report.damaged) == (True, [])
    files = open_current(clean).manifest.files
    assert sorted([*files, "manifest.json"]) == sorted(FILES)
    assert report.checked == {
        "files": len(files),
        "bytes": sum(receipt.bytes for receipt in files.values()),
        "records": 12,
        "texts": 12,
        "vectors": 12,
        "bm25_documents": 12,
    }
    assert verify_generation(open_current(clean)) == report


@pytest.mark.parametrize("changes", [{"store_text": False}, {"bm25": False}, {"codec": "int8"}])
def test_clean_indexes_of_other_kinds_are_ok(tmp_path: Path, mini_folder: Path, embedder_folder: Path, changes):
    build(tmp_path / "index", settings_for(mini_folder, embedder_folder, **changes), TEXTS)
    assert problems(tmp_path / "index") == []


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", [flip_middle, cut, Path.unlink])
def test_every_file_that_was_flipped_cut_or_deleted_is_named(index: Path, name: str, damage: Callable[[Path], object]):
    damage(index / "generations" / "000001" / name)
    assert {file for file, _, _ in problems(index)} == {name}


@pytest.mark.parametrize("name", [STORE, DENSE, f"{BM25}/numbers.npy", "manifest.json"])
@pytest.mark.parametrize("damage", [cut_in_half, empty, lengthen, overwrite, make_folder])
def test_worse_damage_does_not_end_the_verification(index: Path, name: str, damage: Callable[[Path], object]):
    damage(index / "generations" / "000001" / name)
    assert {file for file, _, _ in problems(index)} == {name}


def test_damaged_pages_of_the_store_do_not_end_the_verification(index: Path):
    path = shard_of(index) / "passages.lmdb"
    content = path.read_bytes()
    for start in range(0, len(content), 5 * 4096):
        spoiled = bytearray(content)
        spoiled[start : start + 64] = bytes(0xFF ^ byte for byte in spoiled[start : start + 64])  # the page's header
        path.write_bytes(spoiled)
        assert {file for file, _, _ in problems(index)} == {STORE}


def test_records_behind_a_page_that_cannot_be_read_are_checked_too(index: Path):
    path = shard_of(index) / "passages.lmdb"
    with PassageStore(path) as store:
        d10, d9 = store.records(["d10", "d9"])
    assert d10 is not None
    assert d9 is not None
    spoiled = bytearray(path.read_bytes().replace(d9, d9[:-1] + bytes([d9[-1] ^ 1])))
    page = spoiled.rfind(d10) // 4096 * 4096
    spoiled[page + 10 : page + 12] = b"\xff\xff"  # its flags, which say what kind of page it is
    path.write_bytes(spoiled)
    assert {"d10", "d9"} <= {doc_id for _, doc_id, _ in problems(index)}


def test_all_damaged_files_are_named_at_once(index: Path):
    for name in FILES:
        if name != "manifest.json":
            flip_middle(index / "generations" / "000001" / name)
    assert {file for file, _, _ in problems(index)} == set(FILES) - {"manifest.json"}


@pytest.mark.parametrize("name", ["extra", "shards/00000/passages.lmdb-lock", "shards/00001/passages.lmdb"])
def test_a_file_that_the_manifest_does_not_name_is_named(index: Path, name: str):
    path = index / "generations" / "000001" / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"")
    assert problems(index) == [(name, None, "is not named by the manifest")]


def test_a_flipped_byte_in_a_record_names_its_passage_and_no_other(index: Path):
    path = shard_of(index) / "passages.lmdb"
    with PassageStore(path) as store:
        (value,) = store.records(["d5"])
    assert value is not None
    path.write_bytes(path.read_bytes().replace(value[80:120], value[80:119] + bytes([value[119] ^ 0x10])))
    assert problems(index) == [
        (STORE, None, "its SHA-256 is not that of its receipt"),
        (STORE, "d5", "record 'd5': checksum mismatch; run kalm-cache verify"),
    ]
    assert verify_index(index).checked["records"] == 11


def test_a_flipped_byte_in_a_text_names_its_passage(index: Path):
    path = shard_of(index) / "passages.lmdb"
    packed = pack_text(b"d1", TEXTS["d1"])
    assert packed in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(packed, packed[:-1] + bytes([packed[-1] ^ 1])))
    assert (STORE, "d1", "text 'd1': checksum mismatch; run kalm-cache verify") in problems(index)


def test_verification_does_not_change_the_index(index: Path):
    flip_middle(index / "generations/000001" / STORE)
    before = {path: path.read_bytes() for path in index.rglob("*") if path.is_file()}
    verify_index(index)
    assert {path: path.read_bytes() for path in index.rglob("*") if path.is_file()} == before


# Files with right receipts and wrong content


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"codec": 2}, "its codec has number 2, the manifest says fp16"),
        ({"codec": 77}, "its codec has number 77, the manifest says fp16"),
        ({"ratio": 8}, "its pooling ratio is 8, the manifest says 4"),
        ({"rows": 3}, "its states are 3 × 64, expected {rows} × 64"),
        ({"width": 32}, "its states are {rows} × 32, expected {rows} × 64"),
        ({"tokens": 5000}, "it has 5000 tokens, the manifest says at most 1024"),
        ({"payload": b"no zstd"}, "the payload does not decompress"),
        ({"payload": get_codec("fp16").encode(np.ones((1, 64), np.float32))}, "the payload holds 128 bytes"),
        ({"number": 99}, "number 99 is not there"),
        ({"content_hash": bytes(16)}, "its text is not the one that its record was made from"),
    ],
)
def test_a_record_that_does_not_fit_is_named(index: Path, fields: dict[str, object], expected: str):
    rows = record_of(index, "d3").rows
    change_record(index, "d3", **fields)
    found = [problem for file, doc_id, problem in problems(index) if (file, doc_id) == (STORE, "d3")]
    assert any(expected.format(rows=rows) in problem for problem in found)


def test_states_that_are_not_finite_are_named(index: Path):
    record = record_of(index, "d3")
    from kalm_cache.codec.codec import compress

    change_record(index, "d3", payload=compress(np.full((record.rows, record.width), np.nan, "<f2").tobytes()))
    assert (STORE, "d3", "its states are not finite") in problems(index)


def test_a_number_that_leads_to_another_passage_is_named(index: Path):
    number, other = record_of(index, "d3").number, record_of(index, "d4").number
    change(index, "numbers", number.to_bytes(8, "big"), b"d4")
    assert (STORE, "d3", f"its number {number} leads to 'd4'") in problems(index)
    change_record(index, "d4", number=number)
    assert (STORE, "d3", f"its number {number} leads to 'd4'") in problems(index)
    assert other != number


def test_a_second_number_of_a_passage_is_named(index: Path):
    change(index, "numbers", (50).to_bytes(8, "big"), b"d3")
    own = record_of(index, "d3").number
    assert (STORE, "d3", f"number 50 leads to it, its record says {own}") in problems(index)
    assert (STORE, None, "number 50 was given, but the next one to give is 12") in problems(index)


def test_a_record_that_is_gone_is_missed_by_its_text_its_number_and_the_counts(index: Path):
    number = record_of(index, "d3").number
    change(index, "records", b"d3", None)
    found = problems(index)
    assert (STORE, "d3", "a text without a record") in found
    assert (STORE, "d3", f"number {number} leads to it, and it has no record") in found
    assert any("the records add up to Counts(passages=11" in problem for _, _, problem in found)


def test_a_text_that_is_gone_is_missed(index: Path):
    change(index, "texts", b"d3", None)
    assert problems(index) == [(STORE, "d3", "its text is missing")]


def test_a_text_in_an_index_that_keeps_none_is_named(tmp_path: Path, mini_folder: Path, embedder_folder: Path):
    build(tmp_path / "index", settings_for(mini_folder, embedder_folder, store_text=False), TEXTS)
    change(tmp_path / "index", "texts", b"d3", pack_text(b"d3", TEXTS["d3"]))
    assert problems(tmp_path / "index") == [(STORE, "d3", "it has a text, in an index that keeps none")]


def test_keys_and_numbers_that_are_none_are_named(index: Path):
    change(index, "numbers", b"short", b"d3")
    change(index, "records", b"\xff\xfe", b"")
    found = problems(index)
    assert any(doc_id == "\ufffd\ufffd" and "0 bytes, fewer than its header" in problem for _, doc_id, problem in found)
    assert any("number b'short' has 5 bytes, not 8" in problem for _, _, problem in found)


def test_counts_that_the_manifest_has_wrong_are_named(index: Path):
    counts = open_current(index).manifest.counts
    seal_again(index, counts=replace(counts, tokens=counts.tokens + 1))
    ((file, doc_id, problem),) = problems(index)
    assert (file, doc_id) == (STORE, None)
    assert problem == f"the records add up to {counts}, the manifest says {replace(counts, tokens=counts.tokens + 1)}"
    seal_again(index, counts=Counts(13, 0, 0, 0, 0))
    assert {(DENSE, None, "holds 12 passages, expected 13"), (BM25, None, "holds 12 passages, expected 13")} < {
        *problems(index)
    }


def test_a_manifest_of_another_generation_is_named(index: Path):
    seal_again(index, generation="000007")
    assert problems(index) == [("manifest.json", None, "is that of generation 000007")]


def rewrite_dense(index: Path, numbers: list[int]) -> None:
    path = shard_of(index) / "first_stage" / "dense.faiss"
    dense = faiss.IndexIDMap2(faiss.IndexFlatIP(8))
    dense.add_with_ids(np.ones((len(numbers), 8), np.float32), np.array(numbers, np.int64))
    faiss.write_index(dense, str(path))
    seal_again(index)


def test_a_first_stage_of_other_passages_is_named(index: Path):
    rewrite_dense(index, [*range(11), 40])
    np.save(shard_of(index) / "first_stage" / "bm25" / "numbers.npy", np.array([*range(11), 10]))
    seal_again(index)
    problem = "its numbers are not those of the store, the first to differ: {}"
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
    assert {(file, doc_id) for file, doc_id, _ in problems(index)} >= {(STORE, None)}


# CURRENT


@pytest.mark.parametrize("content", [b"", b"000002\n", b"00000", b"000001\n\n", b"\xff\xfe", b"0000\x001\n", b"."])
def test_a_damaged_current_is_named(index: Path, content: bytes):
    (index / "CURRENT").write_bytes(content)
    report = verify_index(index)
    assert [(damage.file, damage.doc_id) for damage in report.damaged] == [("CURRENT", None)]


def test_a_missing_current_beside_a_generation_is_damage(index: Path):
    (index / "CURRENT").unlink()
    assert [damage.file for damage in verify_index(index).damaged] == ["CURRENT"]


def test_a_manifest_of_another_schema_is_damage(index: Path):
    path = index / "generations" / "000001" / "manifest.json"
    path.write_text(path.read_text().replace('"schema_version": 1', '"schema_version": 3'))
    (damage,) = verify_index(index).damaged
    assert damage.file == "manifest.json"
    assert "schema version 3, this version reads 1" in damage.problem


def test_a_manifest_that_was_laid_out_anew_is_damage(index: Path):
    path = index / "generations" / "000001" / "manifest.json"
    path.write_text(path.read_text().replace("\n  ", "\n   ", 1))
    assert verify_index(index).damaged == [Damage("manifest.json", None, "was changed after it was published")]


def test_a_folder_where_nothing_was_published_is_not_found(tmp_path: Path):
    with pytest.raises(IndexNotFoundError):
        verify_index(tmp_path)
    with pytest.raises(IndexNotFoundError):
        verify_index(tmp_path / "none")
