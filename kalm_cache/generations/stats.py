"""What a published index holds and what it takes on disk. Opens no model and reads no record."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from kalm_cache.generations.generation import open_current
from kalm_cache.generations.manifest import Manifest
from kalm_cache.metadata import COLUMNS
from kalm_cache.storage.passage_store import PASSAGES_FILE, STATES_FILE


@dataclass(frozen=True, slots=True)
class IndexStats:
    """Of the live generation: `file_bytes` are the sizes of all its files now; the averages are of those bytes.

    `model` encoded its passages, the decoder of the checkpoint `decoder` answers over them. `payload_bytes` counts
    compressed states alone, `states_bytes` the files that they are in; `states_overhead` is the one divided by all that
    is stored in them, tombstoned payloads included. `truncated` counts passages cut at `max_length`; `tombstones` are
    deleted and replaced ones whose bytes gc will remove. `index_bytes` are those of all generations, a file that
    several of them share (by hard links) counted once. `files` are sizes by relative path. `columns`: of the metadata,
    with their types; `metadata_bytes`: their files.
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
    passage_template: str
    embedder: str
    language: str
    fold_diacritics: bool
    decoder: str
    created_at: str
    width: int
    states_bytes: int
    states_overhead: float
    states_bytes_per_passage: float
    states_bytes_per_token: float
    passages_bytes: int
    first_stage_bytes: int
    columns: dict[str, str]
    metadata_bytes: int
    segments: int
    tombstones: int
    tombstone_payload_bytes: int
    index_bytes: int
    files: dict[str, int]


def index_stats(folder: str | Path) -> IndexStats:
    """Read the manifest of an index folder's live generation and measure its files.

    Raises:
        IndexNotFoundError: nothing has been published there.
        StoreError: the manifest is damaged.
    """
    generation = open_current(Path(folder))
    return stats_of(generation.manifest, _sizes_below(generation.folder), _on_disk(Path(folder)))


def stats_of(manifest: Manifest, files: dict[str, int], index_bytes: int) -> IndexStats:
    """The stats of a generation from its manifest and the sizes of its files; `index_bytes`: of all generations."""
    counts = manifest.counts
    file_bytes, states_bytes = sum(files.values()), _size_of(files, f"/{STATES_FILE}")
    stored_bytes = sum(segment.counts.payload_bytes for segment in manifest.segments)
    return IndexStats(
        passages=counts.passages,
        tokens=counts.tokens,
        payload_bytes=counts.payload_bytes,
        file_bytes=file_bytes,
        bytes_per_passage=_average(file_bytes, counts.passages),
        codec=manifest.fingerprint.codec,
        chunk_size=manifest.fingerprint.chunk_size,
        model=manifest.model,
        decoder=manifest.model if manifest.decoder is None else manifest.decoder.name,
        generation=manifest.generation,
        pooled_states=counts.pooled_states,
        truncated=counts.truncated,
        bytes_per_token=_average(file_bytes, counts.tokens),
        store_text=manifest.fingerprint.store_text,
        passage_template=manifest.passage_template,
        embedder=manifest.embedder,
        language=manifest.language,
        fold_diacritics=manifest.fold_diacritics,
        created_at=manifest.created_at,
        width=manifest.width,
        states_bytes=states_bytes,
        states_overhead=round(states_bytes / stored_bytes, 3) if stored_bytes else 0.0,
        states_bytes_per_passage=_average(states_bytes, counts.passages),
        states_bytes_per_token=_average(states_bytes, counts.tokens),
        passages_bytes=_size_of(files, f"/{PASSAGES_FILE}"),
        first_stage_bytes=_size_of(files, "/first_stage/"),
        columns=dict(manifest.columns),
        metadata_bytes=_size_of(files, f"/{COLUMNS}/"),
        segments=len(manifest.segments),
        tombstones=sum(segment.counts.passages for segment in manifest.segments) - counts.passages,
        tombstone_payload_bytes=stored_bytes - counts.payload_bytes,
        index_bytes=index_bytes,
        files=files,
    )


def _sizes_below(folder: Path) -> dict[str, int]:
    """The size of every file, by relative path."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in paths}


def _on_disk(folder: Path) -> int:
    """Bytes of all files below, each counted once however many names it has."""
    stats = (path.stat() for path in folder.rglob("*") if path.is_file())
    return sum({(stat.st_dev, stat.st_ino): stat.st_size for stat in stats}.values())


def _size_of(files: dict[str, int], part: str) -> int:
    return sum(size for name, size in files.items() if part in f"/{name}")


def _average(total: int, count: int) -> float:
    return round(total / count, 1) if count else 0.0
