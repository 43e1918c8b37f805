"""Verification finds and names every damage, and no damage ends it."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import faiss
import numpy as np
import pytest

from indexer.job import Encoders
from indexer.verify import Damage, verify_generation, verify_index
from kalm_cache import store_writer
from kalm_cache.block_file import BlockWriter
from kalm_cache.current import write_current
from kalm_cache.errors import IndexNotFoundError
from kalm_cache.generation import SCHEMA_VERSION, Counts, open_current
from kalm_cache.settings import Settings
from kalm_cache.store import NO_COMMON, SEAL_FILE, STATES_FILE, number_key, pack_text
from tests.indexes import TEXTS, build, seal_again, settings_for, shard_of
from tests.stores import Contents, change_contents, damage_record, damage_text, payload_of, read_contents

SHARD = "shards/00000"
STATES = "shards/00000/states.lmdb"
PASSAGES = "shards/00000/passages.lmdb"
SEAL = "shards/00000/store.json"
DENSE = "shards/00000/first_stage/dense.faiss"
BM25 = "shards/00000/first_stage/bm25"
FILES = [STATES, PASSAGES, SEAL, DENSE, "build.json", "manifest.json"]  # and those of the first stage


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory, settings: Settings, encoders: Encoders) -> Path:
    folder = tmp_path_factory.mktemp("clean") / "index"
    build(folder, settings, TEXTS, encoders=encoders)
    return folder


@pytest.fixture
def index(clean: Path, tmp_path: Path) -> Path:
    """An index of one's own, to be damaged."""
    return Path(shutil.copytree(clean, tmp_path / "index"))


def change(index: Path, apply: Callable[[Contents], object]) -> None:
    """Change the store behind the back of everything, every checksum right, and seal the generation again."""
    change_contents(shard_of(index), apply)
    seal_again(index)


def number_of(index: Path, doc_id: str) -> int:
    return read_contents(shard_of(index)).identity(doc_id).number


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
    assert {*files, "manifest.json"} > {*FILES}
    assert all(name in FILES or name.startswith(f"{SHARD}/first_stage/") for name in files)
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


@pytest.mark.parametrize("damage", [flip_middle, cut, Path.unlink])
def test_every_file_of_the_first_stage_that_was_flipped_cut_or_deleted_is_named(
    index: Path, damage: Callable[[Path], object]
):
    folder = index / "generations" / "000001"
    names = [name for name in open_current(index).manifest.files if name.startswith(BM25)]
    for name in names:
        whole = (folder / name).read_bytes()
        damage(folder / name)
        assert {file for file, _, _ in problems(index)} == {name}
        (folder / name).write_bytes(whole)
    assert len(names) > 3


@pytest.mark.parametrize("name", [STATES, PASSAGES, SEAL, DENSE, f"{BM25}/numbers.npy", "manifest.json"])
@pytest.mark.parametrize("damage", [cut_in_half, empty, lengthen, overwrite, make_folder])
def test_worse_damage_does_not_end_the_verification(index: Path, name: str, damage: Callable[[Path], object]):
    damage(index / "generations" / "000001" / name)
    assert {file for file, _, _ in problems(index)} == {name}


@pytest.mark.parametrize("name", [STATES, PASSAGES])
def test_damaged_pages_of_the_store_do_not_end_the_verification(index: Path, name: str):
    path = index / "generations" / "000001" / name
    content = path.read_bytes()
    for start in range(0, len(content), 4096 if len(content) < 20 * 4096 else 5 * 4096):
        spoiled = bytearray(content)
        spoiled[start : start + 64] = bytes(0xFF ^ byte for byte in spoiled[start : start + 64])  # the page's header
        path.write_bytes(spoiled)
        assert {file for file, _, _ in problems(index)} == {name}


