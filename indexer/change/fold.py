"""Small neighbouring segments -> one, so that an index of many additions has few: the tiers of an LSM tree.

A segment of 1 to 7 shown passages is of tier 0, one of 8 to 63 of tier 1, and so on. As soon as 8 neighbours are of one
tier they are folded into one segment, which is of the next tier: each passage is copied once a tier, and n additions
leave at most 7 segments a tier. Passages with a tombstone are left out. Everything else is copied: records and texts as
bytes, vectors and BM25 scores as they are, so that every search answers as before. The base stays as it is: what BM25
knows of the collection comes from it. Ordinals stay too, and a segment is a range of them: so only neighbours fold.
"""

from __future__ import annotations

import itertools
import logging
import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from indexer.build.build import build_segment
from indexer.build.counts import BuildCounts
from indexer.build.spec import BuildSpec
from indexer.models import BuildModels
from indexer.reuse.reusable_segments import ReusableSegments, open_to_copy
from indexer.reuse.source_first_stage import base_statistics
from indexer.reuse.stored_embedder import StoredEmbedder
from kalm_cache.codec import get_codec
from kalm_cache.errors import KalmCacheError, StoreError
from kalm_cache.first_stage.dense.faiss_types import FLAT_LIMIT
from kalm_cache.generations.generation import BUILDING, Generation, segment_folder
from kalm_cache.generations.manifest import FileReceipt, Manifest, SegmentReceipt
from kalm_cache.generations.publish import receipts
from kalm_cache.generations.tombstones import TOMBSTONES_FILE, read_tombstones, write_tombstones

logger = logging.getLogger(__name__)
FACTOR_BITS = 3
FACTOR = 1 << FACTOR_BITS  # segments of one tier that become one of the next
FOLD_BYTES = 64 << 20  # files that `add` and `delete` fold beside their own work, at most: about a second
FOLDED_PASSAGES = FLAT_LIMIT  # of one folded segment, at most: up to here its dense index is exact
Progress = Callable[[BuildCounts], None]


@dataclass(frozen=True, slots=True)
class Foldable:
    """What decides whether a segment is folded: passages that it shows, and bytes of its files."""

    passages: int
    bytes: int


def choose(segments: Sequence[Foldable], limit_bytes: int | None = None) -> tuple[int, int] | None:
    """The neighbours [start, stop) that are folded next; `None` where every tier is below its limit.

    The smallest full tier goes first; where what becomes of it fills the next tier, that one goes with it at once.
    """
    spans, merged = [(i, i + 1) for i in range(len(segments))], list(segments)
    chosen: tuple[int, int] | None = None
    while (full := _full_tier(merged)) is not None:
        start, stop = full
        span = spans[start][0], spans[stop - 1][1]
        whole = Foldable(
            sum(segment.passages for segment in merged[start:stop]),
            sum(segment.bytes for segment in merged[start:stop]),
        )
        too_much = whole.passages > FOLDED_PASSAGES or (limit_bytes is not None and whole.bytes > limit_bytes)
        if too_much or (chosen is not None and not span[0] <= chosen[0] < span[1]):
            break
        chosen, spans[start:stop], merged[start:stop] = span, [span], [whole]
    return chosen


def _full_tier(segments: Sequence[Foldable]) -> tuple[int, int] | None:
    """The newest neighbours of one tier that are `FACTOR` or more. No segment counts as smaller than a newer one."""
    tiers = list(itertools.accumulate(map(_tier, reversed(segments)), max))
    stop = len(segments)
    for _, run in itertools.groupby(tiers):
        start = stop - len(list(run))
        if stop - start >= FACTOR:
            return start, stop
        stop = start
    return None


def _tier(segment: Foldable) -> int:
    return (max(segment.passages, 1).bit_length() - 1) // FACTOR_BITS


