"""Stored states in another form: a codec with fewer bits, a larger pooling ratio. Says also where that is not honest.

Honest is what a new encoding would give, up to the rounding of the form that is wanted: from states kept as floats to a
form no finer than that. States of few bits carry an error of their own already, which recoding would hide in a form
that promises less, and averaging would not take out: these are encoded again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from indexer.reuse.origins import SealedSegment, Vectors
from kalm_cache.codec import Codec, get_codec
from kalm_cache.errors import DamagedRecordError, StoreError
from kalm_cache.generations.fingerprint import Fingerprint
from kalm_cache.scoring.pooling import mean_pool
from kalm_cache.storage.passage_store import PassageMeta, PassageStore
from kalm_cache.storage.record import Record

FINENESS = ("fp32", "fp16", "bf16", "int8", "int4", "int3", "int2")
FLOATS = ("fp32", "fp16", "bf16")


@dataclass(frozen=True, slots=True)
class RecodedSegment:
    """Records of a sealed segment, stored in `stored` at `stored_chunk_size`, come out in `codec` at `chunk_size`."""

    source: SealedSegment
    stored: Codec
    stored_chunk_size: int
    codec: Codec
    chunk_size: int

    @property
    def store(self) -> PassageStore:
        """The segment itself."""
        return self.source.store

    @property
    def vectors(self) -> Vectors | None:
        """As `SealedSegment.vectors`."""
        return self.source.vectors

    @property
    def changes_states(self) -> bool:
        """Whether payloads are made anew; if not, only what is beside them is."""
        return (self.stored.name, self.stored_chunk_size) != (self.codec.name, self.chunk_size)

    def metas(self, doc_ids: Sequence[str]) -> list[PassageMeta | None]:
        """As `SealedSegment.identities`."""
        return self.source.metas(doc_ids)

    def records(self, doc_ids: Sequence[str]) -> list[Record]:
        """The records of passages that `metas` found. Raises `StoreError` when one is damaged meanwhile."""
        with self.store.snapshot() as snapshot:
            records = [self._valid(record) for record in snapshot.records(doc_ids)]
            if not self.changes_states:
                return [record._replace(payload=bytes(record.payload)) for record in records]
            rows, width = [record.rows for record in records], records[0].width
            states = np.empty((sum(rows), width), np.float32)
            try:
                self.stored.decode_many([record.payload for record in records], rows, width, states)
            except DamagedRecordError as exc:
                raise StoreError(f"states of {doc_ids[0]!r} and others do not decode: {exc}") from exc
        tokens = [record.tokens for record in records]
        pooled = mean_pool(torch.from_numpy(states), tokens, self.chunk_size, stored_chunk_size=self.stored_chunk_size)
        return [
            record._replace(codec=self.codec.number, chunk_size=self.chunk_size, payload=self.codec.encode(one.numpy()))
            for record, one in zip(records, pooled, strict=True)
        ]

    def _valid(self, record: Record | DamagedRecordError | None) -> Record:
        if not isinstance(record, Record):
            raise StoreError(f"what was whole a moment ago is damaged now; run the job again: {record}")
        return record


def has_same_states(stored: Fingerprint, wanted: Fingerprint) -> bool:
    """Whether the encoder would compute the same states for both: model, prompt, length and dtype are the same."""
    return _encoding(stored) == _encoding(wanted)


def recoding_problem(stored: Fingerprint, wanted: Fingerprint) -> str | None:
    """Why what is stored cannot honestly become what is wanted; `None` where it can, or is that already."""
    if not has_same_states(stored, wanted):
        return "; ".join(
            one for one in stored.differences(wanted) if one.split()[0] in ("model", "passage_template", *_LENGTH)
        )
    if (stored.codec, stored.chunk_size) == (wanted.codec, wanted.chunk_size):
        return None
    if wanted.chunk_size % stored.chunk_size:
        return f"chunk_size {stored.chunk_size} cannot become {wanted.chunk_size}: that is no multiple of it"
    source, target = _base(stored.codec), _base(wanted.codec)
    if source not in FLOATS:
        return f"states stored as {stored.codec} carry its error already: recoding would only hide it"
    if FINENESS.index(target) < FINENESS.index(source):
        return f"states stored as {stored.codec} are not as fine as {wanted.codec} promises"
    return None


_LENGTH = ("max_length", "dtype", "format_version")


def _encoding(built: Fingerprint) -> tuple[object, ...]:
    return built.model, built.passage_template, built.max_length, built.dtype, built.format_version


def _base(codec: str) -> str:
    return get_codec(codec).name.partition("+")[0]
