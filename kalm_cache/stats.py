"""What a published index holds and what it takes on disk. Opens no model and reads no record."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from kalm_cache.generation import open_current


@dataclass(frozen=True, slots=True)
class IndexStats:
    """Of the live generation: `file_bytes` are the sizes of all its files now; the averages are of those bytes.

    `payload_bytes` counts compressed states alone; `truncated` counts passages cut at `max_length`.
    """

    passages: int
    tokens: int
    payload_bytes: int
    file_bytes: int
    bytes_per_passage: float
    codec: str
    chunk_size: int
    model: str
    generation: str
    pooled_states: int
    truncated: int
    bytes_per_token: float
    store_text: bool
    embedder: str
    created_at: str
    width: int


def index_stats(folder: str | Path) -> IndexStats:
    """Read the manifest of an index folder's live generation and measure its files.

    Raises:
        IndexNotFoundError: nothing has been published there.
        StoreError: the manifest is damaged.
    """
    generation = open_current(Path(folder))
    manifest, counts = generation.manifest, generation.manifest.counts
    file_bytes = sum(path.stat().st_size for path in generation.folder.rglob("*") if path.is_file())
    return IndexStats(
        passages=counts.passages,
        tokens=counts.tokens,
        payload_bytes=counts.payload_bytes,
        file_bytes=file_bytes,
        bytes_per_passage=_average(file_bytes, counts.passages),
        codec=manifest.fingerprint.codec,
        chunk_size=manifest.fingerprint.chunk_size,
        model=manifest.model,
        generation=manifest.generation,
        pooled_states=counts.pooled_states,
        truncated=counts.truncated,
        bytes_per_token=_average(file_bytes, counts.tokens),
        store_text=manifest.fingerprint.store_text,
        embedder=manifest.embedder,
        created_at=manifest.created_at,
        width=manifest.width,
    )


def _average(total: int, count: int) -> float:
    return round(total / count, 1) if count else 0.0
