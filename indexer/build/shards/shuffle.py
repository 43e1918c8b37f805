"""Lines of a corpus -> a file of texts for each shard, in the order of the corpus. Texts move, states never do.

One pass finds what is rejected and which ids occur twice, and gives every passage its ordinal; what builds a shard
needs nothing of the others. A file is zstd frames, end to end, of JSON lines: [ordinal, doc id, text, location,
metadata].
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import zstandard

from indexer.build.counts import BuildCounts
from indexer.build.plan import PlannedPassage, Reject, accepted_windows
from indexer.build.spec import BuildSpec
from indexer.build.unfinished.accepted_passages import ACCEPTED_FILE, AcceptedPassages
from indexer.build.unfinished.resume_log import ORDINALS_FILE, Reservations
from indexer.corpus import CorpusLine, RejectedLine
from indexer.reuse.origins import SealedSegment
from kalm_cache.errors import StoreError
from kalm_cache.generations.generation import high_water_marks
from kalm_cache.generations.sharding import Sharding
from kalm_cache.passage import Passage
from kalm_cache.storage.passage_store import PassageMeta, PassageStore, key_of

FRAME_BYTES = 256 << 10  # of text that waits in memory, for each shard
ZSTD_LEVEL = 3


@dataclass(frozen=True, slots=True)
class Shuffled:
    """What became of a corpus. `files`: one a shard; `passages`: how many each holds; `rejected`: lines.

    `kept`: passages that the corpus does not have.
    """

    files: list[Path]
    passages: list[int]
    rejected: int
    kept: int


class PlannedOrdinals:
    """The ordinals of a sharded base: a corpus that is shuffled again gets the same ones, also after a death.

    A passage that is stored already with the same text, in a source or in a shard that an interrupted run has
    finished, keeps its ordinal, so that it can be copied: its bytes hold that.
    """

    def __init__(self, given: Reservations, stored: Sequence[SealedSegment]) -> None:
        self._given, self._stored = given, stored

    @property
    def next(self) -> int:
        """See `Ordinals.next`."""
        return self._given.next

    def reserve(self, doc_ids: Sequence[str]) -> list[int]:
        """See `Ordinals.reserve`."""
        return self._given.reserve(doc_ids)

    def of(self, window: Sequence[CorpusLine]) -> list[int]:
        """The ordinal of each line's passage."""
        wanted = [PlannedPassage.of(line) for line in window]
        for segment in self._stored:
            places = [i for i, item in enumerate(wanted) if item.ordinal is None and _may_be_in(segment, item)]
            for i, ordinal in zip(places, _stored_ordinals([wanted[i] for i in places], segment), strict=True):
                wanted[i] = wanted[i]._replace(ordinal=ordinal)
        given = iter(self.reserve([item.passage.doc_id for item in wanted if item.ordinal is None]))
        return [next(given) if item.ordinal is None else item.ordinal for item in wanted]


@contextmanager
def planned_ordinals(spec: BuildSpec, folder: Path, finished: Sequence[Path]) -> Iterator[PlannedOrdinals]:
    """The ordinals of a base, kept in `folder`. `finished`: sealed segments of interrupted runs of this build."""
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        sealed = [SealedSegment(stack.enter_context(PassageStore(segment)), vectors=None) for segment in finished]
        sealed += [*spec.sources.copied, *(segment.source for segment in spec.sources.recoded)]
        given = [high_water_marks(spec.index).next_ordinal, *(segment.store.next_ordinal() for segment in sealed)]
        reservations = stack.enter_context(Reservations(folder / ORDINALS_FILE, max(given)))
        yield PlannedOrdinals(reservations, sealed)