@pytest.fixture
def blocks(tmp_path: Path, settings: Settings, encoders: Encoders, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An index whose store has a block of its own for every two or three passages."""
    monkeypatch.setattr(store_writer, "BlockWriter", functools.partial(BlockWriter, block_bytes=1024))
    build(tmp_path / "blocks", settings, TEXTS, encoders=encoders)
    return tmp_path / "blocks"


def test_after_a_damaged_block_the_others_are_checked_and_its_passages_are_named(blocks: Path):
    path = shard_of(blocks) / STATES_FILE
    content = path.read_bytes()
    starts = [at for at in range(len(content)) if content.startswith(b"KLMS", at)]
    assert len(starts) > 4
    damage_record(shard_of(blocks), "d9")
    content = path.read_bytes()
    path.write_bytes(content[: starts[1]] + b"none" + content[starts[1] + 4 :])
    found = problems(blocks)
    assert {file for file, _, _ in found} == {STATES}
    assert (STATES, "d9", "record 'd9': checksum mismatch; run kalm-cache verify") in found
    assert any("the block that begins with record" in problem for _, _, problem in found)
    named = {doc_id for _, doc_id, _ in found} - {None, "d9"}
    assert 1 <= len(named) < 6
    assert verify_index(blocks).checked["records"] == 11 - len(named)


def test_passages_behind_a_page_that_cannot_be_read_are_checked_too(blocks: Path):
    path = shard_of(blocks) / STATES_FILE
    d0 = payload_of(shard_of(blocks), "d0")
    damage_record(shard_of(blocks), "d9")
    content = bytearray(path.read_bytes())
    page = content.rfind(d0) // 4096 * 4096
    assert content[page + 10 : page + 12] == b"\x02\x00"  # a leaf page
    content[page + 10 : page + 12] = b"\xff\xff"
    path.write_bytes(content)
    found = problems(blocks)
    assert (STATES, "d9", "record 'd9': checksum mismatch; run kalm-cache verify") in found
    assert "d0" in {doc_id for _, doc_id, _ in found}
    assert verify_index(blocks).checked["records"] > 3


def test_all_damaged_files_are_named_at_once(index: Path):
    names = set(open_current(index).manifest.files)
    for name in names:
        flip_middle(index / "generations" / "000001" / name)
    assert {file for file, _, _ in problems(index)} == names


@pytest.mark.parametrize("name", ["extra", "shards/00000/working.lmdb", "shards/00001/states.lmdb"])
def test_a_file_that_the_manifest_does_not_name_is_named(index: Path, name: str):
    path = index / "generations" / "000001" / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"")
    assert problems(index) == [(name, None, "is not named by the manifest")]


def test_a_flipped_bit_in_a_record_names_its_passage_and_no_other(index: Path):
    damage_record(shard_of(index), "d5")
    assert problems(index) == [
        (STATES, None, "its SHA-256 is not that of its receipt"),
        (STATES, "d5", "record 'd5': checksum mismatch; run kalm-cache verify"),
    ]
    assert verify_index(index).checked["records"] == 11


def test_a_flipped_bit_in_a_text_names_its_passage_and_no_other(index: Path):
    damage_text(shard_of(index), "d1")
    assert problems(index) == [
        (PASSAGES, None, "its SHA-256 is not that of its receipt"),
        (PASSAGES, "d1", "passage 'd1': checksum mismatch; run kalm-cache verify"),
    ]
    assert verify_index(index).checked["texts"] == 11


@pytest.mark.parametrize("doc_id", ["d0", "d4", "d9"])
def test_a_flipped_bit_in_a_key_names_the_block_and_the_passage_that_lost_its_record(index: Path, doc_id: str):
    path = shard_of(index) / STATES_FILE
    content = path.read_bytes()
    keys = content.index(b"d" + b"".join(sorted(doc_id.encode()[1:] for doc_id in TEXTS)))
    at = keys + 1 + b"".join(sorted(one.encode()[1:] for one in TEXTS)).index(doc_id.encode()[1:])
    path.write_bytes(content[:at] + b"~" + content[at + 1 :])
    found = problems(index)
    assert [(file, named) for file, named, _ in found] == [(STATES, None), (STATES, None), (STATES, doc_id)]
    assert "directory has a checksum mismatch" in found[1][2]


def test_a_flipped_byte_of_the_seal_is_named(index: Path):
    path = shard_of(index) / SEAL_FILE
    path.write_bytes(path.read_bytes().replace(b'"passages": 12', b'"passages": 13'))
    assert [problem for file, _, problem in problems(index) if file == SEAL] == [
        "its SHA-256 is not that of its receipt",
        f"{path}: checksum mismatch; run kalm-cache verify",
    ]


def test_verification_does_not_change_the_index(index: Path):
    flip_middle(index / "generations/000001" / STATES)
    before = {path: path.read_bytes() for path in index.rglob("*") if path.is_file()}
    verify_index(index)
    assert {path: path.read_bytes() for path in index.rglob("*") if path.is_file()} == before


# Files with right receipts and wrong content


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"codec": 6}, "its codec has number 6, the manifest says fp16"),
        ({"codec": 5 | 0x80}, "its codec has number 133, the manifest says fp16"),
        ({"codec": 77}, "its codec has number 77, the manifest says fp16"),
        ({"ratio": 8}, "its pooling ratio is 8, the manifest says 4"),
        ({"ratio": 0}, "its pooling ratio is 0, the manifest says 4"),
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
        contents.set_identity("d3", contents.identity("d3")._replace(content_hash=bytes(16)))

    change(index, spoil)
    assert problems(index) == [(PASSAGES, "d3", "its text is not the one that its states were made from")]


def test_a_number_that_leads_to_another_passage_is_named(index: Path):
    number, other = number_of(index, "d3"), number_of(index, "d4")
    change(index, lambda contents: contents.numbers.update({number_key(number): (NO_COMMON, b"", b"d4")}))
    assert problems(index) == [(PASSAGES, "d4", f"number {number} leads to it, its own is {other}")]


def test_a_number_of_its_own_that_is_not_there_is_named(index: Path):
    number = number_of(index, "d3")

    def spoil(contents: Contents) -> None:
        del contents.numbers[number_key(number)]

    change(index, spoil)
    assert (PASSAGES, "d3", f"its number {number} is not there") in problems(index)


def test_a_second_number_of_a_passage_is_named(index: Path):
    change(index, lambda contents: contents.numbers.update({number_key(50): (NO_COMMON, b"", b"d3")}))
    own = number_of(index, "d3")
    assert (PASSAGES, "d3", f"number 50 leads to it, its own is {own}") in problems(index)
    assert (SEAL, None, "number 50 was given, but the next one to give is 12") in problems(index)


@pytest.mark.parametrize(("database", "file"), [("blocks", STATES), ("passages", PASSAGES)])
def test_a_record_or_passage_that_is_gone_is_missed_by_its_counterpart(index: Path, database: str, file: str):
    change(index, lambda contents: getattr(contents, database).pop(b"d3"))
    found = problems(index)
    what = "its record is not there, and the passage is" if file == STATES else "it is not there, and its record is"
    assert (file, "d3", what) in found
    if file == PASSAGES:
        assert (PASSAGES, "d3", f"number {number_of_lost(index)} leads to it, and it is not there") in found


def number_of_lost(index: Path) -> int:
    contents = read_contents(shard_of(index))
    (key,) = [key for key, (_, _, doc_id) in contents.numbers.items() if doc_id == b"d3"]
    return int.from_bytes(key, "big")


def test_a_passage_that_is_gone_from_everywhere_is_missed_by_the_counts(index: Path):
    def spoil(contents: Contents) -> None:
        del contents.numbers[number_key(contents.identity("d3").number)]
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
        contents.numbers[b"short"] = (NO_COMMON, b"", b"d3")
        contents.numbers[number_key(50)] = (NO_COMMON, b"", b"\xff\xfe")

    change(index, spoil)
    found = [problem for _, _, problem in problems(index)]
    assert "number b'short' has 5 bytes, not 8; run kalm-cache verify" in found
    assert "id b'\\xff\\xfe' is not UTF-8; run kalm-cache verify" in found


def test_counts_that_the_manifest_has_wrong_are_named(index: Path):
    counts = open_current(index).manifest.counts
    seal_again(index, counts=replace(counts, tokens=counts.tokens + 1))
    said = str(replace(counts, tokens=counts.tokens + 1))
    assert any(str(counts) in problem and said in problem for _, _, problem in problems(index))
    (shard,) = open_current(index).manifest.shards
    seal_again(index, shards=[replace(shard, counts=Counts(13, 0, 0, 0, 0))])
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
    assert {(file, doc_id) for file, doc_id, _ in problems(index)} >= {(PASSAGES, None)}


# CURRENT


@pytest.mark.parametrize("content", [b"", b"000002\n", b"00000", b"000001\n\n", b"\xff\xfe", b"0000\x001\n", b"."])
def test_a_damaged_current_is_named(index: Path, content: bytes):
    (index / "CURRENT").write_bytes(content)
    report = verify_index(index)
    assert [(damage.file, damage.doc_id) for damage in report.damaged] == [("CURRENT", None)]


def test_a_current_that_names_no_generation_is_named(index: Path):
    write_current(index, "000002")
    assert verify_index(index).damaged == [Damage("CURRENT", None, "names '000002', which is not one of ['000001']")]


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
    assert verify_index(index).damaged == [Damage("manifest.json", None, "was changed after it was published")]


def test_a_folder_where_nothing_was_published_is_not_found(tmp_path: Path):
    with pytest.raises(IndexNotFoundError):
        verify_index(tmp_path)
    with pytest.raises(IndexNotFoundError):
        verify_index(tmp_path / "none")
