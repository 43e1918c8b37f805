"""One sealed segment on disk: LMDB writes it, and its pages are read directly. Knows bytes, not tensors.

LMDB writes, as its B+ tree takes data sets of any size and is safe to write. It does not read: it trusts its pages, so
that one flipped bit may end the process, and py-lmdb touches all 64 pages of a block for a record that lies in 4. A
sealed file never changes, so that no transactions are needed either: lmdb_pages.py finds the values, BlockFile maps
them. Checked with LMDB 0.9.36 (py-lmdb 3.0.0), and by tests/storage/test_lmdb_pages.py with whatever is installed.

    states.lmdb    blocks    doc id -> record (see record.py)
    passages.lmdb  passages  doc id -> ordinal i64, content hash 16 B; the text as a zstd frame, empty: none is kept
                   numbers   ordinal, big-endian -> doc id
    contents.bin   content hash -> ordinal (content_lookup.py); segments of earlier versions have none
    store.json     counts, the next ordinal to give, and what the pages of both files hash to (see lmdb_pages.py)

Everything is an entry of a block, where its checksum is verified (checksummed_block.py). The two files hold the same
ids: one that states.lmdb lacks is damage when passages.lmdb has it, never a passage that is not there.
"""

from __future__ import annotations

import resource
import struct
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

import zstandard

from kalm_cache.errors import DamagedRecordError, StoreError
from kalm_cache.foreign_files import STRICT, Count, checked_fields, read_json_object
from kalm_cache.process.system import refused
from kalm_cache.storage.block_file import BlockFile, BlockReader
from kalm_cache.storage.checked_json import pack_checked, unpack_checked
from kalm_cache.storage.checksummed_block import COMMON_BYTES, Entry, Kind
from kalm_cache.storage.content_lookup import ContentLookup
from kalm_cache.storage.record import STATES, Record, unpack_record

STORE_FORMAT = 2
STATES_FILE, PASSAGES_FILE, SEAL_FILE = "states.lmdb", "passages.lmdb", "store.json"
NO_COMMON = bytes(COMMON_BYTES)
MAX_TEXT_BYTES = 1 << 30
_META = struct.Struct("<q16s")
_ORDINAL = struct.Struct(">q")
_T = TypeVar("_T")
_of_thread = threading.local()


def _show_ordinal(key: bytes) -> str:
    return f"ordinal {int.from_bytes(key, 'big')}"


PASSAGES = Kind(b"KLMP", _META.size, lambda key: f"passage {key.decode('utf-8', 'replace')!r}")
ORDINALS = Kind(b"KLMN", 0, _show_ordinal)
STATES_DATABASES = {"blocks": STATES}
PASSAGES_DATABASES = {"passages": PASSAGES, "numbers": ORDINALS}


@dataclass(frozen=True, slots=True)
class Seal:
    """What a finished segment says of itself. `trees`: file name -> `Tree.digest`."""

    passages: Count
    next_ordinal: Count
    trees: dict[str, str]
    format: int = STORE_FORMAT
    __pydantic_config__ = STRICT

    def to_json(self) -> bytes:
        """The seal file's content: every field, and a checksum over them."""
        return pack_checked(asdict(self))


class PassageMeta(NamedTuple):
    """A passage beside its states: its int64 id in the first stage, and 16 bytes that identify its text."""

    ordinal: int
    content_hash: bytes

    def pack(self) -> bytes:
        """As the fields of an entry of passages.lmdb."""
        return _META.pack(*self)


