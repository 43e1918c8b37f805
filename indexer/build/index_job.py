"""The index job: settings and a corpus -> the next published generation. Resumable; one job an index at a time."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from indexer.build.base import BaseBuild, Outcome, new_manifest
from indexer.build.intake import Reject
from indexer.build.models import Encoders, load_encoders
from indexer.build.segment import Progress
from indexer.corpus import CorpusLine, RejectedLine
from indexer.reuse.sources import open_sources
from kalm_cache.errors import KalmCacheError
from kalm_cache.generations.build_folders import recover, resume_or_begin
from kalm_cache.generations.current import CURRENT
from kalm_cache.generations.fingerprint import Fingerprint
from kalm_cache.generations.generation import Generation, open_current, open_generation, published_names
from kalm_cache.settings import Settings
from kalm_cache.storage.durable import disk_errors
from kalm_cache.storage.locks import build_lock

__all__ = ["Encoders", "IndexReport", "is_built", "load_encoders", "run_index_job"]
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class IndexReport:
    """What a finished job did. `encoded + resumed + copied` = `passages`; `tokens` counts the whole generation."""

    index: str
    generation: str
    passages: int
    tokens: int
    truncated: int
    encoded: int
    resumed: int
    copied: int
    deleted: int
    rejected: int
    payload_bytes: int
    file_bytes: int
    seconds: float


def is_built(index: Path, fingerprint: Fingerprint) -> bool:
    """Whether the live generation of `index` was built with this fingerprint; of which corpus, it cannot say."""
    try:
        return open_current(index).manifest.fingerprint == fingerprint
    except KalmCacheError:  # nothing there, or nothing that could be used
        return False


def run_index_job(
    lines: Iterable[CorpusLine | RejectedLine],
    index: Path,
    settings: Settings,
    encoders: Encoders,
    *,
    on_reject: Reject,
    on_progress: Callable[[Progress], None],
) -> IndexReport:
    """Build and publish the next generation of `index` from a corpus, read once from its beginning.

    An unfinished build with the same fingerprint is continued. Records of the live generation, or of the newest with
    the same fingerprint, are copied as bytes where the text is the same.

    Raises:
        IndexLockedError: another job is building here.
        IndexMismatchError: the unfinished build in the folder has another fingerprint.
        StoreError: the disk is full or cannot be written; what is stored stays.
    """
    started = time.perf_counter()
    with build_lock(index), disk_errors(index), ExitStack() as stack:
        recover(index)
        building = resume_or_begin(index, "index", encoders.fingerprint)
        build = BaseBuild(
            index=index,
            operation="index",
            template=new_manifest(settings, encoders),
            parent=live_or_none(index),
            sources=open_sources(
                _newest_alike(index, encoders.fingerprint), encoders.fingerprint, encoders.codec, stack
            ),
            embedder=encoders.embedder,
            passage_side=encoders.passage_side,
            codec=encoders.codec,
            batch_tokens=settings.batch_tokens,
        )
        outcome = build.run(lines, building, on_reject=on_reject, on_progress=on_progress)
    return _report(index, outcome, time.perf_counter() - started)


def live_or_none(index: Path) -> Generation | None:
    """The live generation, if there is one that one could go back to."""
    try:
        return open_current(index)
    except KalmCacheError as exc:
        if (index / CURRENT).exists():
            logger.warning("nothing is copied from the live generation: %s", exc)
        return None


def _newest_alike(index: Path, fingerprint: Fingerprint) -> Generation | None:
    """The live generation if it has this fingerprint, else the newest that has."""
    live = live_or_none(index)
    if live is not None and live.manifest.fingerprint == fingerprint:
        return live
    for name in reversed(published_names(index)):
        try:
            generation = open_generation(index / "generations" / name)
        except KalmCacheError as exc:
            logger.warning("nothing is copied from generation %s: %s", name, exc)
            continue
        if generation.manifest.fingerprint == fingerprint:
            return generation
    return None


def _report(index: Path, outcome: Outcome, seconds: float) -> IndexReport:
    manifest, progress = outcome.generation.manifest, outcome.progress
    return IndexReport(
        index=str(index),
        generation=manifest.generation,
        passages=manifest.counts.passages,
        tokens=manifest.counts.tokens,
        truncated=manifest.counts.truncated,
        encoded=progress.encoded,
        resumed=progress.resumed,
        copied=progress.copied,
        deleted=progress.deleted,
        rejected=progress.rejected,
        payload_bytes=manifest.counts.payload_bytes,
        file_bytes=sum(receipt.bytes for receipt in manifest.files.values()),
        seconds=round(seconds, 3),
    )
