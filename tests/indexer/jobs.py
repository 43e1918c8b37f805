"""What the tests of index jobs share."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import faiss
import pytest

from indexer.build.counts import BuildCounts
from indexer.build.index_job import Encoders, run_index_job
from indexer.build.unfinished.resume_log import RESUME_LOG_FILE, ResumeLog
from indexer.integrity.verify import verify_index
from kalm_cache.generations.generation import open_current
from kalm_cache.settings import Settings
from kalm_cache.storage.record import Record
from tests import stores
from tests.indexes import lines_of
from tests.stores import read_contents
from tests.texts import long_text

LONGER = {f"p{i}": long_text(5 + 7 * i % 40, seed=100 + i) for i in range(30)}  # four windows of eight


def content(index: Path) -> dict[str, object]:
    """Everything that a reader can find in the live generation, byte by byte where bytes are kept."""
    segment = open_current(index).segment
    dense = faiss.read_index(str(segment / "first_stage" / "dense.faiss"))
    bm25 = {path.name: path.read_bytes() for path in (segment / "first_stage" / "bm25").iterdir()}
    return asdict(read_contents(segment)) | {
        "dense numbers": faiss.vector_to_array(dense.id_map).tolist(),
        "dense vectors": dense.index.reconstruct_n(0, dense.ntotal).tolist(),
        "bm25": bm25,
    }


def records_of(index: Path) -> dict[str, Record]:
    return stores.records_of(open_current(index).segment)


def stored_ids(index: Path) -> set[str]:
    """What the unfinished build of an index has encoded."""
    (building,) = (index / "generations").glob("*.building")
    segment = building / "shards" / "00000"
    if not (segment / RESUME_LOG_FILE).exists():  # sealed, and not published
        return set(stores.records_of(segment))
    with ResumeLog(segment / RESUME_LOG_FILE) as log:
        return {key.decode() for key in log.keys()}  # noqa: SIM118 (not a dict)


def passing(index: Path) -> bool:
    report = verify_index(index)
    assert report.damaged == []
    return report.ok


def interrupt(index: Path, settings: Settings, encoders: Encoders, texts: dict[str, str], after: int) -> None:
    """Leave an unfinished build with the first `after` passages or a few more."""

    def stop(progress: BuildCounts) -> None:
        if progress.done >= after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_index_job(lines_of(texts), index, settings, encoders, on_reject=print, on_progress=stop)
