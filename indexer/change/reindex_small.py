"""Reindex by a small change: one segment of what is new, and tombstones. What is stored is linked, not written anew.

Where little of a corpus changed, this costs what changed, here and in what has to be sent to other machines. BM25's
statistics stay those of the base, as for `add`, and deleted bytes stay until gc.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from indexer.build.counts import BuildCounts
from indexer.build.plan import Reject
from indexer.change.add_delete import AddReport, add_passages, delete_passages
from indexer.change.reindex import ReindexReport
from indexer.corpus import CorpusLine, RejectedLine
from indexer.models import Encoders
from kalm_cache.errors import IndexMismatchError
from kalm_cache.generations.generation import open_current
from kalm_cache.generations.segments import SegmentSet
from kalm_cache.languages import AUTO
from kalm_cache.settings import Settings
from kalm_cache.storage.passage_store import key_of


def run_small_reindex(
    lines: Iterable[CorpusLine | RejectedLine],
    index: Path,
    settings: Settings,
    encoders: Encoders,
    *,
    keep_missing: bool = False,
    spare_if_unreadable: bool = False,
    on_reject: Reject,
    on_progress: Callable[[BuildCounts], None],
) -> ReindexReport:
    """Bring an index to a corpus as `add` and `delete` do; arguments and errors as of `run_reindex`.

    `spare_if_unreadable`: nothing is deleted while the corpus has lines that cannot be read, such as one half written.

    Raises:
        IndexMismatchError: the settings are not those of the index.
    """
    started, before = time.perf_counter(), open_current(index).manifest
    if settings.passage_template != before.passage_template:
        raise IndexMismatchError(
            f"{index}: was built with passage_template {before.passage_template!r}; to change it, leave --incremental "
            "out"
        )
    if settings.language not in (AUTO, before.language) or settings.fold_diacritics != before.fold_diacritics:
        raise IndexMismatchError(
            f"{index}: was built with language {before.language!r}, fold_diacritics {before.fold_diacritics}; to "
            "change them, leave --incremental out"
        )
    if settings.metadata != before.metadata:
        raise IndexMismatchError(
            f"{index}: keeps metadata {before.metadata!r}, {settings.metadata!r} was asked for; to change it, leave "
            "--incremental out"
        )
    seen, unreadable = set[bytes](), 0

    def noted() -> Iterator[CorpusLine | RejectedLine]:
        nonlocal unreadable
        for line in lines:
            if isinstance(line, CorpusLine):
                seen.add(key_of(line.passage.doc_id))
            else:
                unreadable += 1
            yield line

    report = add_passages(noted(), index, settings, encoders, on_reject=on_reject, on_progress=on_progress)
    missing = _missing(index, seen)
    deleted = [] if keep_missing or (spare_if_unreadable and unreadable) else missing
    if deleted:
        delete_passages(deleted, index)
    return _report(index, report, len(deleted), len(missing) - len(deleted), time.perf_counter() - started)


def _missing(index: Path, seen: set[bytes]) -> list[str]:
    """The ids of what the index shows and the corpus does not have."""
    with SegmentSet(open_current(index)) as segments:
        return [doc_id for _, doc_id in segments.ordinals() if key_of(doc_id) not in seen]


def _report(index: Path, added: AddReport, deleted: int, kept: int, seconds: float) -> ReindexReport:
    manifest = open_current(index).manifest
    rate = manifest.passages_per_second
    full = None if not rate else manifest.counts.passages / rate
    return ReindexReport(
        index=str(index),
        generation=manifest.generation,
        dry_run=False,
        passages=manifest.counts.passages,
        reused=added.unchanged + added.updated + kept,
        recoded=0,
        encoded=added.encoded + added.resumed,
        resumed=added.resumed,
        deleted=deleted,
        kept=kept,
        rejected=added.rejected,
        why_encoded=None,
        bytes=sum(receipt.bytes for receipt in manifest.files.values()),
        seconds=round(seconds, 3),
        full_build_passages_per_second=None if not rate else round(rate, 2),
        full_build_seconds=None if full is None else round(full, 3),
        speedup=None if full is None else round(full / max(seconds, 1e-9), 1),
        unused_fields=added.unused_fields,
    )