class PassageStore:
    """A sealed segment, read-only; a context manager. Any number of them may read one folder at the same time."""

    def __init__(self, folder: Path) -> None:
        """Open a segment's folder. Raises `StoreError` when a file is missing, of another format, or damaged."""
        self.folder = folder
        self.seal = read_seal(folder)
        trees = self.seal.trees
        self._contents = ContentLookup(folder)
        self._states = BlockFile(folder / STATES_FILE, STATES_DATABASES, trees[STATES_FILE])
        try:
            self._passages = BlockFile(folder / PASSAGES_FILE, PASSAGES_DATABASES, trees[PASSAGES_FILE])
        except StoreError:
            self._states.close()
            raise
        self._closed = False

    def __enter__(self) -> PassageStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave the files; the store is unusable after it. Closing twice does nothing."""
        if not self._closed:
            self._closed = True
            self._states.close()
            self._passages.close()

    def __len__(self) -> int:
        return self.seal.passages

    def next_ordinal(self) -> int:
        """The ordinal that the next new passage gets."""
        return self.seal.next_ordinal

    @contextmanager
    def snapshot(self) -> Iterator[Snapshot]:
        """Records in place: their payloads are views of the map."""
        with self._states.reading("blocks") as states:
            yield Snapshot(self, states)

    def metas(self, doc_ids: Sequence[str]) -> list[PassageMeta | DamagedRecordError | None]:
        """Ordinal and content hash of each id; `None` where the store has no such passage."""
        with self._passages.reading("passages") as passages:
            entries = [_find(passages, key_of(doc_id)) for doc_id in doc_ids]
        return [meta_of(entry) if isinstance(entry, Entry) else entry for entry in entries]

    def find_contents(self, content_hashes: Sequence[bytes]) -> list[list[int]]:
        """The ordinals of the passages that have each content (16 B), tombstoned ones included."""
        return self._contents.find(content_hashes)

    def texts(self, doc_ids: Sequence[str]) -> list[str | None]:
        """The text of each id, `None` where none is kept. Raises `DamagedRecordError`."""
        return [require_undamaged(text) for text in self.find_texts(doc_ids)]

    def find_texts(self, doc_ids: Sequence[str]) -> list[str | DamagedRecordError | None]:
        """As `texts`, with the error in the place of a damaged one."""
        with self._passages.reading("passages") as passages:
            entries = (_find(passages, key_of(doc_id)) for doc_id in doc_ids)
            return [_text_of(entry) if isinstance(entry, Entry) else entry for entry in entries]

    def doc_ids(self, ordinals: Iterable[int]) -> list[str]:
        """The id behind each first-stage ordinal. Raises `DamagedRecordError`, also when one is not there."""
        return [require_undamaged(doc_id) for doc_id in self.find_doc_ids(ordinals)]

    def find_doc_ids(self, ordinals: Iterable[int]) -> list[str | DamagedRecordError]:
        """As `doc_ids`, with the error in the place of a damaged or missing one."""
        with self._passages.reading("numbers") as reader:
            return [self._doc_id(reader, ordinal) for ordinal in ordinals]

    def _doc_id(self, reader: BlockReader, ordinal: int) -> str | DamagedRecordError:
        try:
            entry = reader.find(ordinal_key(ordinal))
            if entry is None:
                return DamagedRecordError(
                    f"{self._passages.path}: ordinal {ordinal} is not there; run kalm-cache verify"
                )
            return doc_id_of(bytes(entry.payload))
        except DamagedRecordError as exc:
            return _about(f"ordinal {ordinal}", exc)

    def keys(self) -> Iterator[bytes]:
        """The key of every passage, in order, one snapshot. Raises `DamagedRecordError`."""
        with self._passages.reading("passages", ahead=True) as passages:
            for block in passages.blocks():
                yield from map(block.key, range(len(block)))

    def ordinals(self) -> Iterator[tuple[int, str]]:
        """(ordinal, doc id) of every passage, by rising ordinal, one snapshot. Raises `DamagedRecordError`."""
        with self._passages.reading("numbers", ahead=True) as ordinals:
            for block in ordinals.blocks():
                for i in range(len(block)):
                    entry = block.valid_entry(i)
                    yield ordinal_of(entry.key), doc_id_of(bytes(entry.payload))

    @contextmanager
    def reading(self) -> Iterator[tuple[BlockReader, BlockReader]]:
        """The blocks of states and of passages, as they are stored: for who copies them."""
        with (
            self._states.reading("blocks", ahead=True) as states,
            self._passages.reading("passages", ahead=True) as passages,
        ):
            yield states, passages


class Snapshot:
    """The records of a store at one moment; see `PassageStore.snapshot`."""

    def __init__(self, store: PassageStore, states: BlockReader) -> None:
        self._store, self._states = store, states

    def records(self, doc_ids: Sequence[str]) -> list[Record | DamagedRecordError | None]:
        """The record of each id; `None` where the store has no such passage, the error where it is damaged.

        As soon as one has to be waited for, the rest is asked for at once.
        """
        records, waits, asked = [], _waits(), False
        for i, doc_id in enumerate(doc_ids, start=1):
            records.append(self._record(doc_id))
            if not asked and _waits() != waits:
                asked = True
                self._states.prefetch([key_of(doc_id) for doc_id in doc_ids[i:]])
        return records

    def _record(self, doc_id: str) -> Record | DamagedRecordError | None:
        key = key_of(doc_id)
        try:
            block = self._states.block_of(key)
            place = None if block is None else block.find(key)
            if block is not None and place is not None:
                entry = block.valid_entry(place)
                return unpack_record(block.common, entry.fields, entry.payload)
            problem = DamagedRecordError("it is not there, and the passage is; run kalm-cache verify")
        except DamagedRecordError as exc:
            problem = exc
        (meta,) = self._store.metas([doc_id])
        return _about(f"record {doc_id!r}", problem) if isinstance(meta, PassageMeta) else meta


def _waits() -> int:
    """How often this thread has waited for the disk to fill a page of a map."""
    return resource.getrusage(getattr(resource, "RUSAGE_THREAD", resource.RUSAGE_SELF)).ru_majflt


def read_seal(folder: Path) -> Seal:
    """What a segment's folder says of itself. Raises `StoreError` when that is missing, damaged, or too old or new."""
    path = folder / SEAL_FILE
    try:
        raw = read_json_object(path)
        if raw.get("format") != STORE_FORMAT:
            raise StoreError(f"{path}: store format {raw.get('format')}, this version reads {STORE_FORMAT}; re-index")
        fields = unpack_checked(raw)
        if fields is None:
            raise StoreError(f"{path}: checksum mismatch; run kalm-cache verify")
        seal = checked_fields(Seal, fields)
        if seal.trees.keys() != {STATES_FILE, PASSAGES_FILE}:
            raise ValueError(f"trees: expected those of {STATES_FILE} and {PASSAGES_FILE}")
        return seal
    except (OSError, ValueError) as exc:
        raise StoreError(f"{path}: cannot be read; {refused(exc, path)}") from exc


