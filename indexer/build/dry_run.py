"""What an index job would do, without doing it: counts, and projections from a sample that is really encoded."""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from indexer.build.accepted_ids import Staging
from indexer.build.batching import batch_by_tokens
from indexer.build.index_job import Encoders
from indexer.build.intake import WINDOW, Reject, accepted_windows
from indexer.corpus import CorpusLine, RejectedLine
from kalm_cache.model.prompts import Tokens
from kalm_cache.scoring.pooling import pooled_length
from kalm_cache.storage.checksummed_block import ENTRY_BYTES
from kalm_cache.storage.passage_store import key_of
from kalm_cache.storage.record import STATES

SAMPLE = 64  # passages encoded to learn bytes and seconds


@dataclass(frozen=True, slots=True)
class Projection:
    """Counts are exact; the `projected_` fields extrapolate from `sampled` encoded passages (records only, no text)."""

    passages: int
    rejected: int
    tokens: int
    truncated: int
    pooled_states: int
    sampled: int
    projected_bytes: int
    projected_seconds: float


def project(
    lines: Iterable[CorpusLine | RejectedLine], encoders: Encoders, batch_tokens: int, *, on_reject: Reject
) -> Projection:
    """Read and tokenise the whole corpus, encode a random sample of it, store nothing."""
    side = encoders.passage_side
    passages = tokens = truncated = rows = rejected = id_bytes = 0
    sample: list[Tokens] = []
    chance = random.Random(0)

    def reject(line: RejectedLine) -> None:
        nonlocal rejected
        rejected += 1
        on_reject(line)

    with tempfile.TemporaryDirectory() as folder, Staging(Path(folder) / "staging.lmdb") as staging:
        for window in accepted_windows(lines, staging, reject):
            id_bytes += sum(len(key_of(passage.doc_id)) for passage in window)
            for one in side.tokenize([passage.text for passage in window]):
                passages += 1
                tokens += len(one.ids)
                truncated += one.truncated
                rows += pooled_length(len(one.ids), side.chunk_size)
                _keep_sample(sample, one, passages, chance)
    seconds_per_token, bytes_per_row = _measure(sample, encoders, batch_tokens)
    return Projection(
        passages=passages,
        rejected=rejected,
        tokens=tokens,
        truncated=truncated,
        pooled_states=rows,
        sampled=len(sample),
        projected_bytes=round(rows * bytes_per_row) + passages * (ENTRY_BYTES + STATES.field_bytes) + id_bytes,
        projected_seconds=round(tokens * seconds_per_token, 1),
    )


def _keep_sample(sample: list[Tokens], one: Tokens, seen: int, chance: random.Random) -> None:
    """Reservoir sampling: each passage read so far is in the sample with the same probability."""
    if len(sample) < SAMPLE:
        sample.append(one)
    elif (slot := chance.randrange(seen)) < SAMPLE:
        sample[slot] = one


def _measure(sample: list[Tokens], encoders: Encoders, batch_tokens: int) -> tuple[float, float]:
    """(seconds a token, payload bytes a pooled state) of the sample; zeros for an empty one."""
    if not sample:
        return 0.0, 0.0
    side, codec = encoders.passage_side, encoders.codec
    side.encode(sample[:1])  # the first call pays for allocations that a long job pays once
    started = time.perf_counter()
    pooled = []
    for batch in batch_by_tokens(sample, length=lambda one: len(one.ids), budget_tokens=batch_tokens, window=WINDOW):
        pooled += side.encode(batch)
    seconds = time.perf_counter() - started
    stored = sum(len(codec.encode(states.float().cpu().numpy())) for states in pooled)
    return seconds / sum(len(one.ids) for one in sample), stored / sum(len(states) for states in pooled)
