"""Sealed stores over real LMDB files."""

from __future__ import annotations

import json
import os
import random
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kalm_cache import lmdb_file
from kalm_cache.errors import DamagedRecordError, StoreError
from kalm_cache.record import Record
from kalm_cache.store import (
    PASSAGES_FILE,
    SEAL_FILE,
    STATES_FILE,
    Identity,
    PassageStore,
    key_of,
    pack_text,
    read_seal,
    unpack_text,
)
from kalm_cache.store_writer import StoreWriter
from tests.stores import (
    Contents,
    Stored,
    change_contents,
    damage_record,
    damage_text,
    flip_bit_of,
    read_contents,
    record,
    write_store,
)

HASHES = {doc_id: doc_id.encode() * 16 for doc_id in "abc"}
PASSAGES = {
    "b": Stored(record(b"states of b"), Identity(0, HASHES["b"]), "text b"),
    "ü": Stored(record(b"states of u", tokens=4, truncated=True), Identity(1, bytes(16)), ""),
    "a": Stored(record(b"states of a"), Identity(2, HASHES["a"]), "text a"),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A sealed store of three passages."""
    write_store(tmp_path / "shard", PASSAGES)
    return tmp_path / "shard"


def records(store: PassageStore, *doc_ids: str) -> list[object]:
    """Records with their payloads copied, and errors as their messages."""
    with store.snapshot() as snapshot:
        found = snapshot.records(doc_ids)
        return [one._replace(payload=bytes(one.payload)) if isinstance(one, Record) else _shown(one) for one in found]


def _shown(found: object) -> object:
    return str(found) if isinstance(found, DamagedRecordError) else found


def change(folder: Path, **entries: bytes | None) -> None:
    """Remove records (`record_a=None`) and put numbers (`number_9=b"a"`) behind the store's back."""

    def apply(contents: Contents) -> None:
        for name, value in entries.items():
            what, name = name.split("_")
            if what == "number":
                contents.numbers[int(name).to_bytes(8, "big")] = (bytes(12), b"", value or b"")
            else:
                del contents.blocks[name.encode()]

    change_contents(folder, apply)


def test_what_was_written_is_read_back_in_the_order_asked_for(folder: Path):
    with PassageStore(folder) as store:
        assert len(store) == 3
        assert records(store, "a", "ü", "a") == [PASSAGES["a"].record, PASSAGES["ü"].record, PASSAGES["a"].record]
        assert store.identities(["ü", "a"]) == [Identity(1, bytes(16)), Identity(2, HASHES["a"])]
        assert store.texts(["ü", "a"]) == ["", "text a"]
        assert store.doc_ids([2, 0, 2]) == ["a", "b", "a"]
        assert list(store.numbers()) == [(0, "b"), (1, "ü"), (2, "a")]
        assert list(store.keys()) == [b"a", b"b", "ü".encode()]
        assert store.next_number() == 3


def test_payloads_are_views_of_the_map(folder: Path):
    with PassageStore(folder) as store, store.snapshot() as snapshot:
        (found,) = snapshot.records(["a"])
        assert isinstance(found, Record)
        assert isinstance(found.payload, memoryview)
        assert found.payload.readonly


def test_ids_that_are_not_there_have_no_record_and_no_text(folder: Path):
    unknown = ["", "c", "0", "zz", "aa", "x" * 600, "\udcff"]  # LMDB itself raises for an empty key
    with PassageStore(folder) as store:
        assert records(store, *unknown) == [None] * len(unknown)
        assert store.texts(unknown) == [None] * len(unknown)
        assert store.identities(unknown) == [None] * len(unknown)


def test_a_number_that_is_not_there_is_damage_and_does_not_hide_the_others(folder: Path):
    with PassageStore(folder) as store:
        with pytest.raises(DamagedRecordError, match=r"passages\.lmdb: number 7 is not there; run kalm-cache verify"):
            store.doc_ids([0, 7])
        first, second = store.find_doc_ids([0, 7])
        assert (first, str(second)) == ("b", f"{folder / PASSAGES_FILE}: number 7 is not there; run kalm-cache verify")


def test_an_empty_store_has_nothing(tmp_path: Path):
    write_store(tmp_path, {})
    with PassageStore(tmp_path) as store:
        assert (len(store), store.next_number(), list(store.keys()), list(store.numbers())) == (0, 0, [], [])
        assert records(store, "a") == [None]
        assert store.texts(["a"]) == [None]


def test_without_texts_no_text_is_kept(tmp_path: Path):
    write_store(tmp_path, {"a": Stored(record(), Identity(0, bytes(16)), None)})
    with PassageStore(tmp_path) as store:
        assert store.texts(["a"]) == [None]


def test_numbers_beyond_32_bits_sort_and_lead_back(tmp_path: Path):
    numbers = [0, 255, 256, 2**31, 2**32, 2**62]
    write_store(tmp_path, {f"d{n}": Stored(record(), Identity(n, bytes(16))) for n in numbers}, 2**62 + 1)
    with PassageStore(tmp_path) as store:
        assert [number for number, _ in store.numbers()] == numbers
        assert store.doc_ids([2**32]) == [f"d{2**32}"]
        assert store.next_number() == 2**62 + 1


def test_records_of_other_shapes_stand_in_blocks_of_their_own(tmp_path: Path):
    stored = {
        f"d{i}": Stored(record(bytes([i]), width=8 + i % 2, codec=i % 3), Identity(i, b"h" * 16)) for i in range(9)
    }
    write_store(tmp_path, stored)
    with PassageStore(tmp_path) as store:
        assert records(store, *stored) == [one.record for one in stored.values()]


def test_a_store_larger_than_its_first_map_and_many_blocks_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(lmdb_file, "INITIAL_MAP_BYTES", 64 << 10)
    stored = {
        f"d{n}": Stored(record(bytes([n % 256]) * 10_000), Identity(n, bytes(16)), f"text {n}") for n in range(300)
    }
    write_store(tmp_path, stored)
    with PassageStore(tmp_path) as store:
        assert records(store, *stored) == [one.record for one in stored.values()]
        assert store.texts(list(stored)) == [one.text for one in stored.values()]
        assert list(store.keys()) == sorted(map(str.encode, stored))


def test_reading_leaves_no_lock_file_and_does_not_change_the_files(folder: Path):
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}
    assert sorted(path.name for path in before) == [PASSAGES_FILE, STATES_FILE, SEAL_FILE]
    for path in before:
        path.chmod(0o444)
    with PassageStore(folder) as store:
        records(store, "a")
        list(store.numbers())
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()} == before


