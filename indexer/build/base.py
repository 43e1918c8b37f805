"""One new base segment from a corpus and what is stored already, published: what index, reindex, gc and repair share.

Called under the build lock only.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from indexer.build.comparison import count_dropped_ids
from indexer.build.intake import Reject
from indexer.build.models import Encoders, resolve_source
from indexer.build.segment import Progress, SegmentBuilder, refuse_to_lose
from indexer.change.publication import now
from indexer.corpus import CorpusLine, RejectedLine
from indexer.reuse.sources import Sources, require_keepable
from kalm_cache.codec import Codec
from kalm_cache.first_stage import Embedder
from kalm_cache.generations.generation import BASE_SEGMENT, Generation, names_given, segment_folder
from kalm_cache.generations.manifest import NO_COUNTS, Manifest, SegmentReceipt
from kalm_cache.generations.publish import name_for, publish, receipts
from kalm_cache.scoring.passage_side import PassageSide
from kalm_cache.settings import Settings
from kalm_cache.storage.passage_store import read_seal

KEEPING = ("gc", "repair")  # operations that drop nothing which is shown and whole
MEASURED = 64  # passages encoded, at least, for a rate that says anything


def _nothing() -> None:
    """Add no files."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was published, and how it came about."""

    generation: Generation
    progress: Progress
    seconds: float


@dataclass(frozen=True, slots=True)
class BaseBuild:
    """What a base is built with; see `SegmentBuilder` for `on_lost`.

    `template`: the manifest to publish, but for what follows from the build. `keep`: what the corpus does not have,
    too.
    `passage_side`: `None` where nothing may have to be encoded. `before_publishing`: adds files to the build.
    """

    index: Path
    operation: str
    template: Manifest
    parent: Generation | None
    sources: Sources
    embedder: Embedder
    passage_side: PassageSide | None
    codec: Codec
    batch_tokens: int
    keep: bool = False
    on_lost: Callable[[str], None] = refuse_to_lose
    before_publishing: Callable[[], None] = _nothing

    def run(
        self,
        lines: Iterable[CorpusLine | RejectedLine],
        building: Path,
        *,
        on_reject: Reject,
        on_progress: Callable[[Progress], None],
    ) -> Outcome:
        """Build it in `building`, and publish it.

        Raises:
            UsageError: passages should be kept without their texts, and something could only be made of these.
            StoreError: the disk is full or cannot be written; what is stored stays.
        """
        started, built = time.perf_counter(), self.template.fingerprint
        if self.keep:
            require_keepable(self.parent, self.sources, built)
        builder = SegmentBuilder(
            passage_side=self.passage_side,
            embedder=self.embedder,
            codec=self.codec,
            batch_tokens=self.batch_tokens,
            store_text=built.store_text,
            bm25=built.bm25,
            sources=self.sources.copied,
            recoded=self.sources.recoded,
            kept=self.sources.every if self.keep else (),
            on_lost=self.on_lost,
            first_ordinal=names_given(self.index).next_ordinal,
            dense_index=self.template.dense_index,
        )
        folder = segment_folder(building, BASE_SEGMENT)
        progress, counts = builder.build(lines, folder, on_reject=on_reject, on_progress=on_progress)
        self.before_publishing()
        next_ordinal = read_seal(folder).next_ordinal
        manifest = replace(
            self.template,
            generation=name_for(self.index, building),
            created_at=now(),
            counts=counts,
            files=receipts(building),
            parent=None if self.parent is None else self.parent.name,
            segments=[SegmentReceipt(BASE_SEGMENT, counts, 0, next_ordinal)],
            next_ordinal=next_ordinal,
            operation=self.operation,
            deleted=self._count_deleted(building),
            passages_per_second=self._rate(progress, time.perf_counter() - started),
        )
        return Outcome(publish(self.index, building, manifest), progress, time.perf_counter() - started)

    def _count_deleted(self, building: Path) -> int:
        """What the parent shows and this does not; what is only damaged there was not deleted."""
        if self.parent is None or self.operation in KEEPING:
            return 0
        return count_dropped_ids(self.parent, building)

    def _rate(self, progress: Progress, seconds: float) -> float | None:
        """Passages a second of a job that encoded everything; else the parent's, if it was of the same model."""
        if progress.encoded >= MEASURED and progress.encoded == progress.done:
            return round(progress.encoded / seconds, 2)
        if self.parent is None or self.parent.manifest.fingerprint.model != self.template.fingerprint.model:
            return None
        return self.parent.manifest.passages_per_second


def new_manifest(settings: Settings, encoders: Encoders) -> Manifest:
    """The manifest of a base that these settings and models build, as far as it is known before."""
    return Manifest(
        generation="",
        created_at="",
        model=resolve_source(settings.model),
        embedder=resolve_source(settings.embedder),
        embedder_query_prompt=settings.embedder_query_prompt,
        embedder_passage_prompt=settings.embedder_passage_prompt,
        width=encoders.checkpoint.config.encoder.hidden_size,
        fingerprint=encoders.fingerprint,
        counts=NO_COUNTS,
        files={},
        parent=None,
        segments=[],
        next_ordinal=0,
        dense_index=settings.dense_index,
    )
