"""Compute: a batch -> the records and vectors that it lacks. Functions of values: they read and write no file.

In two steps, so that another batch may be encoded meanwhile: `encode` on the device, `finish` on the processor.

Shapes: n passages, P pooled states of a passage, D their width, E width of a first-stage vector.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from indexer.build.plan import Batch, EncodeBatch, RecodeBatch, ReuseBatch
from indexer.models import BuildModels
from kalm_cache.scoring.passage_side import PassageSide
from kalm_cache.storage.record import Record

LEAST_TOKENS = 32  # of the longest passage in a batch; below 12, states differed in the last bit


@dataclass(frozen=True, slots=True)
class ComputedBatch:
    """A batch, ready to be committed.

    `records`: one a passage; none where they stay where they are. `vectors` (n, E) float32; `None` where these stay.
    `state_bytes`: of what left the encoder. `seconds`: what "encode" and "finish" took.
    """

    batch: Batch
    records: list[Record]
    vectors: NDArray[np.float32] | None
    state_bytes: int
    seconds: dict[str, float]


def compute(batch: Batch, models: BuildModels) -> ComputedBatch:
    """Both steps, one after the other; raises as they do."""
    started = time.perf_counter()
    states = encode(batch, models.passage_sides[0]) if isinstance(batch, EncodeBatch) else []
    return finish(batch, states, models, time.perf_counter() - started)


def encode(batch: EncodeBatch, side: PassageSide) -> list[Tensor]:
    """States (P, D) of each passage, on the device: the same for the same batch, whenever and wherever it is called.

    They do not depend on what else is in the batch, to the last bit: where all passages are short, BLAS takes another
    kernel in float32, which adds up in another order. So a longer one is put beside them, and left out again.

    Raises as `PassageSide.encode`.
    """
    tokens = batch.tokens
    in_float32 = side.dtype == torch.float32 and side.device.type == "cpu"
    if not in_float32 or max(len(one.ids) for one in tokens) >= LEAST_TOKENS:
        return side.encode(tokens)
    longer = replace(tokens[0], ids=(tokens[0].ids * LEAST_TOKENS)[:LEAST_TOKENS])
    return side.encode([*tokens, longer])[:-1]


def finish(batch: Batch, states: Sequence[Tensor], models: BuildModels, encode_seconds: float) -> ComputedBatch:
    """What the batch lacks, made of its states where it was encoded; the same for the same batch at any time and place.

    Raises:
        StoreError: records that are to be recoded do not decode.
    """
    started = time.perf_counter()
    records: list[Record] = []
    vectors: NDArray[np.float32] | None = None
    match batch:
        case EncodeBatch():
            records, vectors = _records(batch, states, models), _embed(batch, models)
        case RecodeBatch():
            records = batch.recoding.recode(batch.records)
            vectors = _embed(batch, models) if batch.vectors is None else batch.vectors
        case ReuseBatch(lacks_vectors=True):
            vectors = _embed(batch, models)
    seconds = {"encode": encode_seconds, "finish": time.perf_counter() - started}
    return ComputedBatch(batch, records, vectors, sum(one.nbytes for one in states), seconds)


def _records(batch: EncodeBatch, states: Sequence[Tensor], models: BuildModels) -> list[Record]:
    codec = models.codec
    return [
        Record(
            codec=codec.number,
            chunk_size=models.passage_sides[0].chunk_size,
            width=one.shape[1],
            tokens=len(tokens.ids),
            truncated=tokens.truncated,
            payload=codec.encode(one.float().cpu().numpy()),  # (P, D) float32 -> bytes
        )
        for tokens, one in zip(batch.tokens, states, strict=True)
    ]


def _embed(batch: Batch, models: BuildModels) -> NDArray[np.float32]:
    """Vectors (n, E) of the batch's texts."""
    return models.embedder.embed_passages([wanted.passage.text for wanted in batch.wanted])