def test_views_outlive_the_store(folder: Path):
    store = PassageStore(folder)
    with store.snapshot() as snapshot:
        (found,) = snapshot.records(["a"])
    store.close()
    assert isinstance(found, Record)
    assert bytes(found.payload) == b"states of a"


def test_a_forked_child_reads_what_its_parent_has_open(folder: Path):
    with PassageStore(folder) as store:
        child = os.fork()
        if child == 0:
            with PassageStore(folder) as own:
                os._exit(0 if own.texts(["a"]) == store.texts(["a"]) == ["text a"] else 1)
        assert os.waitpid(child, 0)[1] == 0


def test_many_threads_open_read_and_close_one_store(folder: Path):
    def read_often(_: int) -> list[object]:
        seen: list[object] = []
        for _ in range(20):
            with PassageStore(folder) as store:
                seen += records(store, "b")
        return seen

    with ThreadPoolExecutor(8) as pool:
        assert [*pool.map(read_often, range(8))] == [[PASSAGES["b"].record] * 20] * 8


def test_a_store_that_takes_the_place_of_an_open_one_is_not_taken_for_it(folder: Path, tmp_path: Path):
    with PassageStore(folder) as store:
        folder.rename(tmp_path / "moved")
        write_store(folder, {"new": Stored(record(b"new"), Identity(0, bytes(16)))})
        assert records(store, "a", "new") == [PASSAGES["a"].record, None]
        with PassageStore(folder) as newer:
            assert records(newer, "new") == [record(b"new")]


def test_a_store_opens_twice_in_one_process_and_closing_one_leaves_the_other(folder: Path):
    first, second = PassageStore(folder), PassageStore(folder)
    first.close()
    first.close()  # twice is once
    assert second.texts(["a"]) == ["text a"]
    second.close()
    with pytest.raises(StoreError, match=r"passages\.lmdb: was closed"):
        second.texts(["a"])


def test_the_same_passages_make_the_same_seal_and_the_same_contents(tmp_path: Path, folder: Path):
    write_store(tmp_path / "again", PASSAGES)
    assert read_contents(tmp_path / "again") == read_contents(folder)
    assert (tmp_path / "again" / STATES_FILE).read_bytes() == (folder / STATES_FILE).read_bytes()


