"""Stores that are damaged, foreign or cut: what is refused, and what is answered with an error in its place."""

from __future__ import annotations

import json
import os
import random
from collections import Counter
from pathlib import Path

import pytest

from kalm_cache.errors import DamagedRecordError, StoreError
from kalm_cache.storage.content_lookup import CONTENTS_FILE
from kalm_cache.storage.passage_store import (
    PASSAGES_FILE,
    SEAL_FILE,
    STATES_FILE,
    PassageMeta,
    PassageStore,
    key_of,
    pack_text,
    read_seal,
    unpack_text,
)
from kalm_cache.storage.store_writer import StoreWriter
from tests.storage.three_passages import HASHES, PASSAGES, records
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


def change(folder: Path, **entries: bytes | None) -> None:
    """Remove records (`record_a=None`) and put numbers (`number_9=b"a"`) behind the store's back."""

    def apply(contents: Contents) -> None:
        for name, value in entries.items():
            what, name = name.split("_")
            if what == "number":
                contents.ordinals[int(name).to_bytes(8, "big")] = (bytes(12), b"", value or b"")
            else:
                del contents.blocks[name.encode()]

    change_contents(folder, apply)


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
    write_store(tmp_path, {"an-id": Stored(record(), PassageMeta(7, bytes(16)))}, 8)
    content = (tmp_path / PASSAGES_FILE).read_bytes()
    at = content.index(b"KLMN")
    at = content.index(b"an-id", at)
    (tmp_path / PASSAGES_FILE).write_bytes(content[:at] + b"bn-id" + content[at + 5 :])
    with PassageStore(tmp_path) as store:
        with pytest.raises(DamagedRecordError, match="ordinal 7: checksum mismatch; run kalm-cache verify"):
            store.doc_ids([7])
        with pytest.raises(DamagedRecordError, match="ordinal 7"):
            list(store.ordinals())


def test_an_id_that_is_no_utf8_and_a_number_that_is_none_are_damage(folder: Path):
    change(folder, number_9=b"\xff")
    with PassageStore(folder) as store, pytest.raises(DamagedRecordError, match=r"id b'\\xff' is not UTF-8"):
        store.doc_ids([9])


def test_flipped_bits_of_a_store_are_refused_or_answered_with_what_was_stored_or_named_damage(tmp_path: Path):
    write_store(tmp_path, PASSAGES)
    valid = {name: (tmp_path / name).read_bytes() for name in (STATES_FILE, PASSAGES_FILE, SEAL_FILE)}
    used = {name: [i for i, byte in enumerate(content) if byte] for name, content in valid.items()}  # few zeros are
    chance, counted = random.Random(0), Counter[str]()
    for _ in range(1000):
        name = chance.choice(list(valid))
        at = chance.choice(used[name])
        with (tmp_path / name).open("r+b", buffering=0) as file:  # a file that is truncated is written to disk at once
            os.pwrite(file.fileno(), bytes([valid[name][at] ^ 1 << chance.randrange(8)]), at)
            counted[_read_everything(tmp_path)] += 1
            os.pwrite(file.fileno(), valid[name][at : at + 1], at)
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
    names = [*(repr(doc_id) for doc_id in PASSAGES)] * 2 + [f"ordinal {n}" for n in range(3)]
    right = [*(one.record for one in PASSAGES.values()), *(one.text for one in PASSAGES.values()), *PASSAGES]
    for one, stored, name in zip(found, right, names, strict=True):
        assert one == stored or name in str(one)
    return "harmless" if found == right else "damaged"


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
        valid = (folder / name).read_bytes()
        (folder / name).write_bytes(valid[:-4096])
        with pytest.raises(
            StoreError, match=rf"{name}: not the store that was sealed; run kalm-cache verify: it was cut"
        ):
            PassageStore(folder)
        (folder / name).write_bytes(valid)


def test_a_file_of_another_store_is_refused(folder: Path, tmp_path: Path):
    write_store(tmp_path / "other", PASSAGES | {"c": Stored(record(), PassageMeta(3, HASHES["c"]))})
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
        writer.add(b"old", record(), PassageMeta(0, bytes(16)), b"")
    with pytest.raises(StoreError, match=r"store\.json: cannot be read"):
        PassageStore(tmp_path)
    write_store(tmp_path, PASSAGES)
    assert sorted(path.name for path in tmp_path.iterdir()) == [CONTENTS_FILE, PASSAGES_FILE, STATES_FILE, SEAL_FILE]
    assert set(read_contents(tmp_path).blocks) == {key_of(doc_id) for doc_id in PASSAGES}


def test_keys_that_do_not_rise_are_refused(tmp_path: Path):
    with StoreWriter(tmp_path) as writer, pytest.raises(StoreError, match="is not behind the one before it"):
        for key in (b"b", b"b", b"a"):
            writer.add(key, record(bytes(300_000)), PassageMeta(0, bytes(16)), b"")
        writer.finish([], 0)


def test_a_full_disk_is_a_store_error_and_seals_nothing(tmp_path: Path):
    import resource
    import signal

    child = os.fork()
    if child == 0:  # the limit on file sizes cannot be lifted again, so that it is set in a child
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
        try:
            write_store(
                tmp_path, {f"d{i}": Stored(record(bytes(100_000)), PassageMeta(i, bytes(16))) for i in range(50)}
            )
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
