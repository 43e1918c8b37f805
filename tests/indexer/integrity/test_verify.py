"""Verification finds and names every damaged file, block, record and text, and no damage ends it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from indexer.build.index_job import Encoders
from indexer.integrity.verify import verify_generation, verify_index
from kalm_cache.generations.generation import open_current
from kalm_cache.settings import Settings
from kalm_cache.storage import store_writer
from kalm_cache.storage.block_file import BlockWriter
from kalm_cache.storage.passage_store import SEAL_FILE, STATES_FILE
from tests.indexer.verified import BM25, CONTENTS, DENSE, PASSAGES, SEAL, STATES, problems
from tests.indexes import TEXTS, build, settings_for, shard_of
from tests.stores import damage_record, damage_text, payload_of

BASE_SEGMENT = "shards/00000"
FILES = [STATES, PASSAGES, SEAL, CONTENTS, DENSE, "build.json", "manifest.json"]  # and those of the first stage


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
    assert all(name in FILES or name.startswith(f"{BASE_SEGMENT}/first_stage/") for name in files)
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
        valid = (folder / name).read_bytes()
        damage(folder / name)
        assert {file for file, _, _ in problems(index)} == {name}
        (folder / name).write_bytes(valid)
    assert len(names) > 3


@pytest.mark.parametrize("name", [STATES, PASSAGES, SEAL, CONTENTS, DENSE, f"{BM25}/numbers.npy", "manifest.json"])
@pytest.mark.parametrize("damage", [cut_in_half, empty, lengthen, overwrite, make_folder])
def test_worse_damage_does_not_end_the_verification(index: Path, name: str, damage: Callable[[Path], object]):
    damage(index / "generations" / "000001" / name)
    assert {file for file, _, _ in problems(index)} == {name}


@pytest.mark.parametrize("name", [STATES, PASSAGES])
def test_damaged_pages_of_the_store_do_not_end_the_verification(index: Path, name: str):
    path = index / "generations" / "000001" / name
    content = path.read_bytes()
    starts = range(0, len(content), 4096 if len(content) < 20 * 4096 else 5 * 4096)
    assert len(starts) > 5
    for start in starts:
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
