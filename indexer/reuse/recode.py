"""Stored states in another form: a codec with fewer bits, a larger chunk size. Says also where that is not exact.

Exact is what a new encoding would give, up to the rounding of the form that is wanted: from states kept as floats to a
form no finer than that. States of few bits carry a rounding error already, which recoding would hide in a form that
promises less, and averaging would not take out: these are encoded again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from indexer.reuse.origins import SealedSegment, Vectors
from kalm_cache.codec import Codec
from kalm_cache.codec.recoding import recoding_obstacle
from kalm_cache.errors import DamagedRecordError, StoreError
from kalm_cache.generations.fingerprint import Fingerprint
from kalm_cache.scoring.pooling import mean_pool
from kalm_cache.storage.passage_store import PassageMeta, PassageStore
from kalm_cache.storage.record import Record


@dataclass(frozen=True, slots=True)
class Recoding:
    """Records stored in `stored` at `stored_chunk_size` -> records in `codec` at `chunk_size`. A pure function."""

    stored: Codec
    stored_chunk_size: int
    codec: Codec
    chunk_size: int

    @property
    def changes_states(self) -> bool:
        """Whether payloads are made anew; if not, only what is beside them is."""
        return (self.stored.name, self.stored_chunk_size) != (self.codec.name, self.chunk_size)

    def recode(self, records: list[Record]) -> list[Record]:
        """The records in their new form. Raises `StoreError` when one does not decode."""
        if not self.changes_states or not records:
            return records
        rows, width = [record.rows for record in records], records[0].width
        states = np.empty((sum(rows), width), np.float32)  # (sum of P, D)
        try:
            self.stored.decode_many([record.payload for record in records], rows, width, states)
        except DamagedRecordError as exc:
            raise StoreError(f"stored states do not decode, of {len(records)} that were to be recoded: {exc}") from exc
        tokens = [record.tokens for record in records]
        pooled = mean_pool(torch.from_numpy(states), tokens, self.chunk_size, stored_chunk_size=self.stored_chunk_size)
        return [
            record._replace(
                codec=self.codec.number, chunk_size=self.chunk_size, payload=self.codec.encode(states.numpy())
            )
            for record, states in zip(records, pooled, strict=True)
        ]


@dataclass(frozen=True, slots=True)
class RecodedSegment:
    """A sealed segment, and what becomes of its records."""

    source: SealedSegment
    recoding: Recoding

    @property
    def store(self) -> PassageStore:
        """The segment itself."""
        return self.source.store

    @property
    def vectors(self) -> Vectors | None:
        """As `SealedSegment.vectors`."""
        return self.source.vectors

    def metas(self, doc_ids: Sequence[str]) -> list[PassageMeta | None]:
        """As `SealedSegment.metas`."""
        return self.source.metas(doc_ids)

    def records(self, doc_ids: Sequence[str]) -> list[Record]:
        """The stored records of passages that `metas` has, copied. Raises `StoreError` when one is damaged by now."""
        with self.store.snapshot() as snapshot:
            records = [_require_record(record) for record in snapshot.records(doc_ids)]
            return [record._replace(payload=bytes(record.payload)) for record in records]


def _require_record(record: Record | DamagedRecordError | None) -> Record:
    if not isinstance(record, Record):
        raise StoreError(f"what was valid a moment ago is damaged now; run the job again: {record}")
    return record


def has_same_states(stored: Fingerprint, wanted: Fingerprint) -> bool:
    """Whether the encoder would compute the same states for both: model, prompt, length and dtype are the same."""
    return _encoding(stored) == _encoding(wanted)


def recoding_problem(stored: Fingerprint, wanted: Fingerprint) -> str | None:
    """Why what is stored cannot become what is wanted exactly; `None` where it can, or is that already."""
    if not has_same_states(stored, wanted):
        decisive = ("model", "passage_template", "max_length", "dtype", "format_version")
        return "; ".join(phrase for phrase in stored.differences(wanted) if phrase.split()[0] in decisive)
    if (stored.codec, stored.chunk_size) == (wanted.codec, wanted.chunk_size):
        if stored.sensitivity == wanted.sensitivity:
            return None
        return f"states stored as {stored.codec} were rounded by another sensitivity"
    if wanted.chunk_size % stored.chunk_size:
        return f"chunk_size {stored.chunk_size} cannot become {wanted.chunk_size}: that is no multiple of it"
    obstacle = recoding_obstacle(stored.codec, wanted.codec)
    if obstacle == "quantised":
        return f"states stored as {stored.codec} carry its error already: recoding would only hide it"
    if obstacle == "too coarse":
        return f"states stored as {stored.codec} are not as fine as {wanted.codec} promises"
    return None


def _encoding(built: Fingerprint) -> tuple[object, ...]:
    return built.model, built.passage_template, built.max_length, built.dtype, built.format_version
