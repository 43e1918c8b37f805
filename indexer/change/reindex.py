"""Reindex: a corpus against the live generation -> what can stay, what must be encoded, what goes; then the next one.

What stays is copied as bytes. What is stored in another form than is wanted now is recoded where that is exact (see
recode.py), and encoded again where it is not. All segments end up in one base.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from indexer.build.batching import batched
from indexer.build.counts import BuildCounts
from indexer.build.first_stage import SCAN
from indexer.build.plan import PlannedPassage, Reject, accepted_windows, plan_window
from indexer.build.shards.base import build_base
from indexer.build.spec import BuildSpec, new_manifest
from indexer.build.unfinished.accepted_passages import ACCEPTED_FILE, AcceptedPassages
from indexer.corpus import CorpusLine, RejectedLine, TypedMetadata, UnusedFields
from indexer.corpus.languages import with_language
from indexer.models import Encoders, batch_tokens_of
from indexer.reuse.reusable_segments import ReusableSegments, open_sources, require_keepable
from kalm_cache.errors import UsageError
from kalm_cache.generations.build_folders import locked_live_generation, resume_or_begin
from kalm_cache.generations.fingerprint import Fingerprint
from kalm_cache.generations.generation import Generation, open_current
from kalm_cache.generations.manifest import Manifest
from kalm_cache.generations.sharding import Sharding
from kalm_cache.settings import Settings


@dataclass(frozen=True, slots=True)
class ReindexReport:
    """What a reindex did, or would do (`dry_run`): `reused + recoded + encoded` = `passages`.

    `encoded` includes `resumed`, what an interrupted run had encoded. `deleted` ids are gone, `kept` ones are not in
    the corpus and stay. `why_encoded` says why nothing that is stored could be used, where that is so. `bytes` are
    those of the generation's files. `speedup` compares with a full build at `full_build_passages_per_second`, which
    was measured when all was encoded last, or else follows from what this run encoded; `None` where neither is known.
    `unused_fields`: how many lines of the corpus have each field that is no part of a passage.
    """

    index: str
    generation: str
    dry_run: bool
    passages: int
    reused: int
    recoded: int
    encoded: int
    resumed: int
    deleted: int
    kept: int
    rejected: int
    why_encoded: str | None
    bytes: int
    seconds: float
    full_build_passages_per_second: float | None
    full_build_seconds: float | None
    speedup: float | None
    unused_fields: dict[str, int]


def run_reindex(
    lines: Iterable[CorpusLine | RejectedLine],
    index: Path,
    settings: Settings,
    encoders: Encoders,
    *,
    keep_missing: bool = False,
    on_reject: Reject,
    on_progress: Callable[[BuildCounts], None],
    shards: int | None = None,
) -> ReindexReport:
    """Bring an index to a corpus, read once from its beginning, and to these settings; publish the next generation.

    Interrupted, it goes on where it stopped when called again. `keep_missing`: passages that the corpus does not have
    stay; else they are gone, as if deleted. `shards`: how many the base gets; `None` = as many as it has.

    Raises:
        IndexNotFoundError: nothing has been published here.
        IndexLockedError: another job is changing the index.
        IndexMismatchError: an unfinished reindex was started with other settings.
        UsageError: passages should be kept that cannot be made anew without their texts.
        StoreError: another operation's unfinished build is in the way, or the disk is full or cannot be written.
    """
    started, unused = time.perf_counter(), UnusedFields()
    with locked_live_generation(index) as stored, ExitStack() as stack:
        live = stored.updated(encoders.checkpoint)
        settings, lines = with_language(lines, settings)
        sharding = live.manifest.sharding if shards is None else Sharding(shards)
        template = new_manifest(settings, encoders, sharding, live)
        sources = open_sources(live, encoders.fingerprint, encoders.codec, stack, analysis=template.analysis)
        metadata = TypedMetadata(settings.metadata, live.manifest.columns)
        if keep_missing:
            _check_texts(live, sources, encoders.fingerprint)
        building = resume_or_begin(index, "reindex", encoders.fingerprint, sharding, checkpoint=encoders.checkpoint)
        spec = BuildSpec(
            index=index,
            operation="reindex",
            template=template,
            parent=live,
            models=encoders.build_models,
            batch_tokens=batch_tokens_of(settings, encoders.passage_side),
            sources=sources,
            keep_missing=keep_missing,
            columns=metadata.schema,
        )
        generation, counts = build_base(
            spec, metadata.watch(unused.watch(lines)), building, on_reject=on_reject, on_progress=on_progress
        )
    seconds = time.perf_counter() - started
    return reindex_report(index, generation.manifest, counts, sources.problem, unused.counts(), seconds)


def plan_reindex(
    lines: Iterable[CorpusLine | RejectedLine],
    index: Path,
    encoders: Encoders,
    *,
    metadata: str = "",
    keep_missing: bool = False,
    on_reject: Reject,
) -> ReindexReport:
    """What `run_reindex` would do, without doing it: nothing in the index folder changes. `metadata`: the setting."""
    started, rejected, unused = time.perf_counter(), 0, UnusedFields()
    live = open_current(index).updated(encoders.checkpoint)

    def reject(line: RejectedLine) -> None:
        nonlocal rejected
        rejected += 1
        on_reject(line)

    with ExitStack() as stack:
        sources = open_sources(*(live, encoders.fingerprint, encoders.codec, stack), analysis=live.manifest.analysis)
        if keep_missing:
            _check_texts(live, sources, encoders.fingerprint)
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        accepted = stack.enter_context(AcceptedPassages(Path(folder) / ACCEPTED_FILE))
        dry_run, typed = _DryRun(sources), TypedMetadata(metadata, live.manifest.columns)
        for window in accepted_windows(typed.watch(unused.watch(lines)), accepted, reject):
            dry_run.count([PlannedPassage.of(line) for line in window])
        dry_run.count_missing(accepted)
    report = dry_run.report(index, live, rejected, keep_missing, time.perf_counter() - started)
    return replace(report, unused_fields=unused.counts())


class _DryRun:
    """Counts what would become of each passage; `missing`: what the corpus does not have."""

    def __init__(self, sources: ReusableSegments) -> None:
        self._sources = sources
        self.reused = self.recoded = self.encoded = self.missing = 0

    def count(self, wanted: list[PlannedPassage]) -> None:
        """Count a window of the corpus."""
        window = plan_window(wanted, enumerate(self._sources.copied, start=1), self._sources.recoded)
        self.reused += sum(len(stored) for _, stored in window.reused)
        for place, stored in window.recoded:
            if self._sources.recoded[place].recoding.changes_states:
                self.recoded += len(stored)
            else:
                self.reused += len(stored)
        self.encoded += len(window.to_encode)

    def count_missing(self, accepted: AcceptedPassages) -> None:
        """Count what the corpus does not have."""
        for segment in self._sources.every:
            for keys in batched(segment.keys(), SCAN):
                self.missing += len(accepted.unseen(keys))

    def report(self, index: Path, live: Generation, rejected: int, keep: bool, seconds: float) -> ReindexReport:
        reused, recoded, encoded = self.reused, self.recoded, self.encoded
        if keep and self._sources.copied:
            reused += self.missing
        elif keep and self._sources.recoded:
            recoded += self.missing
        elif keep:
            encoded += self.missing
        passages, rate = reused + recoded + encoded, live.manifest.passages_per_second
        return ReindexReport(
            index=str(index),
            generation=live.name,
            dry_run=True,
            passages=passages,
            reused=reused,
            recoded=recoded,
            encoded=encoded,
            resumed=0,
            deleted=0 if keep else self.missing,
            kept=self.missing if keep else 0,
            rejected=rejected,
            why_encoded=self._sources.problem,
            bytes=0,
            seconds=round(seconds, 3),
            full_build_passages_per_second=rate,
            full_build_seconds=None if rate is None else round(passages / rate, 1),
            speedup=None,
            unused_fields={},
        )


def _check_texts(live: Generation, sources: ReusableSegments, wanted: Fingerprint) -> None:
    """Raises `UsageError` when something can only be made of texts that the index does not keep."""
    built = live.manifest.fingerprint
    if built.store_text:
        return
    needs_texts = wanted.store_text or built.embedder != wanted.embedder or (wanted.bm25 and not built.bm25)
    if needs_texts or sources.problem is not None:
        raise UsageError(
            f"{live.folder}: keeps no texts, and without them what CORPUS does not have gets no states of another "
            "model or chunk size, no vectors of another embedder, no BM25 index where there is none, and no texts; "
            "give the whole corpus and --delete-missing"
        )
    require_keepable(live, sources, wanted)


def reindex_report(
    index: Path,
    manifest: Manifest,
    counts: BuildCounts,
    why_encoded: str | None,
    unused_fields: dict[str, int],
    seconds: float,
) -> ReindexReport:
    """What a reindex that published this generation did; fields as in `ReindexReport`."""
    passages = manifest.counts.passages
    rate = manifest.passages_per_second or _rate_of(counts)
    full = None if not rate else passages / rate
    return ReindexReport(
        index=str(index),
        generation=manifest.generation,
        dry_run=False,
        passages=passages,
        reused=counts.copied,
        recoded=counts.recoded,
        encoded=counts.encoded + counts.resumed,
        resumed=counts.resumed,
        deleted=manifest.deleted,
        kept=counts.kept,
        rejected=counts.rejected,
        why_encoded=why_encoded,
        bytes=sum(receipt.bytes for receipt in manifest.files.values()),
        seconds=round(seconds, 3),
        full_build_passages_per_second=None if not rate else round(rate, 2),
        full_build_seconds=None if full is None else round(full, 3),
        speedup=None if full is None else round(full / max(seconds, 1e-9), 1),
        unused_fields=unused_fields,
    )


def _rate_of(counts: BuildCounts) -> float | None:
    """Passages a second of encoding alone; a full build does more, so that the speedup is rather understated."""
    return counts.encoded / counts.encoding_seconds if counts.encoded else None
