"""A damaged generation -> the next one, of all that is valid, and of what can be encoded again from stored texts.

What is neither is set aside: the new generation does not have it, `quarantine.json` in it lists it, and the damaged
generation is left as it is, with whatever bytes are in it, until gc.
"""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

from indexer.build.build import publish_base
from indexer.build.counts import BuildCounts
from indexer.build.shards.base import build_segments
from indexer.build.spec import BuildSpec
from indexer.corpus import CorpusLine
from indexer.integrity.salvage import salvage
from indexer.models import BuildModels, batch_tokens_of, load_encoders_of
from indexer.reuse.origins import SealedSegment
from indexer.reuse.reusable_segments import ReusableSegments
from indexer.reuse.source_columns import source_columns
from indexer.reuse.source_first_stage import source_postings, source_vectors
from indexer.reuse.stored_embedder import StoredEmbedder
from kalm_cache.codec import get_codec
from kalm_cache.errors import KalmCacheError, StoreError
from kalm_cache.generations.build_folders import SALVAGE, begin, locked_live_generation
from kalm_cache.generations.generation import BUILDING, Generation
from kalm_cache.generations.tombstones import Tombstones
from kalm_cache.metadata import Value
from kalm_cache.passage import Passage
from kalm_cache.settings import Settings
from kalm_cache.storage.passage_store import PASSAGES_FILE, SEAL_FILE, STATES_FILE, PassageStore

QUARANTINE_FILE = "quarantine.json"
logger = logging.getLogger(__name__)


@dataclass(slots=True)
class RepairReport:
    """What was saved. `quarantined` ids are damaged, and no text of them is at hand; `nameless` have lost even that.

    `without_metadata` counts stored passages whose metadata was damaged, and is gone: `add` and `reindex` restore it.
    """

    index: str
    generation: str
    damaged_generation: str
    passages: int = 0
    copied: int = 0
    encoded: int = 0
    quarantined: list[str] = field(default_factory=list)
    nameless: int = 0
    without_metadata: int = 0
    seconds: float = 0.0


@dataclass(slots=True)
class _Saved:
    """What can be taken from a generation's segments."""

    segments: list[SealedSegment] = field(default_factory=list)
    texts: dict[str, str] = field(default_factory=dict)
    metadata: dict[str, Mapping[str, Value]] = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)
    nameless: int = 0
    without_metadata: int = 0


def repair_index(index: Path, overrides: Settings) -> RepairReport:
    """Publish a generation of all that can be saved of the live one.

    Raises:
        IndexNotFoundError: nothing has been published here.
        IndexLockedError: another job is changing the index.
        StoreError: the manifest or the list of tombstones is damaged (go back, or reindex the corpus), or the disk
            is full or cannot be written.
        UsageError: the index keeps no texts, and its first stage is damaged, or an earlier version's.
    """
    started = time.perf_counter()
    with locked_live_generation(index) as live, ExitStack() as stack:
        report = RepairReport(str(index), live.name, live.name)
        tombstones = live.tombstones()
        building = begin(index, "repair")
        workspace = building.with_name(building.name.replace(BUILDING, SALVAGE))
        stack.callback(shutil.rmtree, workspace, ignore_errors=True)
        saved = _save(live, tombstones, workspace, stack)
        report.quarantined, report.nameless = saved.lost, saved.nameless
        report.without_metadata = saved.without_metadata
        models, batch_tokens = _models(live, saved, overrides)
        spec = BuildSpec(
            index=index,
            operation="repair",
            template=live.manifest,
            parent=live,
            models=models,
            batch_tokens=batch_tokens,
            sources=ReusableSegments(copied=saved.segments, every=saved.segments),
            keep_missing=True,
            on_lost=report.quarantined.append,
            columns=dict(live.manifest.columns),
        )
        _rebuild(spec, building, saved, report)
    report.seconds = round(time.perf_counter() - started, 3)
    return report


def _rebuild(spec: BuildSpec, building: Path, saved: _Saved, report: RepairReport) -> None:
    lines = (
        CorpusLine(
            Passage(doc_id, text), f"{report.damaged_generation}:{doc_id}", metadata=saved.metadata.get(doc_id, {})
        )
        for doc_id, text in saved.texts.items()
    )
    segments = build_segments(spec, lines, building, on_reject=lambda line: None, on_progress=lambda counts: None)
    _write_quarantine(building, report)
    repaired, counts = publish_base(spec, building, segments), BuildCounts.total(one.counts for one in segments)
    report.generation, report.passages = repaired.name, repaired.manifest.counts.passages
    report.copied, report.encoded = counts.copied, counts.encoded


def _save(live: Generation, tombstones: Tombstones, workspace: Path, stack: ExitStack) -> _Saved:
    saved = _Saved()
    for part in live.parts():
        gone = frozenset(live.tombstones_of(part.manifest.segments[0], tombstones).keys)
        vectors = source_vectors(part, inexact=not live.manifest.fingerprint.store_text)
        postings = source_postings(part, live.manifest.analysis)
        columns = source_columns(part)
        if isinstance(columns, StoreError):
            logger.warning("the metadata of %s is damaged, and is left out: %s", part.segment, columns)
            columns, lost = None, part.manifest.counts.passages - len(gone)
            saved.without_metadata += lost
        if _is_valid(part):
            store = stack.enter_context(PassageStore(part.segment))
            saved.segments.append(SealedSegment(store, vectors, gone, postings, columns=columns))
            continue
        logger.warning("%s is damaged: searching it for what is valid", part.segment)
        salvaged = salvage(part, gone, workspace / part.segment_name)
        store = stack.enter_context(PassageStore(workspace / part.segment_name))
        segment = SealedSegment(store, vectors, postings=postings, columns=columns)
        saved.segments.append(segment)
        metas, schema = list(salvaged.metas.values()), dict(live.manifest.columns)
        saved.metadata |= dict(zip(salvaged.metas, segment.metadata(metas, schema), strict=True))
        saved.texts |= salvaged.texts
        saved.lost += salvaged.lost
        saved.nameless += salvaged.nameless
    return saved


def _is_valid(part: Generation) -> bool:
    """Whether the store of a segment is, file by file, what was published."""
    for name in (STATES_FILE, PASSAGES_FILE, SEAL_FILE):
        path = part.segment / name
        receipt = part.manifest.files.get(path.relative_to(part.folder).as_posix())
        try:
            if receipt is None or not receipt.has_digest_of(path):
                return False
        except OSError:
            return False
    return True


def _models(live: Generation, saved: _Saved, overrides: Settings) -> tuple[BuildModels, int]:
    """What to compute with, and the tokens of a batch: the encoder is loaded only if something must be encoded."""
    if not saved.texts and all(segment.vectors is not None for segment in saved.segments):
        with suppress(KalmCacheError):  # the dense index may be damaged
            models = BuildModels((), StoredEmbedder(live), get_codec(live.manifest.fingerprint.codec))
            return models, 1  # nothing is encoded
    settings, encoders = load_encoders_of(live.manifest, overrides)
    return encoders.build_models, batch_tokens_of(settings, encoders.passage_side)


def _write_quarantine(building: Path, report: RepairReport) -> None:
    if report.quarantined or report.nameless:
        listed = {
            "generation": report.damaged_generation,
            "passages": sorted(report.quarantined),
            "nameless": report.nameless,
        }
        (building / QUARANTINE_FILE).write_text(json.dumps(listed, indent=2) + "\n", "utf-8")