def shuffle(
    spec: BuildSpec,
    lines: Iterable[CorpusLine | RejectedLine],
    folder: Path,
    ordinals: PlannedOrdinals,
    *,
    on_reject: Reject,
    on_progress: Callable[[BuildCounts], None],
    kept: Callable[[AcceptedPassages], Iterable[list[CorpusLine]]] = lambda accepted: (),
) -> Shuffled:
    """Write the texts of each shard into `folder`; what an earlier pass left there is replaced.

    `kept`: windows of what is written beside the corpus, told once that has been read.

    Raises:
        StoreError: the disk is full or cannot be written.
    """
    assert spec.template.sharding is not None
    counts = BuildCounts()

    def reject(line: RejectedLine) -> None:
        counts.rejected += 1
        on_reject(line)

    with AcceptedPassages(folder / ACCEPTED_FILE) as accepted:
        writer = _TextsWriter(folder, spec.template.sharding)
        for window in accepted_windows(lines, accepted, reject):
            writer.add(window, ordinals.of(window))
            on_progress(counts)
        for window in kept(accepted):
            writer.add(window, ordinals.of(window))
            counts.kept += len(window)
            on_progress(counts)
        writer.finish()
    (folder / ACCEPTED_FILE).unlink()
    return Shuffled(writer.files, writer.passages, counts.rejected, counts.kept)


def _may_be_in(segment: SealedSegment, item: PlannedPassage) -> bool:
    key = key_of(item.passage.doc_id)
    return key not in segment.tombstones and (segment.shard is None or segment.shard.holds(key))


def _stored_ordinals(wanted: list[PlannedPassage], segment: SealedSegment) -> list[int | None]:
    """The ordinal of each passage that a segment has with the same text. Reads no record: damage shows when it is."""
    metas = segment.store.metas([item.passage.doc_id for item in wanted])
    return [
        meta.ordinal if isinstance(meta, PassageMeta) and meta.content_hash == item.content_hash else None
        for item, meta in zip(wanted, metas, strict=True)
    ]


class _TextsWriter:
    """Appends whole frames, so that there may be more shards than a process may open files."""

    def __init__(self, folder: Path, sharding: Sharding) -> None:
        self.files = [folder / f"{shard:05d}.texts.zst" for shard in range(sharding.count)]
        self.passages = [0] * sharding.count
        self._sharding, self._waiting = sharding, [bytearray() for _ in self.files]
        for file in self.files:
            file.write_bytes(b"")

    def add(self, window: Sequence[CorpusLine], ordinals: Sequence[int]) -> None:
        for line, ordinal in zip(window, ordinals, strict=True):
            self._add(line, ordinal)

    def _add(self, line: CorpusLine, ordinal: int) -> None:
        passage = line.passage
        shard = self._sharding.shard_of(key_of(passage.doc_id))
        fields = [ordinal, passage.doc_id, passage.text, line.location, line.metadata]
        self._waiting[shard] += json.dumps(fields).encode() + b"\n"
        self.passages[shard] += 1
        if len(self._waiting[shard]) >= FRAME_BYTES:
            self._append(shard)

    def finish(self) -> None:
        for shard in range(len(self.files)):
            self._append(shard)

    def _append(self, shard: int) -> None:
        if self._waiting[shard]:
            with self.files[shard].open("ab") as file:
                file.write(zstandard.ZstdCompressor(ZSTD_LEVEL).compress(bytes(self._waiting[shard])))
            self._waiting[shard].clear()


def read_texts(path: Path) -> Iterator[CorpusLine]:
    """The lines of one shard, with their ordinals, in the order of the corpus. Raises `StoreError`."""
    try:
        with path.open("rb") as file:
            stream = zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True)
            for line in io.TextIOWrapper(stream, "utf-8", newline="\n"):
                ordinal, doc_id, text, location, metadata = json.loads(line)
                yield CorpusLine(Passage(doc_id, text), location, ordinal=ordinal, metadata=metadata)
    except (OSError, ValueError, zstandard.ZstdError) as exc:
        raise StoreError(f"{path}: cannot be read: {exc}; plan the partitions again") from exc
