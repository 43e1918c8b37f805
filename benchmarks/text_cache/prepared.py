"""States that no encoder made, in their true number, shape and codec: a full text cache, and an index.

Encoding every passage of a stream takes hours. What reading and decoding states costs does not depend on their values:
every passage gets one of a few random ones, through the codec.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from indexer.build.index_job import run_index_job
from indexer.corpus import CorpusLine
from indexer.models import load_encoders
from kalm_cache.codec import get_codec
from kalm_cache.model.checkpoint import open_checkpoint
from kalm_cache.model.prompts import Tokens
from kalm_cache.passage import Passage
from kalm_cache.scoring.text_states import WHOLE, TextStates, open_text_states
from kalm_cache.settings import Settings
from kalm_cache.storage.record import Record
from kalm_cache.storage.text_cache.text_cache import Namespace, TextCache

DISTINCT = 64


@dataclass(frozen=True, slots=True)
class Shape:
    """Of a passage's states: its tokens, the pooling ratio, the states' width, the codec's name."""

    tokens: int
    chunk_size: int
    width: int
    codec: str

    def states(self, seed: int) -> Tensor:
        """Random ones (P, D) float32."""
        rows = -(-self.tokens // self.chunk_size)
        return torch.randn(rows, self.width, generator=torch.Generator().manual_seed(seed))

    def record(self, states: Tensor) -> Record:
        """As the cache keeps them."""
        codec = get_codec(self.codec)
        return Record(codec.number, self.chunk_size, self.width, self.tokens, False, codec.encode(states.numpy()))


def shape_of(settings: Settings, tokens: int) -> Shape:
    """The shape of passages of so many tokens, as these settings make them."""
    width = open_checkpoint(settings.model).config.encoder.hidden_size
    return Shape(tokens, settings.chunk_size, width, settings.codec)


def states_in(cache: TextCache, settings: Settings, dtype: torch.dtype) -> TextStates:
    """The part of a cache that a service with these settings reads."""
    return open_text_states(
        cache,
        open_checkpoint(settings.model),
        get_codec(settings.codec),
        dtype=dtype,
        chunk_size=settings.chunk_size,
    )


def fill(states: TextStates, texts: Sequence[str], shape: Shape) -> None:
    """Write states of every text."""
    put_all(states.namespace, (states.namespace.key(WHOLE, text.encode()) for text in texts), shape)


def fill_up(cache: TextCache, nbytes: int, shape: Shape) -> None:
    """Write records that nobody asks for, so many bytes of them."""
    namespace = cache.namespace({"benchmark": "what others left"})
    count = nbytes // len(shape.record(shape.states(0)).payload)
    put_all(namespace, (namespace.key(WHOLE, f"{i}".encode()) for i in range(count)), shape)


def put_all(namespace: Namespace, keys: Iterable[bytes], shape: Shape) -> None:
    """Put a record under each key, and wait until all are written."""
    records = [shape.record(shape.states(seed)) for seed in range(DISTINCT)]
    flushed_together = namespace.cache.options.queue_bytes // 2 // len(records[0].payload)
    for i, key in enumerate(keys, 1):
        record = records[i % DISTINCT]
        namespace.cache.put(key, len(record.payload), partial(_given, record))
        if i % flushed_together == 0:
            namespace.cache.flush()
    namespace.cache.flush()
    if namespace.cache.counts.dropped:
        raise RuntimeError(f"the cache dropped {namespace.cache.counts.dropped} records")


def _given(record: Record) -> Record:
    return record


class PreparedSide:
    """Stands for the passage side: every passage has the same number of tokens, and one of a few states (P, D)."""

    dtype, device = torch.float32, torch.device("cpu")

    def __init__(self, shape: Shape) -> None:
        self.chunk_size = shape.chunk_size
        self._states = [shape.states(seed) for seed in range(DISTINCT)]
        self._tokens = Tokens([0] * shape.tokens, truncated=False)

    def tokenize(self, documents: Sequence[str]) -> list[Tokens]:
        """The same for each."""
        return [self._tokens] * len(documents)

    def encode(self, batch: Sequence[Tokens]) -> list[Tensor]:
        """The first ones."""
        return [self._states[i % DISTINCT] for i in range(len(batch))]


def build_index(folder: Path, texts: Sequence[str], settings: Settings, shape: Shape) -> None:
    """An index of the passages, whose ids are their numbers."""
    encoders = replace(load_encoders(settings), passage_side=cast(Any, PreparedSide(shape)))
    lines = (CorpusLine(Passage(doc_id_of(number), text), doc_id_of(number)) for number, text in enumerate(texts))
    nothing: Callable[[object], None] = lambda said: None  # noqa: E731
    report = run_index_job(lines, folder, settings, encoders, on_reject=nothing, on_progress=nothing)
    if report.passages != len(texts):
        raise RuntimeError(f"{report.passages} of {len(texts)} passages were indexed")


def doc_id_of(number: int) -> str:
    """The id of a passage."""
    return f"passage {number}"
