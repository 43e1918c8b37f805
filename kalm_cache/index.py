"""`PassageIndex`: a published generation, read-only: first stage, then cached rerank. Never loads the encoder.

A damaged record costs an answer that passage and no more: it is left out and named.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from kalm_cache.codec import get_codec
from kalm_cache.errors import DamagedRecordError, IndexMismatchError, UsageError
from kalm_cache.first_stage import Candidates, Embedder, FirstStage, FirstStageSet, Mode, load_embedder
from kalm_cache.generation import Generation, open_and_share, require_whole
from kalm_cache.locks import SharedLock
from kalm_cache.model.checkpoint import Checkpoint, open_checkpoint
from kalm_cache.model.precision import resolve_device, resolve_dtype
from kalm_cache.model.prompts import DEFAULT_INSTRUCTION, DEFAULT_SYSTEM_INSTRUCTION, Tokens
from kalm_cache.pooling import PooledPassage
from kalm_cache.prefix_tier import KeptPassage, PrefixTier, TierKey
from kalm_cache.query_side import QuerySide, load_query_side, score_of
from kalm_cache.shards import ShardSet
from kalm_cache.soundness import require_sound_first_stage
from kalm_cache.state_reader import Damaged, StateReader, WholeRead

DECODE_BATCH = 32
logger = logging.getLogger(__name__)


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
    """Results, best first, and where the milliseconds went: `first_stage, read, decode, total`.

    `damaged` names the passages that are not in it as they were stored: their records, and so their scores, are
    missing (they are in no result), or only their texts (then the result's `text` is `None`).
    """

    query: str
    query_truncated: bool
    results: list[SearchResult]
    timings_ms: dict[str, float]
    damaged: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class ReadPassages:
    """Stored passages as far as they are whole: `positions[i]` is where in the ids asked for `passages[i]` belongs."""

    positions: list[int]
    passages: Sequence[PooledPassage | KeptPassage]
    damaged: list[Damaged]


class PassageIndex:
    """One generation with the decoder of the model that built it. Use as a context manager, or `close()` it."""

    def __init__(
        self,
        generation: Generation,
        store: ShardSet,
        first_stage: FirstStage,
        query_side: QuerySide,
        chunk_size: int,
        prefix_tier: PrefixTier | None = None,
        lock: SharedLock | None = None,
    ) -> None:
        """What `open` has put together; `lock` is held until the index is closed."""
        self.generation, self.store, self.first_stage = generation, store, first_stage
        self.query_side, self.chunk_size, self.prefix_tier = query_side, chunk_size, prefix_tier
        stored = generation.manifest.fingerprint
        self.damaged_reads = 0  # passages and texts that an answer had to do without, since the index was opened
        self._reader = StateReader(store, get_codec(stored.codec), stored.chunk_size)
        self._lock = lock

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
        prefix_cache_gib: float = 0.0,
        prefix_cache_dtype: str = "bfloat16",
        check_first_stage: bool = True,
    ) -> PassageIndex:
        """Open the live generation of an index folder.

        Args:
            folder: what `kalm-cache index --index` wrote.
            model: `None` = the model that the manifest names; another location of the same weights is fine.
            device: `None` = CUDA when there is one.
            dtype: of the decoder; `None` = bfloat16 where the device multiplies it natively (CUDA, AMX), else float32.
            codec: checked against the index when given.
            chunk_size: default pooling ratio of answers: the stored one or a multiple of it.
            query_max_length: tokens of a query that count.
            prefix_cache_gib: GiB of memory for passages' keys and values under a prompt's prefix; 0 = none.
            prefix_cache_dtype: what these are held in: float32, bfloat16, int8.
            check_first_stage: read its files once, so that a flipped bit in them is an error and not another ranking.

        Raises:
            IndexNotFoundError: nothing has been published there.
            StoreError: a file is missing or damaged.
            IndexMismatchError: model, codec or chunk size do not fit what is stored; says both sides.
        """
        generation, lock = open_and_share(Path(folder))
        with ExitStack() as stack:
            stack.callback(lock.release)
            _check_options(generation, codec, chunk_size)
            tier = PrefixTier(prefix_cache_gib, prefix_cache_dtype) if prefix_cache_gib else None
            require_whole(generation)
            if check_first_stage:
                require_sound_first_stage(generation)
            on = resolve_device(device)
            query_side = load_query_side(
                _checkpoint_of(generation, folder, model),
                device=on,
                dtype=resolve_dtype(dtype, on),
                query_max_length=query_max_length,
            )
            embedder = _embedder_of(generation, folder)
            store = stack.enter_context(ShardSet(generation))
            first_stage = _open_first_stage(store, embedder)
            stack.pop_all()
        stored = generation.manifest.fingerprint
        return cls(generation, store, first_stage, query_side, chunk_size or stored.chunk_size, tier, lock)

    def __enter__(self) -> PassageIndex:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Unmap the store, and let gc have the generation; the index is unusable after it."""
        self.store.close()
        if self._lock is not None:
            self._lock.release()

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
        doc_ids, candidates, nameless = self._named(candidates)
        first_stage_ms = _ms_since(started)
        answer = self._rerank(
            query, doc_ids, top_n, instruction, system_instruction, chunk_size, with_text, candidates=candidates
        )
        timings = {"first_stage": first_stage_ms} | answer.timings_ms | {"total": _ms_since(started)}
        return replace(answer, timings_ms=timings, damaged=nameless + answer.damaged)

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

        Damaged ones are left out, and named in the answer.

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
        passages = self.passages(ids, [prompt], instruction, system_instruction, chunk_size=chunk_size)
        return self.query_side.margins([prompt] * len(ids), [passage.states for passage in passages], DECODE_BATCH)

    def passages(
        self,
        ids: Sequence[str],
        prompts: Sequence[Tokens],
        instruction: str,
        system_instruction: str,
        *,
        chunk_size: int | None = None,
    ) -> Sequence[PooledPassage | KeptPassage]:
        """Stored passages as `QuerySide.margins` takes them for prompts of one instruction, in the order of `ids`.

        With a prefix tier, what it holds comes from memory, and what it does not is read, run under the prompts' prefix
        and put there. A prompt that does not begin with the prefix, as its query changed the tokens before it, is
        served from the pooled states.

        Raises:
            as `pooled`.
        """
        read = self.whole_passages(ids, prompts, instruction, system_instruction, chunk_size=chunk_size)
        if read.damaged:
            raise DamagedRecordError(read.damaged[0].problem)
        return read.passages

    def whole_passages(
        self,
        ids: Sequence[str],
        prompts: Sequence[Tokens],
        instruction: str,
        system_instruction: str,
        *,
        chunk_size: int | None = None,
    ) -> ReadPassages:
        """As `passages`, without those whose records are damaged, which are named, logged and counted.

        Raises:
            UnknownIdError: ids that the index does not hold.
            UsageError: a chunk size that is no multiple of the stored one.
        """
        ratio = self.chunk_size if chunk_size is None else chunk_size
        if self.prefix_tier is None:
            return _as_read(self._read_whole(ids, ratio))
        prefix = self.query_side.prefix(instruction, system_instruction)
        if not prefix or any(tuple(prompt.ids[: len(prefix)]) != prefix for prompt in prompts):
            return _as_read(self._read_whole(ids, ratio))
        keys = {doc_id: TierKey(self.generation.name, doc_id, ratio, prefix) for doc_id in ids}
        found = dict(zip(keys, self.prefix_tier.get(list(keys.values())), strict=True))
        held = {doc_id: passage for doc_id, passage in found.items() if passage is not None}
        missing = [doc_id for doc_id in keys if doc_id not in held]
        read = self._read_whole(missing, ratio)
        states = [passage.states for passage in read.passages]
        kept = self.query_side.prefill(prefix, states, DECODE_BATCH, self.prefix_tier.dtype)
        for i, passage, entry in zip(read.positions, read.passages, kept, strict=True):
            held[missing[i]] = KeptPassage(passage.tokens, passage.truncated, entry)
            self.prefix_tier.put(keys[missing[i]], held[missing[i]])
        positions = [i for i, doc_id in enumerate(ids) if doc_id in held]
        return ReadPassages(positions, [held[ids[i]] for i in positions], read.damaged)

    def _read_whole(self, ids: Sequence[str], ratio: int) -> WholeRead:
        found = self._reader.read_whole(ids, ratio)
        self._count_damage([one.problem for one in found.damaged])
        return found

    def _count_damage(self, problems: Sequence[str]) -> None:
        self.damaged_reads += len(problems)
        for problem in problems:
            logger.error("an answer does without a passage: %s", problem)

    def _named(self, candidates: Candidates) -> tuple[list[str], Candidates, list[str]]:
        """The candidates' ids, the candidates that have one, and what to call those whose id is damaged."""
        found = self.store.find_doc_ids(candidates.numbers.tolist())
        damaged = [str(one) for one in found if isinstance(one, DamagedRecordError)]
        if not damaged:
            return [one for one in found if isinstance(one, str)], candidates, []
        self._count_damage(damaged)
        rows = [i for i, one in enumerate(found) if isinstance(one, str)]
        nameless = [f"number {candidates.numbers[i]}" for i in range(len(found)) if i not in set(rows)]
        kept = Candidates(candidates.numbers[rows], candidates.scores[rows])
        return [one for one in found if isinstance(one, str)], kept, nameless

    def find_texts(self, doc_ids: Sequence[str]) -> list[str | DamagedRecordError | None]:
        """The text of each id, `None` where none is kept; damage is in its place, logged and counted."""
        texts = self.store.find_texts(doc_ids)
        self._count_damage([str(text) for text in texts if isinstance(text, DamagedRecordError)])
        return texts

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
        prompt = self.query_side.prompt(query, instruction, system_instruction)
        read = self.whole_passages(ids, [prompt], instruction, system_instruction, chunk_size=chunk_size)
        read_ms = _ms_since(started)
        decoding = time.perf_counter()
        margins = self.query_side.margins(
            [prompt] * len(read.passages), [one.states for one in read.passages], DECODE_BATCH
        )
        decode_ms = _ms_since(decoding)
        order = sorted(range(len(margins)), key=lambda i: -margins[i])[:top_n]
        places = [read.positions[i] for i in order]
        texts = self.find_texts([ids[place] for place in places]) if with_text else [None] * len(order)
        results = [
            SearchResult(
                doc_id=ids[place],
                score=score_of(margins[i]),
                margin=margins[i],
                rank=rank,
                first_stage_rank=None if candidates is None else place + 1,
                first_stage_score=None if candidates is None else float(candidates.scores[place]),
                text=text if isinstance(text, str) else None,
            )
            for rank, (i, place, text) in enumerate(zip(order, places, texts, strict=True), start=1)
        ]
        timings = {"read": read_ms, "decode": decode_ms, "total": _ms_since(started)}
        textless = [ids[at] for at, text in zip(places, texts, strict=True) if isinstance(text, DamagedRecordError)]
        damaged = list(dict.fromkeys([*(one.doc_id for one in read.damaged), *textless]))
        return Answer(query, prompt.truncated, results, timings, damaged)


def _as_read(found: WholeRead) -> ReadPassages:
    return ReadPassages(found.positions, found.passages, found.damaged)


def _checkpoint_of(generation: Generation, folder: str | Path, model: str | None) -> Checkpoint:
    manifest = generation.manifest
    checkpoint = open_checkpoint(model or manifest.model)
    if checkpoint.digest() != manifest.fingerprint.model:
        raise IndexMismatchError(
            f"{folder}: built with model {manifest.model!r} (digest {manifest.fingerprint.model[:12]}…), but "
            f"{checkpoint.name!r} has digest {checkpoint.digest()[:12]}…; open it with the model that built it, "
            f"or run: kalm-cache reindex CORPUS --index {folder} --model {checkpoint.name}"
        )
    return checkpoint


def _embedder_of(generation: Generation, folder: str | Path) -> Embedder:
    manifest = generation.manifest
    embedder = load_embedder(
        manifest.embedder,
        query_prompt=manifest.embedder_query_prompt,
        passage_prompt=manifest.embedder_passage_prompt,
    )
    if embedder.digest != manifest.fingerprint.embedder:
        raise IndexMismatchError(
            f"{folder}: the first stage was built with another state of embedder {manifest.embedder!r} "
            f"({manifest.fingerprint.embedder[:12]}… there, {embedder.digest[:12]}… here); "
            f"run: kalm-cache reindex CORPUS --index {folder}"
        )
    return embedder


def _open_first_stage(store: ShardSet, embedder: Embedder) -> FirstStage:
    parts = [(FirstStage.open(one.part.shard / "first_stage", embedder), one.hidden_numbers) for one in store.shards]
    return FirstStageSet(parts) if len(parts) > 1 or len(parts[0][1]) else parts[0][0]


def _check_options(generation: Generation, codec: str | None, chunk_size: int | None) -> None:
    stored, folder = generation.manifest.fingerprint, generation.folder
    if codec is not None and get_codec(codec).name != get_codec(stored.codec).name:
        raise IndexMismatchError(
            f"{folder}: the index was built with codec {stored.codec}, {codec} was asked for; "
            f"leave --codec out, or run: kalm-cache reindex CORPUS --codec {codec}"
        )
    if chunk_size is not None and (chunk_size < 1 or chunk_size % stored.chunk_size):
        raise IndexMismatchError(
            f"{folder}: the index was built with chunk size {stored.chunk_size}, {chunk_size} was asked for and is no "
            f"multiple of it; use a multiple, or run: kalm-cache reindex CORPUS --chunk-size {chunk_size}"
        )


def _ms_since(started: float) -> float:
    return (time.perf_counter() - started) * 1000
