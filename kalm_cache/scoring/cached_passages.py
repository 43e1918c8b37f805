"""Doc ids -> what the decoder goes on from: pooled states, or keys and values that a prefix cache holds.

In two steps, so that a service can read on one thread and compute on another: `look_up` reads and computes nothing,
`prepare` computes what the tier lacks. Without a tier there is nothing to prepare.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kalm_cache.model.prompts import Tokens
from kalm_cache.scoring.pooling import PooledPassage
from kalm_cache.scoring.prefix_cache import CachedPrefix, PrefixCache, PrefixKey
from kalm_cache.scoring.query_side import DECODE_BATCH, QuerySide
from kalm_cache.scoring.state_reader import Damaged, StateReader


@dataclass(frozen=True, slots=True)
class ReadPassages:
    """Stored passages as far as they are whole: `positions[i]` is where in the ids asked for `passages[i]` belongs."""

    positions: list[int]
    passages: Sequence[PooledPassage | CachedPrefix]
    damaged: list[Damaged]


@dataclass(frozen=True, slots=True)
class LookUp:
    """What was found of `ids`: `hits` is ready, `to_prefill` must run under `prefix` first; neither holds damaged ones.

    `payload_bytes` came from the store.
    """

    ids: Sequence[str]
    chunk_size: int
    prefix: tuple[int, ...]
    hits: dict[str, PooledPassage | CachedPrefix]
    to_prefill: dict[str, PooledPassage]
    damaged: list[Damaged]
    payload_bytes: int = 0


@dataclass(frozen=True, slots=True)
class CachedPassages:
    """The passages of one generation. `prefix_cache` may be shared with others: its keys name the generation."""

    generation: str
    reader: StateReader
    query_side: QuerySide
    prefix_cache: PrefixCache | None

    def look_up(
        self, ids: Sequence[str], prompts: Sequence[Tokens], instruction: str, system_instruction: str, chunk_size: int
    ) -> LookUp:
        """Find passages for prompts of one instruction: in the tier, else in the store.

        A prompt that does not begin with the instruction's prefix, as its query changed the tokens before it, is served
        from pooled states.

        Raises:
            UnknownIdError: ids that the index does not hold.
            UsageError: a ratio that is no multiple of the stored one.
        """
        prefix = self._prefix(prompts, instruction, system_instruction)
        hits = self._held(list(dict.fromkeys(ids)), chunk_size, prefix)
        missing = [doc_id for doc_id in dict.fromkeys(ids) if doc_id not in hits]
        read = self.reader.read_valid(missing, chunk_size, self.query_side.decoder.stack.dtype)
        found = {missing[i]: passage for i, passage in zip(read.positions, read.passages, strict=True)}
        if prefix:
            return LookUp(ids, chunk_size, prefix, hits, found, read.damaged, read.payload_bytes)
        return LookUp(ids, chunk_size, prefix, {**hits, **found}, {}, read.damaged, read.payload_bytes)

    def prepare(self, found: LookUp) -> ReadPassages:
        """Run what is fresh under the prefix, and put it into the tier."""
        ready = dict(found.hits)
        if self.prefix_cache is not None and found.to_prefill:
            states = [passage.states for passage in found.to_prefill.values()]
            kept = self.query_side.prefill(found.prefix, states, DECODE_BATCH, self.prefix_cache.dtype)
            for (doc_id, passage), entry in zip(found.to_prefill.items(), kept, strict=True):
                ready[doc_id] = hits = CachedPrefix(passage.tokens, passage.truncated, entry)
                self.prefix_cache.put(self._key(doc_id, found.chunk_size, found.prefix), hits)
        positions = [i for i, doc_id in enumerate(found.ids) if doc_id in ready]
        return ReadPassages(positions, [ready[found.ids[i]] for i in positions], found.damaged)

    def _prefix(self, prompts: Sequence[Tokens], instruction: str, system_instruction: str) -> tuple[int, ...]:
        """What the tier's entries for these prompts lie under; empty where it cannot serve them."""
        if self.prefix_cache is None:
            return ()
        prefix = self.query_side.prefix(instruction, system_instruction)
        return prefix if all(tuple(prompt.ids[: len(prefix)]) == prefix for prompt in prompts) else ()

    def _held(
        self, ids: Sequence[str], chunk_size: int, prefix: tuple[int, ...]
    ) -> dict[str, PooledPassage | CachedPrefix]:
        if self.prefix_cache is None or not prefix:
            return {}
        found = self.prefix_cache.get([self._key(doc_id, chunk_size, prefix) for doc_id in ids])
        return {doc_id: passage for doc_id, passage in zip(ids, found, strict=True) if passage is not None}

    def _key(self, doc_id: str, chunk_size: int, prefix: tuple[int, ...]) -> PrefixKey:
        return PrefixKey(self.generation, doc_id, chunk_size, prefix)
