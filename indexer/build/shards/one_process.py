"""The shards of a base, one after the other in this process: shuffle the texts, build each shard, score them together.

What needs all shards at once is their first stage alone: see `finish_first_stage`.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from indexer.build.build import BuiltSegment, build_segment
from indexer.build.counts import BuildCounts
from indexer.build.first_stage import FOLDER
from indexer.build.plan import Reject
from indexer.build.shards.shuffle import planned_ordinals, read_texts, shuffle
from indexer.build.spec import BuildSpec, Ordinals
from indexer.corpus import CorpusLine, RejectedLine
from kalm_cache.first_stage import BM25Index, convert_shards
from kalm_cache.first_stage.bm25.bm25_index import FOLDER_NAME
from kalm_cache.generations.generation import segment_folder
from kalm_cache.generations.manifest import Manifest
from kalm_cache.generations.sharding import Shard
from kalm_cache.storage.passage_store import SEAL_FILE

PLAN_FOLDER = "plan"


def build_shards(
    spec: BuildSpec,
    lines: Iterable[CorpusLine | RejectedLine],
    building: Path,
    *,
    on_reject: Reject,
    on_progress: Callable[[BuildCounts], None],
) -> list[BuiltSegment]:
    """Build every shard of a new base in `building`; run again after an interruption, it goes on.

    Arguments and errors as in `build_segment`; `on_progress` gets the counts of all shards.
    """
    assert spec.template.sharding is not None
    plan = building / PLAN_FOLDER
    finished = [seal.parent for seal in sorted((building / "shards").glob(f"*/{SEAL_FILE}"))]
    with planned_ordinals(spec, plan, finished) as ordinals:
        shuffled = shuffle(spec, lines, plan, ordinals, on_reject=on_reject, on_progress=on_progress)
        done = [BuildCounts(rejected=shuffled.rejected)]
        segments: list[BuiltSegment] = []
        for shard, texts in zip(spec.template.sharding.shards(), shuffled.files, strict=True):
            segments.append(
                build_shard(
                    *(spec, shard, texts, shard_folder(building, shard), ordinals),
                    on_progress=lambda counts: on_progress(BuildCounts.total([*done, counts])),
                )
            )
            done.append(segments[-1].counts)
    finish_first_stage(spec.template, [segment.folder for segment in segments])
    shutil.rmtree(plan)
    segments[0].counts.rejected += shuffled.rejected
    return segments


def shard_folder(building: Path, shard: Shard) -> Path:
    """Where a generation has the segment of a shard."""
    return segment_folder(building, f"{shard.number:05d}")


def build_shard(
    spec: BuildSpec,
    shard: Shard,
    texts: Path,
    folder: Path,
    ordinals: Ordinals,
    *,
    on_progress: Callable[[BuildCounts], None],
) -> BuiltSegment:
    """Build one shard in `folder` from its texts alone. Its first stage is exact, and scored by itself.

    Args:
        spec: of the whole base.
        shard: which one.
        texts: its file, as `shuffle` wrote it.
        folder: as in `build_segment`.
        ordinals: where what is kept without being in the corpus gets one from, if it needs one.
        on_progress: as in `build_segment`.
    """
    exact = replace(spec.template, dense_index="flat")
    of_shard = replace(spec, template=exact, shard=shard, ordinals=ordinals, sources=spec.sources.of(shard))
    return build_segment(of_shard, read_texts(texts), folder, on_reject=lambda line: None, on_progress=on_progress)


def finish_first_stage(template: Manifest, shards: Sequence[Path]) -> None:
    """Make the first stages of all shards answer as that of one segment would.

    The dense indexes become those that suit all passages together, and BM25 scores by the statistics of all. Files are
    replaced, not changed.

    Raises:
        StoreError: a file is damaged, or cannot be written.
    """
    folders = [shard / FOLDER for shard in shards]
    convert_shards(folders, template.dense_index)
    if template.fingerprint.bm25:
        BM25Index.collection(folders).score([folder / FOLDER_NAME for folder in folders])