def key_of(doc_id: str) -> bytes:
    """The key of a doc id: its UTF-8 bytes. Half a surrogate pair, which no corpus may hold, gets a key too."""
    return doc_id.encode("utf-8", "surrogatepass")


def doc_id_of(key: bytes) -> str:
    """Inverse of `key_of`. Raises `DamagedRecordError`."""
    try:
        return key.decode("utf-8")
    except UnicodeDecodeError as exc:
        raise DamagedRecordError(f"id {key!r} is not UTF-8; run kalm-cache verify") from exc


def ordinal_key(ordinal: int) -> bytes:
    """The key of an ordinal: big-endian, so that keys sort as ordinals do."""
    return _ORDINAL.pack(ordinal)


def ordinal_of(key: bytes) -> int:
    """Inverse of `ordinal_key`. Raises `DamagedRecordError`."""
    if len(key) != _ORDINAL.size:
        raise DamagedRecordError(f"ordinal {key!r} has {len(key)} bytes, not 8; run kalm-cache verify")
    return int(_ORDINAL.unpack(key)[0])


def meta_of(entry: Entry) -> PassageMeta:
    """Ordinal and content hash of an entry of passages.lmdb."""
    return PassageMeta(*_META.unpack(entry.fields))


def pack_text(text: str) -> bytes:
    """Text -> zstd frame."""
    return zstandard.ZstdCompressor().compress(text.encode("utf-8"))


def unpack_text(frame: bytes | memoryview) -> str:
    """Inverse of `pack_text`. Raises `DamagedRecordError`."""
    try:
        promised = zstandard.frame_content_size(frame)
        if promised > MAX_TEXT_BYTES:  # zstandard would take that much memory first, whatever the limit is
            raise DamagedRecordError(f"a text of {promised} bytes is promised, {MAX_TEXT_BYTES} are the most")
        return _decompressor().decompress(frame, max_output_size=MAX_TEXT_BYTES).decode("utf-8")
    except (zstandard.ZstdError, UnicodeDecodeError) as exc:
        raise DamagedRecordError(f"a text does not decompress: {exc}") from exc


def _decompressor() -> zstandard.ZstdDecompressor:
    """One for each thread, as it is not for several; making it costs six times what a passage's text does."""
    if not hasattr(_of_thread, "decompressor"):
        _of_thread.decompressor = zstandard.ZstdDecompressor()
    decompressor: zstandard.ZstdDecompressor = _of_thread.decompressor
    return decompressor


def _find(passages: BlockReader, key: bytes) -> Entry | DamagedRecordError | None:
    try:
        return passages.find(key)
    except DamagedRecordError as exc:
        return _about(PASSAGES.show(key), exc)


def _about(shown: str, damage: DamagedRecordError) -> DamagedRecordError:
    """The damage, with the name of what it hits in front."""
    problem = str(damage)
    return damage if problem.startswith(shown) else DamagedRecordError(f"{shown}: {problem}")


def _text_of(entry: Entry) -> str | DamagedRecordError | None:
    if not entry.payload:
        return None
    try:
        return unpack_text(entry.payload)
    except DamagedRecordError as exc:
        return _about(PASSAGES.show(entry.key), exc)


def require_undamaged(found: _T | DamagedRecordError) -> _T:
    """What was found, or the error that stands in its place, raised."""
    if isinstance(found, DamagedRecordError):
        raise found
    return found