# Damage


def test_a_damaged_record_is_an_error_in_its_place(folder: Path):
    damage_record(folder, "b")
    with PassageStore(folder) as store:
        damage = "record 'b': checksum mismatch; run kalm-cache verify"
        assert records(store, "a", "b", "c", "ü") == [PASSAGES["a"].record, damage, None, PASSAGES["ü"].record]


def test_a_record_that_is_gone_while_its_passage_is_there_is_damage_and_not_missing(folder: Path):
    change(folder, record_b=None)
    with PassageStore(folder) as store:
        assert records(store, "b", "c") == [
            "record 'b': it is not there, and the passage is; run kalm-cache verify",
            None,
        ]


def test_a_block_that_is_none_is_damage_of_the_passages_that_would_be_in_it_and_of_no_others(folder: Path):
    flip_bit_of(folder / STATES_FILE, b"KLMS")
    with PassageStore(folder) as store:
        found = records(store, "a", "nobody")
        assert str(found[0]).startswith("record 'a': block format b'KL")
        assert found[1] is None


def test_a_damaged_text_names_its_passage_and_leaves_the_others(folder: Path):
    damage_text(folder, "a")
    with PassageStore(folder) as store:
        with pytest.raises(DamagedRecordError, match="passage 'a': checksum mismatch; run kalm-cache verify"):
            store.texts(["b", "a"])
        found = store.find_texts(["b", "a"])
        assert (found[0], str(found[1])) == ("text b", "passage 'a': checksum mismatch; run kalm-cache verify")
        assert records(store, "a") == [PASSAGES["a"].record]


def test_a_damaged_number_is_named(tmp_path: Path):
    write_store(tmp_path, {"an-id": Stored(record(), Identity(7, bytes(16)))}, 8)
    content = (tmp_path / PASSAGES_FILE).read_bytes()
    at = content.index(b"KLMN")
    at = content.index(b"an-id", at)
    (tmp_path / PASSAGES_FILE).write_bytes(content[:at] + b"bn-id" + content[at + 5 :])
    with PassageStore(tmp_path) as store:
        with pytest.raises(DamagedRecordError, match="number 7: checksum mismatch; run kalm-cache verify"):
            store.doc_ids([7])
        with pytest.raises(DamagedRecordError, match="number 7"):
            list(store.numbers())


def test_an_id_that_is_no_utf8_and_a_number_that_is_none_are_damage(folder: Path):
    change(folder, number_9=b"\xff")
    with PassageStore(folder) as store, pytest.raises(DamagedRecordError, match=r"id b'\\xff' is not UTF-8"):
        store.doc_ids([9])


def test_flipped_bits_of_a_store_are_refused_or_answered_with_what_was_stored_or_named_damage(tmp_path: Path):
    write_store(tmp_path, PASSAGES)
    whole = {name: (tmp_path / name).read_bytes() for name in (STATES_FILE, PASSAGES_FILE, SEAL_FILE)}
    chance, counted = random.Random(0), Counter[str]()
    for _ in range(1000):
        name = chance.choice(list(whole))
        at = chance.choice([i for i, byte in enumerate(whole[name]) if byte])  # zeros are mostly unused space
        spoiled = bytearray(whole[name])
        spoiled[at] ^= 1 << chance.randrange(8)
        (tmp_path / name).write_bytes(spoiled)
        counted[_read_everything(tmp_path)] += 1
        (tmp_path / name).write_bytes(whole[name])
    assert set(counted) == {"refused", "damaged", "harmless"}
    assert min(counted["refused"], counted["damaged"]) > 100


def _read_everything(folder: Path) -> str:
    """How a reader fares. Fails when it gets anything that was not stored, and no error that says whose it was."""
    try:
        with PassageStore(folder) as store:
            found = [*records(store, *PASSAGES), *store.find_texts(list(PASSAGES)), *store.find_doc_ids([0, 1, 2])]
            (nobody,) = records(store, "nobody")
    except StoreError:
        return "refused"
    assert nobody is None or "'nobody'" in str(nobody)
    names = [*(repr(doc_id) for doc_id in PASSAGES)] * 2 + [f"number {n}" for n in range(3)]
    right = [*(one.record for one in PASSAGES.values()), *(one.text for one in PASSAGES.values()), *PASSAGES]
    for one, stored, name in zip(found, right, names, strict=True):
        assert one == stored or name in str(one)
    return "harmless" if found == right else "damaged"


