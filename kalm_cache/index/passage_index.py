"""`PassageIndex`: a published generation, read-only: first stage, then cached rerank. Never loads the encoder.

A damaged record costs an answer that passage and no more: it is left out and named.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path

import torch

from kalm_cache.codec import get_codec
from kalm_cache.errors import DamagedRecordError, UsageError
from kalm_cache.first_stage import Candidates, Embedder, FirstStage, Mode
from kalm_cache.generations.file_digests import require_valid_first_stage
from kalm_cache.generations.generation import Generation, open_and_share, require_valid
from kalm_cache.generations.segments import SegmentSet
from kalm_cache.index.opening import check_options, checkpoint_of, embedder_of, open_first_stage, same_embedder
from kalm_cache.model.precision import resolve_device, resolve_dtype
from kalm_cache.model.prompts import DEFAULT_INSTRUCTION, DEFAULT_SYSTEM_INSTRUCTION, Tokens
from kalm_cache.scoring.cached_passages import CachedPassages, LookUp, ReadPassages
from kalm_cache.scoring.pooling import PooledPassage
from kalm_cache.scoring.prefix_cache import CachedPrefix, PrefixCache
from kalm_cache.scoring.query_side import DECODE_BATCH, QuerySide, load_query_side
from kalm_cache.scoring.ranking import Answer, SearchResult
from kalm_cache.scoring.results import Found, results_of
from kalm_cache.scoring.state_reader import StateReader
from kalm_cache.storage.locks import SharedLock

__all__ = ["Answer", "Found", "PassageIndex", "SearchResult"]

logger = logging.getLogger(__name__)


class PassageIndex:
    """One generation with the decoder of the model that built it. Use as a context manager, or `close()` it."""

    def __init__(
        self,
        generation: Generation,
        store: SegmentSet,
        first_stage: FirstStage,
        query_side: QuerySide,
        embedder: Embedder,
        chunk_size: int,
        prefix_cache: PrefixCache | None = None,
        lock: SharedLock | None = None,
    ) -> None:
        """What `open` has put together; `lock` is held until the index is closed."""
        self.generation, self.store, self.first_stage, self.embedder = generation, store, first_stage, embedder
        self.query_side, self.chunk_size, self.prefix_cache = query_side, chunk_size, prefix_cache
        stored = generation.manifest.fingerprint
        self.damaged_reads = 0  # passages and texts that an answer had to do without, since the index was opened
        self._reader = StateReader(store, get_codec(stored.codec), stored.chunk_size)
        self._cached = CachedPassages(generation.name, self._reader, query_side, prefix_cache)
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
        reuse_from: PassageIndex | None = None,
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
            reuse_from: an open index of an earlier generation: its decoder and embedder are used again where the new
            one was
                built with the same, and its prefix cache goes on; `device`, `dtype` and the like are then its own.

        Raises:
            IndexNotFoundError: nothing has been published there.
            StoreError: a file is missing or damaged.
            IndexMismatchError: model, codec or chunk size do not fit what is stored; says both sides.
        """
        generation, lock = open_and_share(Path(folder))
        with ExitStack() as stack:
            stack.callback(lock.release)
            check_options(generation, codec, chunk_size)
            prefix_cache = reuse_from.prefix_cache if reuse_from else None
            if prefix_cache is None and prefix_cache_gib:
                prefix_cache = PrefixCache(prefix_cache_gib, prefix_cache_dtype)
            require_valid(generation)
            if check_first_stage:
                require_valid_first_stage(generation)
            if reuse_from and reuse_from.generation.manifest.fingerprint.model == generation.manifest.fingerprint.model:
                query_side = reuse_from.query_side
            else:
                on = resolve_device(device)
                query_side = load_query_side(
                    checkpoint_of(generation, folder, model),
                    device=on,
                    dtype=resolve_dtype(dtype, on),
                    query_max_length=query_max_length,
                )
            reused = reuse_from is not None and same_embedder(reuse_from.generation, generation)
            embedder = reuse_from.embedder if reuse_from and reused else embedder_of(generation, folder)
            store = stack.enter_context(SegmentSet(generation))
            first_stage = open_first_stage(store, embedder)
            stack.pop_all()
        stored = generation.manifest.fingerprint
        return cls(
            generation, store, first_stage, query_side, embedder, chunk_size or stored.chunk_size, prefix_cache, lock
        )

    def __enter__(self) -> PassageIndex:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Unmap the store, and let gc have the generation; the index is unusable after it."""
        self.store.close()
        if self._lock is not None:
            self._lock.release()

    def warm_up(self) -> None:
        """Search and read once, so that what is loaded at the first use is loaded before a query. Decodes nothing."""
        found = self.find("", 1)
        with suppress(DamagedRecordError):
            self.pooled(found.doc_ids)

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
        first_stage_weight: float = 0.0,
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
            first_stage_weight: what the first stage's z-scores add to margins in ordering, see `interpolated`.
            with_text: fill `SearchResult.text`, where the index keeps texts.
        """
        if k < 1 or (top_n is not None and top_n < 1):
            raise UsageError(f"k is {k} and top_n is {top_n}; both must be 1 or more")
        if not 0 <= first_stage_weight < math.inf:
            raise UsageError(f"first_stage_weight is {first_stage_weight}, expected a number of 0 or more")
        started = time.perf_counter()
        found = self.find(query, k, first_stage)
        first_stage_ms = _ms_since(started)
        answer = self._rerank(
            query,
            found.doc_ids,
            top_n=top_n,
            instruction=instruction,
            system_instruction=system_instruction,
            chunk_size=chunk_size,
            with_text=with_text,
            candidates=found.candidates,
            first_stage_weight=first_stage_weight,
        )
        timings = {"first_stage": first_stage_ms} | answer.timings_ms | {"total": _ms_since(started)}
        return replace(answer, timings_ms=timings, damaged=found.damaged + answer.damaged)

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
        return self._rerank(
            query,
            ids,
            top_n=top_n,
            instruction=instruction,
            system_instruction=system_instruction,
            chunk_size=chunk_size,
            with_text=with_text,
        )

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
    ) -> Sequence[PooledPassage | CachedPrefix]:
        """Stored passages as `QuerySide.margins` takes them for prompts of one instruction, in the order of `ids`.

        With a prefix cache, what it holds comes from memory, and what it does not is read, run under the prompts'
        prefix
        and put there.

        Raises:
            as `pooled`.
        """
        found = self.look_up(ids, prompts, instruction, system_instruction, chunk_size=chunk_size)
        if found.damaged:
            raise DamagedRecordError(found.damaged[0].problem)
        return self.prepare(found).passages

    def find(self, query: str, k: int, first_stage: Mode | None = None) -> Found:
        """The first stage's best `k` passages; `first_stage` `None` = the best mode that the index has."""
        candidates = self.first_stage.search(query, k, first_stage or self.first_stage.modes[-1])
        names = self.store.find_doc_ids(candidates.ordinals.tolist())
        damaged = [str(one) for one in names if isinstance(one, DamagedRecordError)]
        self._count_damage(damaged)
        rows = [i for i, one in enumerate(names) if isinstance(one, str)]
        nameless = [f"number {candidates.ordinals[i]}" for i, one in enumerate(names) if not isinstance(one, str)]
        kept = Candidates(candidates.ordinals[rows], candidates.scores[rows])
        return Found([one for one in names if isinstance(one, str)], kept, nameless)

    def look_up(
        self,
        ids: Sequence[str],
        prompts: Sequence[Tokens],
        instruction: str,
        system_instruction: str,
        *,
        chunk_size: int | None = None,
    ) -> LookUp:
        """Find stored passages for prompts of one instruction, without computing; `prepare` makes them ready.

        Those whose records are damaged are left out, named, logged and counted.

        Raises:
            UnknownIdError: ids that the index does not hold.
            UsageError: a chunk size that is no multiple of the stored one.
        """
        chunk_size = self.chunk_size if chunk_size is None else chunk_size
        found = self._cached.look_up(ids, prompts, instruction, system_instruction, chunk_size)
        self._count_damage([one.problem for one in found.damaged])
        return found

    def prepare(self, found: LookUp) -> ReadPassages:
        """What `look_up` found, as `QuerySide.margins` takes it: what the prefix cache lacks is computed."""
        return self._cached.prepare(found)

    def _count_damage(self, problems: Sequence[str]) -> None:
        self.damaged_reads += len(problems)
        for problem in problems:
            logger.error("an answer does without a passage: %s", problem)

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
        *,
        top_n: int | None,
        instruction: str,
        system_instruction: str,
        chunk_size: int | None,
        with_text: bool,
        candidates: Candidates | None = None,
        first_stage_weight: float = 0.0,
    ) -> Answer:
        started = time.perf_counter()
        prompt = self.query_side.prompt(query, instruction, system_instruction)
        found = self.look_up(ids, [prompt], instruction, system_instruction, chunk_size=chunk_size)
        read_ms = _ms_since(started)
        decoding = time.perf_counter()
        read = self.prepare(found)
        margins = self.query_side.margins(
            [prompt] * len(read.passages), [one.states for one in read.passages], DECODE_BATCH
        )
        timings = {"read": read_ms, "decode": _ms_since(decoding)}
        results, textless = results_of(
            ids,
            read.positions,
            margins,
            top_n=top_n,
            find_texts=self.find_texts if with_text else None,
            candidates=candidates,
            first_stage_weight=first_stage_weight,
        )
        damaged = list(dict.fromkeys([*(one.doc_id for one in read.damaged), *textless]))
        return Answer(query, prompt.truncated, results, timings | {"total": _ms_since(started)}, damaged)


def _ms_since(started: float) -> float:
    return (time.perf_counter() - started) * 1000
