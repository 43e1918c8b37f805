"""Facts for a report's header: model, dtype, codec, bytes a passage, relevant passages that the index lacks."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kalm_cache.errors import UsageError
from kalm_cache.evaluation.collections.beir import BeirTask
from kalm_cache.storage.passage_store import key_of

if TYPE_CHECKING:
    from kalm_cache.index.passage_index import PassageIndex

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Facts:
    """What an index says of itself, and of a collection. `missing_passages`: relevant ones that it does not hold.

    `bytes_per_passage` are those of all its files, `candidates` is the system that the candidates are from.
    """

    model: str
    dtype: str
    generation: str
    codec: str
    chunk_size: int
    passages: int
    bytes_per_passage: float
    missing_passages: int
    candidates: str


def facts_of(index: PassageIndex, task: BeirTask, candidates: str) -> Facts:
    """See `Facts`. Raises `UsageError` when the index holds none of the relevant passages."""
    manifest = index.generation.manifest
    file_bytes = sum(receipt.bytes for receipt in manifest.files.values())
    return Facts(
        model=manifest.model,
        dtype=str(index.query_side.dtype).removeprefix("torch."),
        generation=manifest.generation,
        codec=manifest.fingerprint.codec,
        chunk_size=manifest.fingerprint.chunk_size,
        passages=manifest.counts.passages,
        bytes_per_passage=round(file_bytes / manifest.counts.passages, 1),
        missing_passages=_count_missing(index, task),
        candidates=candidates,
    )


def _count_missing(index: PassageIndex, task: BeirTask) -> int:
    """How many relevant passages the index does not hold. Raises `UsageError` when these are all of them."""
    relevant = {key_of(doc_id) for grades in task.qrels.values() for doc_id, grade in grades.items() if grade > 0}
    missing = len(relevant.difference(index.store.keys()))
    if missing and missing == len(relevant):
        raise UsageError(
            f"{index.generation.folder} holds none of the {missing} relevant passages of {task.name} {task.split}; "
            "evaluate an index of that collection's corpus"
        )
    if missing:
        logger.warning("%s: %d of %d relevant passages are not in the index", task.name, missing, len(relevant))
    return missing
