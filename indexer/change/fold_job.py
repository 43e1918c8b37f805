"""`kalm-cache fold`: all the folding that is due, whatever it takes; or everything into one base."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from indexer.build.counts import BuildCounts
from indexer.change.fold import build_folded, choose, foldable, put_in_place
from indexer.change.gc import compact
from indexer.change.publish_on_parent import assemble
from indexer.change.retention import retire
from kalm_cache.generations.build_folders import begin, locked_live_generation
from kalm_cache.generations.generation import Generation, require_valid
from kalm_cache.generations.publish import name_for, now, publish


@dataclass(frozen=True, slots=True)
class FoldReport:
    """What was folded. `left_out` counts stored passages that were not shown, and are in no segment any more.

    `generation` is a new one if anything was folded; `passages` are those that it shows.
    """

    index: str
    generation: str
    passages: int
    segments_before: int
    segments: int
    left_out: int
    seconds: float


def run_fold(index: Path, *, everything: bool = False, on_progress: Callable[[BuildCounts], None]) -> FoldReport:
    """Fold small segments until every tier is below its limit, and publish that. Searches answer as before.

    Killed, it leaves the index as it was, and is run again. `everything`: into one base, for which BM25's statistics
    are computed anew, as by gc and reindex; the scores of its lists change with them.

    Raises:
        IndexNotFoundError: nothing has been published here.
        IndexLockedError: another job is changing the index.
        UsageError: everything should be folded, and neither texts nor a first stage are there to take it from.
        StoreError: a segment is damaged, or the disk is full or cannot be written.
    """
    started = time.perf_counter()
    with locked_live_generation(index) as before:
        require_valid(before)
        left_out = len(before.tombstones())
        if not everything:
            live = _fold_tiers(index, before, on_progress)
        elif len(before.manifest.segments) > 1 or left_out:
            live = compact(index, before, "fold", on_progress)
        else:
            live = before
        left_out -= len(live.tombstones())
        retire(index, live)
    return FoldReport(
        index=str(index),
        generation=live.name,
        passages=live.manifest.counts.passages,
        segments_before=len(before.manifest.segments),
        segments=len(live.manifest.segments),
        left_out=left_out,
        seconds=round(time.perf_counter() - started, 3),
    )


def _fold_tiers(index: Path, live: Generation, on_progress: Callable[[BuildCounts], None]) -> Generation:
    if choose(foldable(live)) is None:
        return live
    building = begin(index, "fold")
    manifest = assemble(building, live, live.tombstones())
    while (span := choose(foldable(Generation(building, manifest)))) is not None:
        folded = build_folded(index, building, manifest, span, on_progress)
        manifest = put_in_place(building, manifest, span, folded)
    name = name_for(index, building)
    manifest = replace(manifest, generation=name, created_at=now(), parent=live.name, operation="fold", deleted=0)
    return publish(index, building, manifest)
