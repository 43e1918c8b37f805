"""A new base: one segment, or as many shards as its spec says; built and published by whoever holds the build lock."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from indexer.build.build import BuiltSegment, build_segment, publish_base
from indexer.build.counts import BuildCounts
from indexer.build.plan import Reject
from indexer.build.shards.one_process import build_shards
from indexer.build.spec import BuildSpec
from indexer.corpus import CorpusLine, RejectedLine
from kalm_cache.generations.generation import Generation, segment_folder


def build_base(
    spec: BuildSpec,
    lines: Iterable[CorpusLine | RejectedLine],
    building: Path,
    *,
    on_reject: Reject,
    on_progress: Callable[[BuildCounts], None],
) -> tuple[Generation, BuildCounts]:
    """Build all segments of a new base in `building`, and publish it; arguments and errors as in `build_segment`."""
    segments = build_segments(spec, lines, building, on_reject=on_reject, on_progress=on_progress)
    return publish_base(spec, building, segments), BuildCounts.total(segment.counts for segment in segments)


def build_segments(
    spec: BuildSpec,
    lines: Iterable[CorpusLine | RejectedLine],
    building: Path,
    *,
    on_reject: Reject,
    on_progress: Callable[[BuildCounts], None],
) -> list[BuiltSegment]:
    """Build the segments of a new base in `building`; arguments and errors as in `build_segment`."""
    if spec.template.sharding is not None:
        return build_shards(spec, lines, building, on_reject=on_reject, on_progress=on_progress)
    folder = segment_folder(building)
    return [build_segment(spec, lines, folder, on_reject=on_reject, on_progress=on_progress)]
