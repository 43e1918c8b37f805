"""The index job: settings and a corpus -> the next published generation, resumable; and its dry run."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from indexer.build.batching import Sample, batch_by_tokens
from indexer.build.counts import BuildCounts
from indexer.build.plan import WINDOW, Reject, accepted_windows
from indexer.build.shards.base import build_base
from indexer.build.spec import BuildSpec, new_manifest
from indexer.build.unfinished.accepted_passages import ACCEPTED_FILE, AcceptedPassages
from indexer.corpus import CorpusLine, RejectedLine, TypedMetadata, UnusedFields
from indexer.corpus.languages import with_language
from indexer.models import Encoders, batch_tokens_of, load_encoders
from indexer.reuse.reusable_segments import open_sources
from kalm_cache.errors import KalmCacheError
from kalm_cache.generations.build_folders import recover, resume_or_begin
from kalm_cache.generations.current import CURRENT
from kalm_cache.generations.generation import Generation, open_current, open_generation, published_names
from kalm_cache.generations.sharding import Sharding
from kalm_cache.model.precision import synchronise
from kalm_cache.model.prompts import Tokens
from kalm_cache.scoring.pooling import pooled_length
from kalm_cache.settings import Settings
from kalm_cache.storage.checksummed_block import ENTRY_BYTES
from kalm_cache.storage.durable import disk_errors
from kalm_cache.storage.locks import build_lock
from kalm_cache.storage.passage_store import key_of
from kalm_cache.storage.record import STATES

__all__ = ["BuildEstimate", "Encoders", "IndexReport", "estimate_build", "is_built", "load_encoders", "run_index_job"]
logger = logging.getLogger(__name__)
SAMPLE, SEED = 64, 0  # passages that a dry run encodes, to learn bytes and seconds


@dataclass(frozen=True, slots=True)
class IndexReport:
    """What a finished job did. `encoded + resumed + copied` = `passages`; `tokens` counts the whole generation.

    `unused_fields`: how many lines of the corpus have each field that is no part of a passage. `stage_seconds` and
    `stage_bytes`: see `BuildCounts`.
    """

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
    unused_fields: dict[str, int]
    stage_seconds: dict[str, float]
    stage_bytes: dict[str, int]


def is_built(index: Path, encoders: Encoders) -> bool:
    """Whether the live generation of `index` was built with these models; of which corpus, it cannot say."""
    try:
        return open_current(index).updated(encoders.checkpoint).manifest.fingerprint == encoders.fingerprint
    except KalmCacheError:  # nothing there, or nothing that could be used
        return False


def run_index_job(
    lines: Iterable[CorpusLine | RejectedLine],
    index: Path,
    settings: Settings,
    encoders: Encoders,
    *,
    on_reject: Reject,
    on_progress: Callable[[BuildCounts], None],
    shards: int | None = None,
) -> IndexReport:
    """Build and publish the next generation of `index` from a corpus, read once from its beginning.

    An unfinished build with the same fingerprint is continued. Records of the live generation, or of the newest with
    the same fingerprint, are copied as bytes where the text is the same. `shards`: how many segments the base has, by
    the ids of passages; `None` = one, without a number.

    Raises:
        IndexLockedError: another job is building here.
        IndexMismatchError: the unfinished build in the folder has another fingerprint.
        StoreError: the disk is full or cannot be written; what is stored stays.
    """
    started, unused, metadata = time.perf_counter(), UnusedFields(), TypedMetadata(settings.metadata)
    sharding = None if shards is None else Sharding(shards)
    with build_lock(index), disk_errors(index), ExitStack() as stack:
        recover(index)
        building = resume_or_begin(index, "index", encoders.fingerprint, sharding, checkpoint=encoders.checkpoint)
        source, live = newest_alike(index, encoders), live_or_none(index)
        settings, lines = with_language(lines, settings)
        template = new_manifest(settings, encoders, sharding, live)
        spec = BuildSpec(
            index=index,
            operation="index",
            template=template,
            parent=live,
            models=encoders.build_models,
            batch_tokens=batch_tokens_of(settings, encoders.passage_side),
            sources=open_sources(*(source, encoders.fingerprint, encoders.codec, stack), analysis=template.analysis),
            columns=metadata.schema,
        )
        generation, counts = build_base(
            spec, metadata.watch(unused.watch(lines)), building, on_reject=on_reject, on_progress=on_progress
        )
    return report_of(index, generation, counts, time.perf_counter() - started, unused.counts())


def live_or_none(index: Path) -> Generation | None:
    """The live generation, if there is one that one could go back to."""
    try:
        return open_current(index)
    except KalmCacheError as exc:
        if (index / CURRENT).exists():
            logger.warning("nothing is copied from the live generation: %s", exc)
        return None


def newest_alike(index: Path, encoders: Encoders) -> Generation | None:
    """The live generation if it has the fingerprint of `encoders`, else the newest that has."""
    live = live_or_none(index)
    if live is not None and (live := live.updated(encoders.checkpoint)).manifest.fingerprint == encoders.fingerprint:
        return live
    for name in reversed(published_names(index)):
        try:
            generation = open_generation(index / "generations" / name).updated(encoders.checkpoint)
        except KalmCacheError as exc:
            logger.warning("nothing is copied from generation %s: %s", name, exc)
            continue
        if generation.manifest.fingerprint == encoders.fingerprint:
            return generation
    return None


def report_of(
    index: Path, generation: Generation, counts: BuildCounts, seconds: float, unused_fields: dict[str, int]
) -> IndexReport:
    """What a job that published this generation did; `unused_fields` as in `IndexReport`."""
    manifest = generation.manifest
    return IndexReport(
        index=str(index),
        generation=manifest.generation,
        passages=manifest.counts.passages,
        tokens=manifest.counts.tokens,
        truncated=manifest.counts.truncated,
        encoded=counts.encoded,
        resumed=counts.resumed,
        copied=counts.copied,
        deleted=counts.deleted,
        rejected=counts.rejected,
        payload_bytes=manifest.counts.payload_bytes,
        file_bytes=sum(receipt.bytes for receipt in manifest.files.values()),
        seconds=round(seconds, 3),
        unused_fields=unused_fields,
        stage_seconds={stage: round(value, 3) for stage, value in counts.stage_seconds.items() if value},
        stage_bytes={stage: value for stage, value in counts.stage_bytes.items() if value},
    )


@dataclass(frozen=True, slots=True)
class BuildEstimate:
    """Counts are exact; the `projected_` fields extrapolate from `sampled` encoded passages (records only, no text).

    `unused_fields` as in `IndexReport`.
    """

    passages: int
    rejected: int
    tokens: int
    truncated: int
    pooled_states: int
    sampled: int
    projected_bytes: int
    projected_seconds: float
    unused_fields: dict[str, int]


def estimate_build(
    lines: Iterable[CorpusLine | RejectedLine],
    encoders: Encoders,
    batch_tokens: int,
    *,
    metadata: str = "",
    on_reject: Reject,
) -> BuildEstimate:
    """A dry run: read and tokenise the whole corpus, encode a random sample of it, store nothing."""
    side = encoders.passage_side
    passages = tokens = truncated = rows = rejected = id_bytes = 0
    sample: Sample[Tokens] = Sample(SAMPLE, SEED)
    unused, typed = UnusedFields(), TypedMetadata(metadata)

    def reject(line: RejectedLine) -> None:
        nonlocal rejected
        rejected += 1
        on_reject(line)

    with tempfile.TemporaryDirectory() as folder, AcceptedPassages(Path(folder) / ACCEPTED_FILE) as accepted:
        for accepted_lines in accepted_windows(typed.watch(unused.watch(lines)), accepted, reject):
            window = [line.passage for line in accepted_lines]
            passages += len(window)
            id_bytes += sum(len(key_of(passage.doc_id)) for passage in window)
            for passage_tokens in side.tokenize([passage.text for passage in window]):
                tokens += len(passage_tokens.ids)
                truncated += passage_tokens.truncated
                rows += pooled_length(len(passage_tokens.ids), side.chunk_size)
                sample.add(passage_tokens)
    seconds_per_token, bytes_per_row = _measure(sample.items, encoders, batch_tokens)
    return BuildEstimate(
        passages=passages,
        rejected=rejected,
        tokens=tokens,
        truncated=truncated,
        pooled_states=rows,
        sampled=len(sample.items),
        projected_bytes=round(rows * bytes_per_row) + passages * (ENTRY_BYTES + STATES.field_bytes) + id_bytes,
        projected_seconds=round(tokens * seconds_per_token, 1),
        unused_fields=unused.counts(),
    )


def _measure(sample: list[Tokens], encoders: Encoders, batch_tokens: int) -> tuple[float, float]:
    """(seconds a token, payload bytes a pooled state) of the sample; zeros for an empty one."""
    if not sample:
        return 0.0, 0.0
    side, codec = encoders.passage_side, encoders.codec
    side.encode(sample[:1])  # the first call pays for allocations that a long job pays once
    synchronise(side.device)
    started = time.perf_counter()
    pooled = []
    for batch in batch_by_tokens(
        sample, length=lambda tokens: len(tokens.ids), budget_tokens=batch_tokens, window=WINDOW
    ):
        pooled += side.encode(batch)
    synchronise(side.device)
    seconds = time.perf_counter() - started
    stored = sum(len(codec.encode(states.float().cpu().numpy())) for states in pooled)
    return seconds / sum(len(tokens.ids) for tokens in sample), stored / sum(len(states) for states in pooled)
