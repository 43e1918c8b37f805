"""The points of a sweep: what an index would hold in a codec at a chunk size, without encoding a passage again.

A point without a codec is the index itself at that chunk size. A point with one has a sealed store of its own, in which
the candidates' states are recoded from the index's: its bytes are those of the store's file, its milliseconds those of
reading that store.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from kalm_cache.codec import Codec, get_codec
from kalm_cache.codec.recoding import base_codec, recoding_obstacle
from kalm_cache.errors import UsageError
from kalm_cache.scoring.pooling import check_chunk_size
from kalm_cache.scoring.state_reader import StateReader
from kalm_cache.storage.passage_store import STATES_FILE, PassageMeta, PassageStore, key_of
from kalm_cache.storage.record import Record
from kalm_cache.storage.store_writer import StoreWriter

if TYPE_CHECKING:
    from kalm_cache.index.passage_index import PassageIndex

RECODED = 256  # passages recoded together


@dataclass(frozen=True, slots=True)
class Point:
    """A pooling ratio r, and the codec that its states are stored in; `None` = the index's own store.

    shared_prefix: `mean`: the prompts' prefix is that over passages of the index, see `scoring.shared_prefix`.
    """

    chunk_size: int
    codec: str | None = None
    shared_prefix: str | None = None

    @property
    def name(self) -> str:
        """What reports call it: `r=4`, `int8 r=4`, `r=4 shared prefix`."""
        name = f"r={self.chunk_size}" if self.codec is None else f"{self.codec} r={self.chunk_size}"
        return f"{name} shared prefix" if self.shared_prefix else name


def points_of(
    chunk_sizes: Sequence[int], codecs: Sequence[str | None], shared_prefix: str | None = None
) -> tuple[Point, ...]:
    """Each codec at each chunk size; with `shared_prefix`, after all of these the same with the prefix shared."""
    kinds = dict.fromkeys((None, shared_prefix))
    return tuple(dict.fromkeys(Point(r, codec, kind) for kind in kinds for codec in codecs for r in chunk_sizes))


@dataclass(frozen=True, slots=True)
class OpenPoint:
    """A point that can be read. `bytes_per_passage`: of its states' file, for each of the passages in it."""

    reader: StateReader
    chunk_size: int
    codec: str
    bytes_per_passage: float


def check_point(index: PassageIndex, point: Point) -> None:
    """Raise `UsageError` where the index's states cannot exactly become the point's."""
    stored = index.generation.manifest.fingerprint
    check_chunk_size(stored.chunk_size, point.chunk_size)
    if point.codec is None:
        return
    obstacle = recoding_obstacle(stored.codec, point.codec)
    if obstacle == "quantised":
        raise UsageError(
            f"the index's states are stored as {stored.codec} and carry its error already: a sweep over codecs needs "
            "an index with --codec fp32, fp16 or bf16"
        )
    if obstacle == "too coarse":
        raise UsageError(
            f"the index's states are stored as {stored.codec}, which is not as fine as {point.codec}; index with "
            f"--codec {base_codec(point.codec)}, or leave {point.codec} out"
        )


@contextmanager
def open_point(
    index: PassageIndex,
    point: Point,
    doc_ids: Sequence[str],
    sensitivity: NDArray[np.float64] | None = None,
    workspace: Path | None = None,
) -> Iterator[OpenPoint]:
    """Make a point readable for the passages of `doc_ids`.

    Args:
        index: what holds their states.
        point: ratio and codec.
        doc_ids: distinct ids.
        sensitivity: (D, D), what codecs below 8 bits round by; `None` = to nearest.
        workspace: folder for the point's store while it is open; `None` = the system's.

    Raises:
        UsageError: the index's states cannot exactly become the point's.
        UnknownIdError: ids that the index does not hold.
        DamagedRecordError: a record fails its checksum.
    """
    check_point(index, point)
    stored = index.generation.manifest.fingerprint
    stored_reader = StateReader(index.store, get_codec(stored.codec), stored.chunk_size)
    if point.codec is None:
        yield OpenPoint(stored_reader, point.chunk_size, stored.codec, states_bytes_per_passage(index))
        return
    codec = get_codec(point.codec, sensitivity)
    with TemporaryDirectory(prefix="point-", dir=workspace) as folder:
        file_bytes = _recode(stored_reader, codec, point.chunk_size, sorted(doc_ids, key=key_of), Path(folder))
        with PassageStore(Path(folder)) as store:
            reader = StateReader(store, codec, point.chunk_size)
            yield OpenPoint(reader, point.chunk_size, codec.name, file_bytes / max(len(doc_ids), 1))


def states_bytes_per_passage(index: PassageIndex) -> float:
    """Bytes of an index's states files for each of its passages."""
    manifest = index.generation.manifest
    files = (receipt.bytes for name, receipt in manifest.files.items() if Path(name).name == STATES_FILE)
    return sum(files) / manifest.counts.passages


def _recode(source: StateReader, codec: Codec, chunk_size: int, doc_ids: Sequence[str], folder: Path) -> int:
    """Store the passages of `doc_ids`, in rising order of keys; returns the bytes of the states' file."""
    ordinal = 0
    with StoreWriter(folder) as writer:
        for start in range(0, len(doc_ids), RECODED):
            window = doc_ids[start : start + RECODED]
            for doc_id, passage in zip(window, source.read(window, chunk_size), strict=True):
                payload = codec.encode(passage.states.numpy())
                width = passage.states.shape[1]
                record = Record(codec.number, chunk_size, width, passage.tokens, passage.truncated, payload)
                writer.add(key_of(doc_id), record, PassageMeta(ordinal, bytes(16)), b"")
                ordinal += 1
        writer.finish(((i, key_of(doc_id)) for i, doc_id in enumerate(doc_ids)), len(doc_ids))
    return (folder / STATES_FILE).stat().st_size
