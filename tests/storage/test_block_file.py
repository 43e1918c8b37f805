"""Files of blocks: how large they are, and where blocks end."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from kalm_cache.errors import DamagedRecordError, StoreError
from kalm_cache.storage.block_file import BLOCK_BYTES, BlockFile, BlockWriter
from kalm_cache.storage.checksummed_block import Block, Kind, checksum
from kalm_cache.storage.lmdb_file import LmdbFile
from kalm_cache.storage.passage_store import STATES_FILE, PassageMeta
from kalm_cache.storage.store_writer import StoreWriter
from tests.stores import Stored, record, write_store

KIND = Kind(b"KLMX", 1, lambda key: f"thing {key!r}")
SIZES = [300, 512, 1330, 2320, 4080, 5160, 10_280, 20_500, 65_536]


def write(path: Path, entries: list[tuple[bytes, bytes]], **options: int) -> None:
    file = LmdbFile(path, ["things"], writable=True, lock=False)
    writer = BlockWriter(file, "things", KIND, **options)
    for key, payload in entries:
        writer.add(bytes(12), key, b"f", payload, checksum(KIND, bytes(12), key, b"f", payload))
    writer.finish()
    assert writer.entries == len(entries)
    file.close()


def blocks_of(path: Path) -> list[tuple[bytes, bytes]]:
    file = BlockFile(path, {"things": KIND}, tree=None)
    with file.reading("things") as reader:
        found = [(key, bytes(value)) for key, value in reader.values()]
    file.close()
    return found


def ids(count: int, chance: random.Random, kind: str) -> list[str]:
    """Distinct ids of 8 to 12 bytes, sorted: counted ones share most of their bytes, random ones next to none."""
    if kind == "counted":
        return sorted(f"doc-{i:06d}" for i in range(count))
    made: set[str] = set()
    while len(made) < count:
        made.add(f"{chance.getrandbits(48):012x}"[: chance.randint(8, 12)])
    return sorted(made)


def overhead(folder: Path, sizes: list[int], chance: random.Random, kind: str) -> float:
    """File bytes of states.lmdb through payload bytes."""
    names = ids(len(sizes), chance, kind)
    passages = zip(names, sizes, strict=True)
    with StoreWriter(folder) as writer:
        for i, (name, size) in enumerate(passages):
            writer.add(name.encode(), record(chance.randbytes(size)), PassageMeta(i, bytes(16)), b"")
        writer.finish(((i, name.encode()) for i, name in enumerate(names)), len(names))
    return (folder / STATES_FILE).stat().st_size / sum(sizes)


@pytest.mark.parametrize("kind", ["counted", "random"])
@pytest.mark.parametrize("size", SIZES)
def test_files_of_states_are_at_most_a_tenth_larger_than_their_payloads(tmp_path: Path, size: int, kind: str):
    count = max(100, (6 << 20) // size)
    assert 1 < overhead(tmp_path, [size] * count, random.Random(size), kind) <= 1.10


@pytest.mark.parametrize("kind", ["counted", "random"])
def test_files_of_states_of_mixed_sizes_are_at_most_a_tenth_larger_than_their_payloads(tmp_path: Path, kind: str):
    chance = random.Random(0)
    assert 1 < overhead(tmp_path, [chance.choice(SIZES) for _ in range(800)], chance, kind) <= 1.10
    sizes = [chance.randint(300, 1500) for _ in range(4000)]
    assert 1 < overhead(tmp_path, sizes, chance, kind) <= 1.10


@pytest.mark.parametrize("size", [40, 300, 5160, 20_500, 100_000, 300_000])
def test_blocks_end_less_than_a_page_before_or_less_than_an_entry_after_their_size(tmp_path: Path, size: int):
    count = 4 * BLOCK_BYTES // (size + 30)
    write(tmp_path / "f", [(b"%06d" % i, bytes(size)) for i in range(count)])
    lengths = [len(value) for _, value in blocks_of(tmp_path / "f")]
    assert len(lengths) >= 3
    slack = 5 * count // len(lengths)  # bytes that keys share, which are stored once
    assert all(BLOCK_BYTES - 4096 - slack <= length < BLOCK_BYTES + size + 30 for length in lengths[:-1])
    pages = sum(-(-(length + 16) // 4096) for length in lengths)
    assert (tmp_path / "f").stat().st_size <= 4096 * (pages + 8)


def test_a_block_ends_before_its_keys_pass_what_an_offset_can_say(tmp_path: Path):
    keys = [b"%0511d" % i for i in range(400)]
    write(tmp_path / "f", [(key, b"x") for key in keys])
    found = [Block(KIND, value) for _, value in blocks_of(tmp_path / "f")]
    assert [block.key(i) for block in found for i in range(len(block))] == keys
    assert len(found) == 4


def test_each_block_lies_under_its_first_key(tmp_path: Path):
    write(tmp_path / "f", [(b"%03d" % i, bytes(500)) for i in range(100)], block_bytes=4080)
    found = blocks_of(tmp_path / "f")
    assert [first for first, _ in found] == [Block(KIND, value).key(0) for _, value in found]


@pytest.mark.parametrize("block_bytes", [100, 4080, BLOCK_BYTES])
def test_every_key_is_found_and_every_other_is_not(tmp_path: Path, block_bytes: int):
    keys = [b"%04d" % (2 * i + 1) for i in range(300)]
    write(tmp_path / "f", [(key, key * 20) for key in keys], block_bytes=block_bytes)
    file = BlockFile(tmp_path / "f", {"things": KIND}, tree=None)
    with file.reading("things") as reader:
        for i in range(602):
            key = b"%04d" % i
            entry = reader.find(key)
            assert (entry is not None) == (key in keys)
            assert entry is None or (entry.key, bytes(entry.payload)) == (key, key * 20)
        assert [block.key(i) for block in reader.blocks() for i in range(len(block))] == keys
        assert [reader.find(key) for key in (b"", b"0", b"9" * 512)] == [None] * 3
    file.close()


def test_who_finds_nothing_learns_when_the_directory_is_damaged(tmp_path: Path):
    write(tmp_path / "f", [(b"key-%d" % i, b"payload") for i in range(9)])
    content = (tmp_path / "f").read_bytes()
    at = content.index(b"key-012345678") + len(b"key-0123")
    (tmp_path / "f").write_bytes(content[:at] + b"\x34" + content[at + 1 :].replace(b"\0", b"\0"))
    file = BlockFile(tmp_path / "f", {"things": KIND}, tree=None)
    with file.reading("things") as reader:
        assert reader.find(b"key-3") is not None
    file.close()
    (tmp_path / "f").write_bytes(content[:at] + b"\x39" + content[at + 1 :])  # key-4 became key-9
    file = BlockFile(tmp_path / "f", {"things": KIND}, tree=None)
    with file.reading("things") as reader, pytest.raises(DamagedRecordError, match="directory has a checksum mismatch"):
        reader.find(b"key-4")
    file.close()


def test_keys_that_do_not_rise_are_refused(tmp_path: Path):
    with pytest.raises(StoreError, match="is not behind the one before it"):
        write(tmp_path / "f", [(b"b", b""), (b"a", b"")], block_bytes=40)


def test_a_store_is_read_with_a_bounded_resident_set(tmp_path: Path):
    """Larger than what may stay in memory: nothing is cached but what the kernel keeps and may drop at any time."""
    passages = {f"d{i}": Stored(record(bytes(64_000)), PassageMeta(i, bytes(16))) for i in range(500)}
    write_store(tmp_path, passages)
    import resource

    from kalm_cache.storage.passage_store import PassageStore

    with PassageStore(tmp_path) as store, store.snapshot() as snapshot:
        for doc_id in passages:
            snapshot.records([doc_id])
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for _ in range(3):
            for doc_id in passages:
                snapshot.records([doc_id])
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 4096  # KiB