def fold_small(index: Path, building: Path, manifest: Manifest) -> Manifest:
    """Fold what is due in a generation before it is published, beside a change that does not depend on it.

    `building`: its folder, with all its files. Where it cannot be done, that is logged, and nothing is folded.
    """
    span = choose(foldable(Generation(building, manifest)), FOLD_BYTES)
    if span is None:
        return manifest
    try:
        folded = build_folded(index, building, manifest, span)
    except (KalmCacheError, OSError) as exc:
        logger.warning("small segments are not folded: %s; kalm-cache fold does it later", exc)
        shutil.rmtree(segment_folder(building, _free_name(building, manifest)), ignore_errors=True)
        return manifest
    return put_in_place(building, manifest, span, folded)


def foldable(generation: Generation) -> list[Foldable]:
    """The segments behind the base, by rising ordinals."""
    tombstones = read_tombstones(generation.folder)
    return [
        Foldable(
            segment.counts.passages - len(tombstones.between(segment.first_ordinal, segment.next_ordinal)),
            sum(receipt.bytes for receipt in _files_of(generation.manifest, segment).values()),
        )
        for segment in generation.manifest.tail
    ]


def build_folded(
    index: Path, building: Path, manifest: Manifest, span: tuple[int, int], on_progress: Progress = lambda counts: None
) -> SegmentReceipt:
    """Build one segment of what neighbours show, places [start, stop) behind the base, beside them in `building`.

    Raises:
        StoreError: one of them is damaged, or the disk is full or cannot be written.
    """
    generation, name = Generation(building, manifest, manifest.segments[0].name), _free_name(building, manifest)
    neighbours = manifest.tail[slice(*span)]
    fingerprint = manifest.fingerprint
    codec = get_codec(fingerprint.codec)
    with ExitStack() as stack:
        sources = open_to_copy(generation, codec, stack, {segment.name for segment in neighbours})
        _require_one_analysis(sources)
        spec = BuildSpec(
            index=index,
            operation="fold",
            template=replace(manifest, dense_index="auto"),
            parent=generation,
            models=BuildModels((), StoredEmbedder(generation), codec),  # nothing is encoded
            batch_tokens=1,
            sources=sources,
            keep_missing=True,
            statistics_of=base_statistics(generation),
            keep_scores=True,
            columns=dict(manifest.columns),
        )
        folder = segment_folder(building, name)
        built = build_segment(spec, (), folder, on_reject=lambda line: None, on_progress=on_progress)
    return SegmentReceipt(name, built.stored, neighbours[0].first_ordinal, neighbours[-1].next_ordinal)


def _require_one_analysis(sources: ReusableSegments) -> None:
    """Raise `StoreError` where segments were made by texts' normal form and without it: queries differ for them."""
    if len({segment.postings.analysis for segment in sources.every if segment.postings is not None}) > 1:
        raise StoreError("some segments were made by an earlier version: run kalm-cache reindex CORPUS, or fold --all")


def put_in_place(building: Path, manifest: Manifest, span: tuple[int, int], folded: SegmentReceipt) -> Manifest:
    """Have a folded segment in the place of its neighbours, without their tombstones. Raises `OSError`."""
    tail = manifest.tail
    gone = [*tail[slice(*span)], *([] if folded.counts.passages else [folded])]
    tail[slice(*span)] = [folded] if folded.counts.passages else []
    write_tombstones(building, read_tombstones(building).outside(folded.first_ordinal, folded.next_ordinal))
    for segment in gone:
        shutil.rmtree(segment_folder(building, segment.name))
    known = {file: receipt for file, receipt in manifest.files.items() if file != TOMBSTONES_FILE}
    return replace(manifest, files=receipts(building, known), segments=[*manifest.base, *tail])


def _free_name(building: Path, manifest: Manifest) -> str:
    """A name that no segment has: that of the build, and a number behind it where one of its own has that."""
    taken, name = {segment.name for segment in manifest.segments}, f"{int(building.name.removesuffix(BUILDING)):05d}"
    return next(free for free in (name, *(f"{name}{i:03d}" for i in range(len(taken)))) if free not in taken)


def _files_of(manifest: Manifest, segment: SegmentReceipt) -> dict[str, FileReceipt]:
    prefix = f"shards/{segment.name}/"
    return {name: receipt for name, receipt in manifest.files.items() if name.startswith(prefix)}
