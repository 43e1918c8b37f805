"""Changing an index in tests, and everything that a reader finds in it afterwards."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from indexer.build.index_job import Encoders
from indexer.change.add_delete import AddReport, add_passages
from indexer.change.reindex import ReindexReport, run_reindex
from indexer.integrity.verify import verify_index
from kalm_cache import PassageIndex
from kalm_cache.generations.generation import open_current
from kalm_cache.generations.segments import SegmentSet
from kalm_cache.settings import Settings
from tests.indexes import lines_of

Texts = dict[str, str] | Iterable[tuple[str, str]]


def add(index: Path, settings: Settings, encoders: Encoders, texts: Texts, **options: Any) -> AddReport:
    options = {"on_reject": lambda line: None, "on_progress": lambda progress: None} | options
    return add_passages(lines_of(texts), index, settings, encoders, **options)


def reindex(index: Path, settings: Settings, encoders: Encoders, texts: Texts, **options: Any) -> ReindexReport:
    options = {"on_reject": lambda line: None, "on_progress": lambda progress: None} | options
    return run_reindex(lines_of(texts), index, settings, encoders, **options)


def texts_of(index: Path) -> dict[str, str | None]:
    """What the live generation shows."""
    with SegmentSet(open_current(index)) as segments:
        ids = [key.decode() for key in segments.keys()]  # noqa: SIM118 (not a dict)
        return dict(zip(ids, segments.texts(ids), strict=True))


def numbers_of(index: Path) -> dict[str, int]:
    with SegmentSet(open_current(index)) as segments:
        return {doc_id: ordinal for ordinal, doc_id in segments.ordinals()}


def payloads_of(index: Path) -> dict[str, bytes]:
    """The stored states of what the live generation shows."""
    with SegmentSet(open_current(index)) as segments, segments.snapshot() as snapshot:
        ids = [key.decode() for key in segments.keys()]  # noqa: SIM118 (not a dict)
        return {one: bytes(record.payload) for one, record in zip(ids, snapshot.records(ids), strict=True)}


def found(index: Path, query: str, k: int = 100) -> dict[str, list[str]]:
    """The ids that each mode of the first stage finds."""
    with PassageIndex.open(index, device="cpu") as opened:
        modes = opened.first_stage.modes
        return {
            mode: opened.store.doc_ids(opened.first_stage.search(query, k, mode).ordinals.tolist()) for mode in modes
        }


def scores_of(index: Path, query: str) -> dict[str, float]:
    """The BM25 score of every passage that a query finds, best first."""
    with PassageIndex.open(index, device="cpu") as opened:
        found = opened.first_stage.search(query, 100, "bm25")
        return dict(zip(opened.store.doc_ids(found.ordinals.tolist()), found.scores.tolist(), strict=True))


def bytes_of(index: Path) -> bytes:
    """Every byte of every file of an index folder."""
    return b"".join(path.read_bytes() for path in sorted(index.rglob("*")) if path.is_file())


def valid(index: Path) -> bool:
    report = verify_index(index)
    assert report.damaged == []
    return report.ok
