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
from kalm_cache.errors import KalmCacheError, StoreError
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
    open_generation,
    publish,
    receipts,
    require_whole,
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
BUNDLED = ("tiny", "static")  # never a folder of that name


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

    An unfinished build with the same fingerprint is continued. Records of the newest generation with the same
    fingerprint are copied as bytes where the text is the same.

    Raises:
        IndexLockedError: another job is building here.
        IndexMismatchError: the unfinished build in the folder has another fingerprint.
        StoreError: the disk is full or cannot be written; what is stored stays.
    """
    started = time.perf_counter()
    with build_lock(index):
        building = building_folder(index)
        source = _source(index, _claim(building, encoders.fingerprint))
        progress, counts = _build_shard(lines, building, settings, encoders, source, on_reject, on_progress)
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
            parent=_live_name(index),
        )
        generation = publish(index, building, manifest)
    return _report(index, generation, progress, time.perf_counter() - started)


def _build_shard(
    lines: Iterable[CorpusLine | RejectedLine],
    building: Path,
    settings: Settings,
    encoders: Encoders,
    source: Generation | None,
    on_reject: Reject,
    on_progress: Callable[[Progress], None],
) -> tuple[Progress, Counts]:
    with ExitStack() as stack:
        builder = ShardBuilder(
            passage_side=encoders.passage_side,
            embedder=encoders.embedder,
            codec=get_codec(encoders.fingerprint.codec),
            batch_tokens=settings.batch_tokens,
            store_text=settings.store_text,
            bm25=settings.bm25,
            source=stack.enter_context(PassageStore(source.shard / "passages.lmdb")) if source else None,
        )
        return builder.build(lines, shard_folder(building), on_reject=on_reject, on_progress=on_progress)


def _claim(building: Path, fingerprint: Fingerprint) -> str | None:
    """Start a build folder, or check that the unfinished one in it was started with the same settings.

    Its build file is published with the rest: without it, nothing would tell what unfinished records were made with.

    Returns:
        The generation whose records this build copies; it stays the same one until the build is published, since the
        numbers of copied passages are that generation's.
    """
    build_file = building / BUILD_FILE
    for leftover in building.glob("*.tmp"):
        leftover.unlink()
    if build_file.is_file():
        return _resume(build_file, fingerprint)
    if (building / "shards").exists():
        raise StoreError(f"{building}: an unfinished build without {BUILD_FILE}; remove it to start over")
    source = _newest_alike(building.parent, fingerprint)
    building.mkdir(parents=True, exist_ok=True)
    started = {"fingerprint": asdict(fingerprint), "source": source}
    write_atomically(build_file, (json.dumps(started, indent=2) + "\n").encode("utf-8"))
    return source


def _resume(build_file: Path, fingerprint: Fingerprint) -> str | None:
    building = build_file.parent
    try:
        started = json.loads(build_file.read_text("utf-8"))
        started_with, source = Fingerprint(**started["fingerprint"]), started["source"]
    except (ValueError, TypeError, KeyError) as exc:
        raise StoreError(f"{build_file}: not readable: {exc}; remove {building} to start over") from exc
    way_out = f"Run with the same settings to finish it, or remove {building} to start over."
    require_equal(started_with, fingerprint, f"the unfinished build {building}", way_out)
    logger.info("resuming the unfinished build %s", building)
    return None if source is None else str(source)


def _newest_alike(generations: Path, fingerprint: Fingerprint) -> str | None:
    """The newest generation of this fingerprint. Not always the live one: a kill may have come before `CURRENT`."""
    for folder in sorted(generations.glob("[0-9]*[0-9]"), reverse=True):
        try:
            if open_generation(folder).manifest.fingerprint == fingerprint:
                return folder.name
        except KalmCacheError as exc:
            logger.warning("nothing is copied from %s: %s", folder, exc)
    return None


def _source(index: Path, name: str | None) -> Generation | None:
    if name is None:
        return None
    try:
        generation = open_generation(index / "generations" / name)
        require_whole(generation)
    except KalmCacheError as exc:  # no obstacle: what would have been copied is encoded
        logger.warning("nothing is copied from generation %s: %s", name, exc)
        return None
    return generation


def _live_name(index: Path) -> str | None:
    try:
        return open_current(index).manifest.generation
    except KalmCacheError:  # nothing there, or nothing that one could go back to
        return None


def _where(name: str) -> str:
    """A model's name as the manifest keeps it: a folder becomes absolute, so that the index opens from anywhere."""
    folder = Path(name).expanduser()
    return name if name in BUNDLED or not folder.is_dir() else str(folder.resolve())


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
