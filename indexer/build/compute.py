"""Compute: a batch -> the records and vectors that it lacks. A function of values: it reads and writes no file.

Shapes: n passages, P pooled states of a passage, D their width, E width of a first-stage vector.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from indexer.build.plan import Batch, EncodeBatch, RecodeBatch, ReuseBatch
from indexer.models import BuildModels
from kalm_cache.model.prompts import Tokens
from kalm_cache.scoring.passage_side import PassageSide
from kalm_cache.storage.record import Record

LEAST_TOKENS = 32  # of the longest passage in a batch; below 12, states differed in the last bit


@dataclass(frozen=True, slots=True)
class ComputedBatch:
    """A batch, ready to be committed.

    `records`: one a passage; none where they stay where they are. `vectors` (n, E) float32; `None` where these stay.
    `seconds`: what computing took.
    """

    batch: Batch
    records: list[Record]
    vectors: NDArray[np.float32] | None
    seconds: float


def compute(batch: Batch, models: BuildModels) -> ComputedBatch:
    """Compute what a batch lacks; the same for the same batch, whenever and wherever it is called.

    Raises:
        StoreError: records that are to be recoded do not decode.
    """
    started = time.perf_counter()
    records: list[Record] = []
    vectors: NDArray[np.float32] | None = None
    match batch:
        case EncodeBatch():
            records, vectors = _encode(batch, models), _embed(batch, models)
        case RecodeBatch():
            records = batch.recoding.recode(batch.records)
            vectors = _embed(batch, models) if batch.vectors is None else batch.vectors
        case ReuseBatch(lacks_vectors=True):
            vectors = _embed(batch, models)
    return ComputedBatch(batch, records, vectors, time.perf_counter() - started)


def _encode(batch: EncodeBatch, models: BuildModels) -> list[Record]:
    side, codec = models.passage_side, models.codec
    assert side is not None  # nothing is planned to be encoded without one
    return [
        Record(
            codec=codec.number,
            chunk_size=side.chunk_size,
            width=states.shape[1],
            tokens=len(tokens.ids),
            truncated=tokens.truncated,
            payload=codec.encode(states.float().cpu().numpy()),  # (P, D) float32 -> bytes
        )
        for tokens, states in zip(batch.tokens, _states(batch.tokens, side), strict=True)
    ]


def _states(tokens: list[Tokens], side: PassageSide) -> list[Tensor]:
    """States (P, D) of each passage, which do not depend on what else is in the batch, to the last bit.

    Where all passages are short, BLAS takes another kernel in float32, which adds up in another order: a longer one is
    put beside them, and left out again.
    """
    in_float32 = side.dtype == torch.float32 and side.device.type == "cpu"
    if not in_float32 or max(len(one.ids) for one in tokens) >= LEAST_TOKENS:
        return side.encode(tokens)
    longer = replace(tokens[0], ids=(tokens[0].ids * LEAST_TOKENS)[:LEAST_TOKENS])
    return side.encode([*tokens, longer])[:-1]


def _embed(batch: Batch, models: BuildModels) -> NDArray[np.float32]:
    """Vectors (n, E) of the batch's texts."""
    return models.embedder.embed_passages([wanted.passage.text for wanted in batch.wanted])
