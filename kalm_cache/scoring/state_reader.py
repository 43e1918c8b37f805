"""Doc ids -> pooled states: records read, checked, decoded, pooled further where asked. Knows nothing of queries."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from kalm_cache.codec import Codec
from kalm_cache.errors import DamagedRecordError, UnknownIdError
from kalm_cache.scoring.pooling import PooledPassage, check_chunk_size, mean_pool
from kalm_cache.storage.record import Record, RecordStore


class DamagedPassage(NamedTuple):
    """A passage whose record cannot be used, and why."""

    doc_id: str
    problem: str


@dataclass(frozen=True, slots=True)
class ValidRead:
    """What could be read. `positions[i]` is where in the ids asked for `passages[i]` belongs; the rest is `damaged`.

    `payload_bytes`: of the records that were read.
    """

    positions: list[int]
    passages: list[PooledPassage]
    damaged: list[DamagedPassage]
    payload_bytes: int


@dataclass(frozen=True, slots=True)
class StateReader:
    """The stored states of an index. `codec` and `stored_chunk_size` are those of its manifest."""

    store: RecordStore
    codec: Codec
    stored_chunk_size: int

    def read(self, ids: Sequence[str], chunk_size: int) -> list[PooledPassage]:
        """The passages of `ids`, in this order, their states (P, D) float32 pooled at `chunk_size`: views of one
        tensor.

        Raises:
            UnknownIdError: ids that the store does not hold.
            DamagedRecordError: a record fails its checksum, or does not decode.
            UsageError: `chunk_size` is no multiple of the stored one.
        """
        read = self.read_valid(ids, chunk_size)
        if read.damaged:
            raise DamagedRecordError(read.damaged[0].problem)
        return read.passages

    def read_valid(self, ids: Sequence[str], chunk_size: int, dtype: torch.dtype = torch.float32) -> ValidRead:
        """As `read`, in any floating `dtype`, and without the damaged ones, which are named beside it.

        Raises:
            UnknownIdError: ids that the store does not hold.
            UsageError: `chunk_size` is no multiple of the stored one.
        """
        check_chunk_size(self.stored_chunk_size, chunk_size)
        with self.store.snapshot() as snapshot:
            stored = [self._checked(doc_id, record) for doc_id, record in zip(ids, snapshot.records(ids), strict=True)]
            missing = [doc_id for doc_id, record in zip(ids, stored, strict=True) if record is None]
            if missing:
                raise UnknownIdError(missing)
            records = {i: record for i, record in enumerate(stored) if isinstance(record, Record)}
            damaged = [
                DamagedPassage(ids[i], str(exc)) for i, exc in enumerate(stored) if isinstance(exc, DamagedRecordError)
            ]
            payload_bytes = sum(len(record.payload) for record in records.values())
            # within the snapshot: payloads are views of the store's pages. One conversion for all rows
            states = self._decode(ids, records, damaged).to(dtype)  # (ΣP, D)
        tokens = [record.tokens for record in records.values()]
        pooled = mean_pool(states, tokens, chunk_size, stored_chunk_size=self.stored_chunk_size) if records else []
        passages = [
            PooledPassage(record.tokens, record.truncated, each)
            for record, each in zip(records.values(), pooled, strict=True)
        ]
        return ValidRead(list(records), passages, damaged, payload_bytes)

    def _checked(self, doc_id: str, record: Record | DamagedRecordError | None) -> Record | DamagedRecordError | None:
        if not isinstance(record, Record):
            return record
        if record.codec != self.codec.number:
            return DamagedRecordError(
                f"record {doc_id!r}: codec {record.codec}, the manifest says {self.codec.name} ({self.codec.number})"
            )
        if record.chunk_size != self.stored_chunk_size:
            return DamagedRecordError(
                f"record {doc_id!r}: pooling ratio {record.chunk_size}, the manifest says {self.stored_chunk_size}"
            )
        return record

    def _decode(self, ids: Sequence[str], records: dict[int, Record], damaged: list[DamagedPassage]) -> Tensor:
        """States (sum of P, D) of the records; one that does not decode moves from `records` to `damaged`."""
        if not records:
            return torch.empty(0, 0)
        width = next(iter(records.values())).width
        try:
            return self._decode_all(records.values(), width)
        except DamagedRecordError:
            for i, record in list(records.items()):  # look for it
                try:
                    self._decode_all([record], width)
                except DamagedRecordError as exc:
                    problem = re.sub(r"^payload 0:? ", "its payload: ", str(exc))
                    damaged.append(DamagedPassage(ids[i], f"record {ids[i]!r}: {problem}"))
                    del records[i]
            return self._decode_all(records.values(), width)

    def _decode_all(self, records: Collection[Record], width: int) -> Tensor:
        odd = next((record for record in records if record.width != width), None)
        if odd is not None:
            raise DamagedRecordError(f"its states have width {odd.width}, those of others {width}")
        rows = [record.rows for record in records]
        states = torch.empty(sum(rows), width)  # (ΣP, D) float32
        if records:
            # `numpy()` shares the tensor's memory: codecs write into it
            self.codec.decode_many([record.payload for record in records], rows, width, states.numpy())
        return states
