"""Doc ids -> pooled states: records read, checked, decoded, pooled further where asked. Knows nothing of queries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from kalm_cache.codec import Codec
from kalm_cache.errors import DamagedRecordError, UnknownIdError
from kalm_cache.pooling import PooledPassage, check_ratio, repool
from kalm_cache.record import Record, unpack_record
from kalm_cache.store import PassageStore, key_of


@dataclass(frozen=True, slots=True)
class StateReader:
    """The stored states of one shard. `codec` and `stored_ratio` are those of its manifest."""

    store: PassageStore
    codec: Codec
    stored_ratio: int

    def read(self, ids: Sequence[str], ratio: int) -> list[PooledPassage]:
        """The passages of `ids`, in this order, their states (P, D) float32 pooled at `ratio`.

        Raises:
            UnknownIdError: ids that the store does not hold.
            DamagedRecordError: a record fails its checksum.
            UsageError: `ratio` is no multiple of the stored one.
        """
        check_ratio(self.stored_ratio, ratio)
        values = self.store.records(ids)
        missing = [doc_id for doc_id, value in zip(ids, values, strict=True) if value is None]
        if missing:
            raise UnknownIdError(missing)
        records = (unpack_record(key_of(doc_id), value or b"") for doc_id, value in zip(ids, values, strict=True))
        return [self._decode(doc_id, record, ratio) for doc_id, record in zip(ids, records, strict=True)]

    def _decode(self, doc_id: str, record: Record, ratio: int) -> PooledPassage:
        if record.codec != self.codec.number:
            raise DamagedRecordError(f"record {doc_id!r}: codec {record.codec}, the manifest says {self.codec.name}")
        states = np.ascontiguousarray(self.codec.decode(record.payload, record.rows, record.width))
        pooled = repool(torch.from_numpy(states), record.tokens, record.ratio, ratio)
        return PooledPassage(record.tokens, record.truncated, pooled)
