"""Which segments of a generation a build can copy or recode from. Opens no model.

Which passages are taken from them is decided in `indexer/build/plan.py`, by id and content hash.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from contextlib import ExitStack
from dataclasses import dataclass, field

from indexer.reuse.origins import SealedSegment
from indexer.reuse.recode import RecodedSegment, Recoding, has_same_states, recoding_problem
from indexer.reuse.source_columns import source_columns
from indexer.reuse.source_first_stage import source_postings, source_vectors
from kalm_cache.codec import Codec, get_codec
from kalm_cache.errors import KalmCacheError, StoreError, UsageError
from kalm_cache.first_stage.bm25.analysis import Analysis
from kalm_cache.generations.fingerprint import Fingerprint
from kalm_cache.generations.generation import Generation, require_valid
from kalm_cache.generations.sharding import Shard
from kalm_cache.storage.passage_store import PassageStore

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class ReusableSegments:
    """For a `BuildSpec`: segments to copy from, segments to recode, and all segments that can be read.

    `problem` says why nothing can be copied or recoded, where that is so.
    """

    copied: list[SealedSegment] = field(default_factory=list)
    recoded: list[RecodedSegment] = field(default_factory=list)
    every: list[SealedSegment] = field(default_factory=list)
    problem: str | None = None

    def of(self, shard: Shard) -> ReusableSegments:
        """Those in which a passage of a shard can be."""
        return ReusableSegments(
            [segment for segment in self.copied if segment.may_have(shard)],
            [segment for segment in self.recoded if segment.source.may_have(shard)],
            [segment for segment in self.every if segment.may_have(shard)],
            self.problem,
        )


def open_sources(
    generation: Generation | None,
    wanted: Fingerprint,
    codec: Codec,
    stack: ExitStack,
    *,
    analysis: Analysis,
    inexact_vectors: bool = False,
    only: Collection[str] | None = None,
    shard: Shard | None = None,
) -> ReusableSegments:
    """The segments of a generation for a build with fingerprint `wanted` and `codec`; `stack` closes them.

    A segment that cannot be read is left out with a warning: what would have been taken from it is encoded.
    `analysis`: of the postings that can be taken over. `inexact_vectors`: rather take vectors of 8 bits a dimension
    than embed the texts again. `only`: names of the segments that are wanted; `None` = all. `shard`: of which passages
    are wanted; `None` = of all.
    """
    sources = ReusableSegments()
    if generation is None:
        return sources
    try:
        require_valid(generation, ())
        tombstones = generation.tombstones()
    except KalmCacheError as exc:
        logger.warning("nothing is taken from generation %s: %s", generation.name, exc)
        sources.problem = str(exc)
        return sources
    built = generation.manifest.fingerprint
    sources.problem = recoding_problem(built, wanted)
    inexact = inexact_vectors or not built.store_text
    for part in generation.parts():
        own = part.shard
        if (only is not None and part.segment_name not in only) or (own and shard and not own.overlaps(shard)):
            continue
        try:
            require_valid(part, {part.segment_name})
            gone = frozenset(generation.tombstones_of(part.manifest.segments[0], tombstones).keys)
            segment = _open_segment(part, gone, wanted, analysis, stack, inexact=inexact)
        except KalmCacheError as exc:
            logger.warning("nothing is taken from %s: %s", part.segment, exc)
            continue
        sources.every.append(segment)
        if sources.problem is None:
            _sort_in(segment, built, wanted, codec, sources)
    return sources


def open_to_copy(
    generation: Generation, codec: Codec, stack: ExitStack, only: Collection[str] | None = None
) -> ReusableSegments:
    """The segments of a generation, or some of them, to be copied as they are; arguments as in `open_sources`.

    Raises:
        StoreError: one cannot be read, so that what it holds would be lost.
    """
    fingerprint = generation.manifest.fingerprint
    sources = open_sources(
        *(generation, fingerprint, codec, stack),
        analysis=generation.manifest.analysis,
        inexact_vectors=True,
        only=only,
    )
    wanted = [segment.name for segment in generation.manifest.segments if only is None or segment.name in only]
    if len(sources.copied) != len(wanted):
        raise StoreError(f"{generation.folder}: not every segment can be read; run kalm-cache verify --repair")
    return sources


def _open_segment(
    part: Generation,
    tombstones: frozenset[bytes],
    wanted: Fingerprint,
    analysis: Analysis,
    stack: ExitStack,
    *,
    inexact: bool,
) -> SealedSegment:
    store = stack.enter_context(PassageStore(part.segment))
    same_embedder = part.manifest.fingerprint.embedder == wanted.embedder
    return SealedSegment(
        store,
        source_vectors(part, inexact=inexact) if same_embedder else None,
        tombstones,
        source_postings(part, analysis) if wanted.bm25 else None,
        part.shard,
        source_columns(part),
    )


def require_keepable(parent: Generation | None, sources: ReusableSegments, wanted: Fingerprint) -> None:
    """Check that what a generation without texts shows can go on without them.

    Raises:
        UsageError: its vectors or postings would have to be made anew.
    """
    if parent is None or parent.manifest.fingerprint.store_text:
        return
    for segment in sources.every:
        if len(segment.store) == len(segment.tombstones):
            continue
        missing = "vectors" if segment.vectors is None else "postings"
        if segment.vectors is None or (wanted.bm25 and not segment.has_all_postings()):
            raise UsageError(
                f"{parent.folder}: keeps no texts, and the {missing} of segment {segment.store.folder.name} cannot be "
                "taken over; run: kalm-cache reindex CORPUS --delete-missing, with the whole corpus"
            )


def _sort_in(
    segment: SealedSegment, built: Fingerprint, wanted: Fingerprint, codec: Codec, sources: ReusableSegments
) -> None:
    assert has_same_states(built, wanted)
    form = (built.codec, built.chunk_size, built.store_text)
    if form == (wanted.codec, wanted.chunk_size, wanted.store_text):
        sources.copied.append(segment)
        return
    recoding = Recoding(get_codec(built.codec), built.chunk_size, codec, wanted.chunk_size)
    sources.recoded.append(RecodedSegment(segment, recoding))