# Opening and sealing


@pytest.mark.parametrize("name", [STATES_FILE, PASSAGES_FILE, SEAL_FILE])
@pytest.mark.parametrize("content", [None, b"", b"garbage" * 1000, bytes(8192)])
def test_a_missing_or_foreign_file_is_a_store_error_with_its_name(folder: Path, name: str, content: bytes | None):
    path = folder / name
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(StoreError, match=f"{name}: (cannot be|not the store)"):
        PassageStore(folder)
    assert path.exists() == (content is not None)


def test_files_that_were_cut_are_refused(folder: Path):
    for name in (STATES_FILE, PASSAGES_FILE):
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[:-4096])
        with pytest.raises(
            StoreError, match=rf"{name}: not the store that was sealed; run kalm-cache verify: it was cut"
        ):
            PassageStore(folder)
        (folder / name).write_bytes(whole)


def test_a_file_of_another_store_is_refused(folder: Path, tmp_path: Path):
    write_store(tmp_path / "other", PASSAGES | {"c": Stored(record(), Identity(3, HASHES["c"]))})
    (folder / STATES_FILE).write_bytes((tmp_path / "other" / STATES_FILE).read_bytes())
    with pytest.raises(StoreError, match=r"states\.lmdb: not the store that was sealed"):
        PassageStore(folder)


def test_a_failed_open_leaves_nothing_open(folder: Path):
    (folder / PASSAGES_FILE).rename(folder / "elsewhere")
    with pytest.raises(StoreError):
        PassageStore(folder)
    (folder / "elsewhere").rename(folder / PASSAGES_FILE)
    with PassageStore(folder) as store:
        assert len(store) == 3


def test_another_format_is_refused_with_both_sides_and_the_way_out(folder: Path):
    seal = json.loads((folder / SEAL_FILE).read_text())
    (folder / SEAL_FILE).write_text(json.dumps(seal | {"format": 9}))
    with pytest.raises(StoreError, match=r"store\.json: store format 9, this version reads 2; re-index"):
        PassageStore(folder)


def test_a_seal_that_was_changed_is_refused(folder: Path):
    seal = json.loads((folder / SEAL_FILE).read_text())
    (folder / SEAL_FILE).write_text(json.dumps(seal | {"next_number": 0}))
    with pytest.raises(StoreError, match=r"store\.json: checksum mismatch"):
        read_seal(folder)


def test_without_its_last_step_nothing_is_sealed_and_the_next_attempt_starts_over(tmp_path: Path):
    with StoreWriter(tmp_path) as writer:
        writer.add(b"old", record(), Identity(0, bytes(16)), b"")
    with pytest.raises(StoreError, match=r"store\.json: cannot be read"):
        PassageStore(tmp_path)
    write_store(tmp_path, PASSAGES)
    assert sorted(path.name for path in tmp_path.iterdir()) == [PASSAGES_FILE, STATES_FILE, SEAL_FILE]
    assert set(read_contents(tmp_path).blocks) == {key_of(doc_id) for doc_id in PASSAGES}


def test_keys_that_do_not_rise_are_refused(tmp_path: Path):
    with StoreWriter(tmp_path) as writer, pytest.raises(StoreError, match="is not behind the one before it"):
        for key in (b"b", b"b", b"a"):
            writer.add(key, record(bytes(300_000)), Identity(0, bytes(16)), b"")
        writer.finish([], 0)


def test_a_full_disk_is_a_store_error_and_seals_nothing(tmp_path: Path):
    import resource
    import signal

    child = os.fork()
    if child == 0:  # the limit on file sizes cannot be lifted again, so that it is set in a child
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
        try:
            write_store(tmp_path, {f"d{i}": Stored(record(bytes(100_000)), Identity(i, bytes(16))) for i in range(50)})
        except StoreError as exc:
            os._exit(0 if "cannot be written" in str(exc) and not (tmp_path / SEAL_FILE).exists() else 2)
        os._exit(1)
    assert os.waitpid(child, 0)[1] == 0


def test_texts_are_zstd_frames():
    packed = pack_text("words " * 1000)
    assert len(packed) < 100
    assert unpack_text(packed) == "words " * 1000
    with pytest.raises(DamagedRecordError, match="a text does not decompress"):
        unpack_text(b"rubbish")


def test_keys_are_the_utf8_of_the_id():
    assert key_of("doc-ü") == b"doc-\xc3\xbc"
