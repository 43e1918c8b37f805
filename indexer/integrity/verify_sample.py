"""Stored states against new ones: a few passages are encoded again, and the drift of their margins is reported."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from indexer.build.batching import Sample, batch_by_tokens
from indexer.build.plan import WINDOW
from indexer.models import Encoders, batch_tokens_of, load_encoders_of
from kalm_cache.errors import UsageError
from kalm_cache.index.passage_index import PassageIndex
from kalm_cache.model.prompts import Prompt
from kalm_cache.settings import Settings
from kalm_cache.storage.passage_store import doc_id_of

QUERIES, QUERY_WORDS = 8, 12
SEED = 20_240_501


@dataclass(frozen=True, slots=True)
class SampleReport:
    """How far margins over stored states are from those over states encoded now, without a codec between.

    `margin_drift_…` are of absolute differences, over all pairs; `rank_agreement` is Kendall's tau-b over the sample,
    averaged over `queries`, which are first words of sampled passages. `state_error` is the mean length of a state's
    error, in lengths of the state.
    """

    passages: int
    queries: int
    margin_drift_mean: float
    margin_drift_max: float
    rank_agreement: float
    state_error: float


def verify_sample(index: Path, passages: int, overrides: Settings) -> SampleReport:
    """Encode `passages` of the live generation again, the same ones every time, with the model of its manifest.

    Raises:
        UsageError: the index keeps no texts, or holds no passages.
        IndexMismatchError: the model is not the one that built it any more.
    """
    with PassageIndex.open(index, device=overrides.device, dtype=None) as opened:
        settings, encoders = load_encoders_of(opened.generation.manifest, overrides)
        doc_ids = _sample(opened.store.keys(), passages)
        texts = [text for text in opened.store.texts(doc_ids) if text is not None]
        if not doc_ids or len(texts) < len(doc_ids):
            raise UsageError(f"{index}: --sample needs passages with their texts, and this index keeps none")
        stored = [pooled.states for pooled in opened.pooled(doc_ids, chunk_size=settings.chunk_size)]
        fresh = _encode(texts, encoders, batch_tokens_of(settings, encoders.passage_side))
        queries = [" ".join(text.split()[:QUERY_WORDS]) for text in texts[:QUERIES]]
        then, now = _margins(opened, queries, stored), _margins(opened, queries, fresh)
    drift = np.abs(then - now)
    errors = [
        float((old - new).norm(dim=1).mean() / max(float(new.norm(dim=1).mean()), 1e-12))
        for old, new in zip(stored, fresh, strict=True)
    ]
    return SampleReport(
        passages=len(doc_ids),
        queries=len(queries),
        margin_drift_mean=round(float(drift.mean()), 6),
        margin_drift_max=round(float(drift.max()), 6),
        rank_agreement=round(float(np.mean([kendall(*rows) for rows in zip(then, now, strict=True)])), 6),
        state_error=round(float(np.mean(errors)), 6),
    )


def kendall(left: NDArray[np.float64], right: NDArray[np.float64]) -> float:
    """Kendall's tau-b of two lists of scores (n,); 1 where either has no order at all. M. G. Kendall, 1945."""
    upper = np.triu_indices(len(left), 1)
    a, b = (np.sign(scores[:, None] - scores[None, :])[upper] for scores in (left, right))
    pairs = math.sqrt(np.count_nonzero(a) * np.count_nonzero(b))
    return float((a * b).sum() / pairs) if pairs else 1.0


def _sample(keys: Iterable[bytes], size: int) -> list[str]:
    sample: Sample[str] = Sample(size, SEED)
    for key in keys:
        sample.add(doc_id_of(key))
    return sample.items


def _encode(texts: list[str], encoders: Encoders, batch_tokens: int) -> list[Tensor]:
    """Pooled states (P, D) float32 of each text, on the CPU."""
    side = encoders.passage_side
    tokenized = list(enumerate(side.tokenize(texts)))
    states: dict[int, Tensor] = {}
    for batch in batch_by_tokens(
        tokenized, length=lambda pair: len(pair[1].ids), budget_tokens=batch_tokens, window=WINDOW
    ):
        encoded = side.encode([tokens for _, tokens in batch])
        states.update((i, pooled.float().cpu()) for (i, _), pooled in zip(batch, encoded, strict=True))
    return [states[i] for i in range(len(texts))]


def _margins(opened: PassageIndex, queries: list[str], states: list[Tensor]) -> NDArray[np.float64]:
    """(queries, passages)."""
    side = opened.query_side
    prompts = [side.tokenize(Prompt(query)) for query in queries]
    rows = [side.margins([prompt] * len(states), states, side.batch_pairs) for prompt in prompts]
    return np.array(rows, np.float64)
