"""The index job: settings and a corpus -> the next published generation. Resumable; one job an index at a time."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from indexer.corpus import CorpusLine, RejectedLine
from indexer.intake import Reject
from indexer.shard import Progress, ShardBuilder
from kalm_cache.codec import get_codec
from kalm_cache.durable import write_atomically
from kalm_cache.errors import IndexNotFoundError, StoreError
from kalm_cache.fingerprint import Fingerprint, require_equal
from kalm_cache.first_stage import Embedder, load_embedder
from kalm_cache.generation import (
    BUILDING,
    Counts,
    Generation,
    Manifest,
    build_lock,
    building_folder,
    open_current,
    publish,
    receipts,
    shard_folder,
)
from kalm_cache.model.checkpoint import Checkpoint, open_checkpoint
from kalm_cache.model.prompts import PASSAGE_TEMPLATE
from kalm_cache.model.runtime import dtype_name, resolve_device, resolve_dtype
from kalm_cache.passage_side import PassageSide, load_passage_side
from kalm_cache.settings import Settings
from kalm_cache.store import PassageStore

logger = logging.getLogger(__name__)
BUILD_FILE = "build.json"


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


@dataclass(frozen=True, slots=True)
class Encoders:
    """The models of a job, loaded once, and the fingerprint of what they will write."""

    checkpoint: Checkpoint
    passage_side: PassageSide
    embedder: Embedder
    fingerprint: Fingerprint


def load_encoders(settings: Settings) -> Encoders:
    """Load the passage side and the embedder that `settings` name.

    Raises:
        CheckpointError: a model is missing or incomplete.
        UsageError: an unknown codec, device or dtype.
    """
    codec = get_codec(settings.codec)  # first: a typing error should not cost a model's loading
    checkpoint = open_checkpoint(settings.model)
    device = resolve_device(settings.device)
    dtype = resolve_dtype(settings.dtype, device)
    passage_side = load_passage_side(
        checkpoint, device=device, dtype=dtype, max_length=settings.max_length, chunk_size=settings.chunk_size
    )
    embedder = load_embedder(
        settings.embedder,
        query_prompt=settings.embedder_query_prompt,
        passage_prompt=settings.embedder_passage_prompt,
    )
    fingerprint = Fingerprint(
        model=checkpoint.digest(),
        passage_template=PASSAGE_TEMPLATE,
        max_length=settings.max_length,
        chunk_size=settings.chunk_size,
        dtype=dtype_name(dtype),
        codec=codec.name,
        embedder=embedder.digest,
        bm25=settings.bm25,
        store_text=settings.store_text,
    )
    return Encoders(checkpoint, passage_side, embedder, fingerprint)


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

    An unfinished build with the same fingerprint is continued. Records of the live generation with the same
    fingerprint and text are copied as bytes.

    Raises:
        IndexLockedError: another job is building here.
        IndexMismatchError: the unfinished build in the folder has another fingerprint.
        StoreError: the disk is full or cannot be written; what is stored stays.
    """
    started = time.perf_counter()
    with build_lock(index):
        building = building_folder(index)
        _claim(building, encoders.fingerprint)
        parent = _live_generation(index)
        progress, counts = _build_shard(lines, building, settings, encoders, parent, on_reject, on_progress)
        (building / BUILD_FILE).unlink()
        manifest = Manifest(
            generation=building.name.removesuffix(BUILDING),
            created_at=datetime.now(UTC).isoformat(timespec="seconds"),
            model=_where(settings.model),
            embedder=_where(settings.embedder),
            embedder_query_prompt=settings.embedder_query_prompt,
            embedder_passage_prompt=settings.embedder_passage_prompt,
            width=encoders.checkpoint.config.encoder.hidden_size,
            fingerprint=encoders.fingerprint,
            counts=counts,
            files=receipts(building),
            parent=None if parent is None else parent.manifest.generation,
        )
        generation = publish(index, building, manifest)
    return _report(index, generation, progress, time.perf_counter() - started)


def _build_shard(
    lines: Iterable[CorpusLine | RejectedLine],
    building: Path,
    settings: Settings,
    encoders: Encoders,
    parent: Generation | None,
    on_reject: Reject,
    on_progress: Callable[[Progress], None],
) -> tuple[Progress, Counts]:
    with ExitStack() as stack:
        reusable = parent is not None and parent.manifest.fingerprint == encoders.fingerprint
        builder = ShardBuilder(
            passage_side=encoders.passage_side,
            embedder=encoders.embedder,
            codec=get_codec(encoders.fingerprint.codec),
            batch_tokens=settings.batch_tokens,
            store_text=settings.store_text,
            bm25=settings.bm25,
            parent=stack.enter_context(PassageStore(parent.shard / "passages.lmdb")) if parent and reusable else None,
        )
        return builder.build(lines, shard_folder(building), on_reject=on_reject, on_progress=on_progress)


def _claim(building: Path, fingerprint: Fingerprint) -> None:
    """Start a build folder, or check that the unfinished one in it was started with the same settings."""
    build_file = building / BUILD_FILE
    if build_file.is_file():
        try:
            started_with = Fingerprint(**json.loads(build_file.read_text("utf-8")))
        except (ValueError, TypeError) as exc:
            raise StoreError(f"{build_file}: not readable: {exc}; remove {building} to start over") from exc
        way_out = f"Run with the same settings to finish it, or remove {building} to start over."
        require_equal(started_with, fingerprint, f"the unfinished build {building}", way_out)
        logger.info("resuming the unfinished build %s", building)
    else:
        building.mkdir(parents=True, exist_ok=True)
        write_atomically(build_file, (json.dumps(asdict(fingerprint), indent=2) + "\n").encode("utf-8"))


def _live_generation(index: Path) -> Generation | None:
    try:
        return open_current(index)
    except IndexNotFoundError:
        return None


def _where(name: str) -> str:
    """A model's name as the manifest keeps it: a folder becomes absolute, so that the index opens from anywhere."""
    return str(Path(name).resolve()) if Path(name).is_dir() else name


def _report(index: Path, generation: Generation, progress: Progress, seconds: float) -> IndexReport:
    manifest = generation.manifest
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
