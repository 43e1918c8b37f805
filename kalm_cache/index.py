"""`PassageIndex`: a published generation, read-only: first stage, then cached rerank. Never loads the encoder."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from kalm_cache.codec import get_codec
from kalm_cache.errors import IndexMismatchError, UsageError
from kalm_cache.first_stage import Candidates, FirstStage, Mode, load_embedder
from kalm_cache.generation import Generation, open_current, require_whole
from kalm_cache.model.checkpoint import open_checkpoint
from kalm_cache.model.prompts import DEFAULT_INSTRUCTION, DEFAULT_SYSTEM_INSTRUCTION
from kalm_cache.model.runtime import resolve_device, resolve_dtype
from kalm_cache.pooling import PooledPassage
from kalm_cache.query_side import QuerySide, load_query_side, score_of
from kalm_cache.state_reader import StateReader
from kalm_cache.store import PassageStore

DECODE_BATCH = 32


@dataclass(frozen=True, slots=True)
class SearchResult:
    """One passage of an answer. Ranks count from 1; the first-stage fields are `None` when ids were given."""

    doc_id: str
    score: float
    margin: float
    rank: int
    first_stage_rank: int | None
    first_stage_score: float | None
    text: str | None


@dataclass(frozen=True, slots=True)
class Answer:
    """Results, best first, and where the milliseconds went: `first_stage, read, decode, total`."""

    query: str
    query_truncated: bool
    results: list[SearchResult]
    timings_ms: dict[str, float]


class PassageIndex:
    """One generation with the decoder of the model that built it. Use as a context manager, or `close()` it."""

    def __init__(
        self,
        generation: Generation,
        store: PassageStore,
        first_stage: FirstStage,
        query_side: QuerySide,
        chunk_size: int,
    ) -> None:
        self.generation, self.store, self.first_stage = generation, store, first_stage
        self.query_side, self.chunk_size = query_side, chunk_size
        stored = generation.manifest.fingerprint
        self._reader = StateReader(store, get_codec(stored.codec), stored.chunk_size)

    @classmethod
    def open(
        cls,
        folder: str | Path,
        *,
        model: str | None = None,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        codec: str | None = None,
        chunk_size: int | None = None,
        query_max_length: int = 512,
    ) -> PassageIndex:
        """Open the live generation of an index folder.

        Args:
            folder: what `kalm-cache index --index` wrote.
            model: `None` = the model that the manifest names; another location of the same weights is fine.
            device: `None` = CUDA when there is one.
            dtype: of the decoder; `None` = bfloat16 on CUDA, float32 on the CPU.
            codec: checked against the index when given.
            chunk_size: default pooling ratio of answers: the stored one or a multiple of it.
            query_max_length: tokens of a query that count.

        Raises:
            IndexNotFoundError: nothing has been published there.
            StoreError: a file is missing or damaged.
            IndexMismatchError: model, codec or chunk size do not fit what is stored; says both sides.
        """
        generation = open_current(Path(folder))
        manifest = generation.manifest
        stored = manifest.fingerprint
        _check_options(generation, codec, chunk_size)
        require_whole(generation)
        checkpoint = open_checkpoint(model or manifest.model)
        if checkpoint.digest() != stored.model:
            raise IndexMismatchError(
                f"{folder}: built with model {manifest.model!r} (digest {stored.model[:12]}…), but "
                f"{checkpoint.name!r} has digest {checkpoint.digest()[:12]}…; open it with the model that built it, "
                f"or run: kalm-cache index CORPUS --index {folder} --model {checkpoint.name}"
            )
        on = resolve_device(device)
        query_side = load_query_side(
            checkpoint, device=on, dtype=resolve_dtype(dtype, on), query_max_length=query_max_length
        )
        embedder = load_embedder(
            manifest.embedder,
            query_prompt=manifest.embedder_query_prompt,
            passage_prompt=manifest.embedder_passage_prompt,
        )
        if embedder.digest != stored.embedder:
            raise IndexMismatchError(
                f"{folder}: the first stage was built with another state of embedder {manifest.embedder!r} "
                f"({stored.embedder[:12]}… there, {embedder.digest[:12]}… here); re-index"
            )
        first_stage = FirstStage.open(generation.shard / "first_stage", embedder)
        store = PassageStore(generation.shard / "passages.lmdb")
        return cls(generation, store, first_stage, query_side, chunk_size or stored.chunk_size)

    def __enter__(self) -> PassageIndex:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Unmap the store; the index is unusable after it."""
        self.store.close()

    def __len__(self) -> int:
        return self.generation.manifest.counts.passages

    def search(
        self,
        query: str,
        *,
        k: int = 100,
        top_n: int | None = 10,
        first_stage: Mode | None = None,
        instruction: str = DEFAULT_INSTRUCTION,
        system_instruction: str = DEFAULT_SYSTEM_INSTRUCTION,
        chunk_size: int | None = None,
        with_text: bool = True,
    ) -> Answer:
        """The `top_n` best of the first stage's `k` candidates, by the reranker's margin.

        Args:
            query: the question, as text.
            k: how many candidates are reranked.
            top_n: how many are returned; `None` = all.
            first_stage: `dense`, `bm25` or `fused`; `None` = the best that the index has.
            instruction: what the query asks for.
            system_instruction: the prompt's first line.
            chunk_size: pooling ratio of this answer; `None` = the index's default.
            with_text: fill `SearchResult.text`, where the index keeps texts.
        """
        if k < 1 or (top_n is not None and top_n < 1):
            raise UsageError(f"k is {k} and top_n is {top_n}; both must be 1 or more")
        started = time.perf_counter()
        candidates = self.first_stage.search(query, k, first_stage or self.first_stage.modes[-1])
        doc_ids = self.store.doc_ids(candidates.numbers.tolist())
        first_stage_ms = _ms_since(started)
        answer = self._rerank(
            query, doc_ids, top_n, instruction, system_instruction, chunk_size, with_text, candidates=candidates
        )
        timings = {"first_stage": first_stage_ms} | answer.timings_ms | {"total": _ms_since(started)}
        return Answer(query, answer.query_truncated, answer.results, timings)

    def rerank(
        self,
        query: str,
        ids: Sequence[str],
        *,
        top_n: int | None = None,
        instruction: str = DEFAULT_INSTRUCTION,
        system_instruction: str = DEFAULT_SYSTEM_INSTRUCTION,
        chunk_size: int | None = None,
        with_text: bool = True,
    ) -> Answer:
        """Rank stored passages for a query by their ids alone: no text is read to score them, no encoder runs.

        Raises:
            UnknownIdError: ids that the index does not hold.
        """
        return self._rerank(query, ids, top_n, instruction, system_instruction, chunk_size, with_text)

    def margins(
        self,
        query: str,
        ids: Sequence[str],
        *,
        instruction: str = DEFAULT_INSTRUCTION,
        system_instruction: str = DEFAULT_SYSTEM_INSTRUCTION,
        chunk_size: int | None = None,
    ) -> list[float]:
        """The margin of each stored passage for a query, in the order of `ids`."""
        prompt = self.query_side.prompt(query, instruction, system_instruction)
        states = [passage.states for passage in self.pooled(ids, chunk_size=chunk_size)]
        return self.query_side.margins([prompt] * len(ids), states, DECODE_BATCH)

    def pooled(self, ids: Sequence[str], *, chunk_size: int | None = None) -> list[PooledPassage]:
        """Stored passages ready for the decoder, in the order of `ids`; their states are float32 on the CPU.

        Raises:
            UnknownIdError: ids that the index does not hold.
            DamagedRecordError: a record fails its checksum.
            UsageError: a chunk size that is no multiple of the stored one.
        """
        return self._reader.read(ids, self.chunk_size if chunk_size is None else chunk_size)

    def _rerank(
        self,
        query: str,
        ids: Sequence[str],
        top_n: int | None,
        instruction: str,
        system_instruction: str,
        chunk_size: int | None,
        with_text: bool,
        candidates: Candidates | None = None,
    ) -> Answer:
        started = time.perf_counter()
        states = [passage.states for passage in self.pooled(ids, chunk_size=chunk_size)]
        read_ms = _ms_since(started)
        decoding = time.perf_counter()
        prompt = self.query_side.prompt(query, instruction, system_instruction)
        margins = self.query_side.margins([prompt] * len(ids), states, DECODE_BATCH)
        decode_ms = _ms_since(decoding)
        order = sorted(range(len(ids)), key=lambda i: -margins[i])[:top_n]
        texts = self.store.texts([ids[i] for i in order]) if with_text else [None] * len(order)
        results = [
            SearchResult(
                doc_id=ids[i],
                score=score_of(margins[i]),
                margin=margins[i],
                rank=rank,
                first_stage_rank=None if candidates is None else i + 1,
                first_stage_score=None if candidates is None else float(candidates.scores[i]),
                text=text,
            )
            for rank, (i, text) in enumerate(zip(order, texts, strict=True), start=1)
        ]
        timings = {"read": read_ms, "decode": decode_ms, "total": _ms_since(started)}
        return Answer(query, prompt.truncated, results, timings)


def _check_options(generation: Generation, codec: str | None, chunk_size: int | None) -> None:
    stored, folder = generation.manifest.fingerprint, generation.folder
    if codec is not None and codec != stored.codec:
        raise IndexMismatchError(
            f"{folder}: the index was built with codec {stored.codec}, {codec} was asked for; "
            f"leave --codec out, or run: kalm-cache index CORPUS --codec {codec}"
        )
    if chunk_size is not None and (chunk_size < 1 or chunk_size % stored.chunk_size):
        raise IndexMismatchError(
            f"{folder}: the index was built with chunk size {stored.chunk_size}, {chunk_size} was asked for and is no "
            f"multiple of it; use a multiple, or run: kalm-cache index CORPUS --chunk-size {chunk_size}"
        )


def _ms_since(started: float) -> float:
    return (time.perf_counter() - started) * 1000
