"""Doc ids → what the decoder goes on from: pooled states, or keys and values from the prefix cache.

In two steps, so that a service can read on one thread and compute on another: `look_up` reads and computes nothing,
`prepare` computes what the prefix cache lacks. Without a prefix cache there is nothing to prepare.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kalm_cache.errors import DamagedRecordError
from kalm_cache.model.prompts import PromptTokens
from kalm_cache.scoring.batching import SharedPrompt
from kalm_cache.scoring.pooling import PooledPassage
from kalm_cache.scoring.prefix_cache import CachedPrefix, PrefixCache, PrefixKey
from kalm_cache.scoring.query_side import QuerySide
from kalm_cache.scoring.shared_prefix import MeanPrefixes
from kalm_cache.scoring.state_reader import DamagedPassage, StateReader


@dataclass(frozen=True, slots=True)
class ReadyPassages:
    """Stored passages whose records are valid: `positions[i]` is where in the ids asked for `passages[i]` belongs."""

    positions: list[int]
    passages: Sequence[PooledPassage | CachedPrefix]
    damaged: list[DamagedPassage]


@dataclass(frozen=True, slots=True)
class LookUp:
    """The passages of `ids`: `hits` are ready, `to_prefill` must run under `prefix` first; neither holds damaged ones.

    `payload_bytes` came from the store.
    """

    ids: Sequence[str]
    chunk_size: int
    prefix: tuple[int, ...]
    hits: dict[str, PooledPassage | CachedPrefix]
    to_prefill: dict[str, PooledPassage]
    damaged: list[DamagedPassage]
    payload_bytes: int = 0


@dataclass(frozen=True, slots=True)
class CachedPassages:
    """The stored passages of one generation, as the decoder takes them.

    chunk_size: pooling ratio, unless a call says otherwise.
    on_damage: gets the problems of damaged records, which look-ups leave out.
    prefix_cache: may be shared with other generations and decoders, as its keys name them.
    decoder: digest of the one that `query_side` is, for these keys.
    means: what prompts share; then nothing is prefilled, and there is no prefix cache. `None` = each passage has its
        own keys and values of a prompt's prefix.
    """

    generation: str
    reader: StateReader
    query_side: QuerySide
    chunk_size: int
    on_damage: Callable[[Sequence[str]], None]
    prefix_cache: PrefixCache | None = None
    decoder: str = ""
    means: MeanPrefixes | None = None

    def shared_tokens(self, prompt: PromptTokens) -> int:
        """How many tokens of a prompt `share` leaves nothing to compute of."""
        if isinstance(prompt, SharedPrompt):
            return len(prompt.shared.prefix)
        return 0 if self.means is None else self.means.length(prompt)

    def can_share(self, prompts: Sequence[PromptTokens], chunk_size: int | None = None) -> bool:
        """Whether `share` has nothing to compute."""
        at = self.chunk_size if chunk_size is None else chunk_size
        return self.means is None or all(self.means.is_known(prompt, at) for prompt in prompts)

    def share(self, prompts: Sequence[PromptTokens], chunk_size: int | None = None) -> list[PromptTokens]:
        """Prompts as the decoder takes them, with the prefix that all passages share, where there is one.

        Raises:
            UsageError: a ratio that is no multiple of the stored one.
        """
        at = self.chunk_size if chunk_size is None else chunk_size
        return list(prompts) if self.means is None else [self.means.share(prompt, at) for prompt in prompts]

    def look_up(self, ids: Sequence[str], prompts: Sequence[PromptTokens], chunk_size: int | None = None) -> LookUp:
        """Find passages for prompts of one instruction: in the prefix cache, else in the store.

        Where a prompt does not begin with the instruction's prefix, as its query changed the tokens before it, all are
        served from pooled states.

        Raises:
            UnknownIdError: ids that the index does not hold.
            UsageError: a ratio that is no multiple of the stored one.
        """
        chunk_size = self.chunk_size if chunk_size is None else chunk_size
        prefix = self._common_prefix(prompts)
        hits = self._cached(list(dict.fromkeys(ids)), chunk_size, prefix)
        missing = [doc_id for doc_id in dict.fromkeys(ids) if doc_id not in hits]
        read = self.reader.read_valid(missing, chunk_size, self.query_side.decoder.stack.dtype)
        self.on_damage([record.problem for record in read.damaged])
        pooled = {missing[i]: passage for i, passage in zip(read.positions, read.passages, strict=True)}
        if prefix:
            return LookUp(ids, chunk_size, prefix, hits, pooled, read.damaged, read.payload_bytes)
        return LookUp(ids, chunk_size, prefix, {**hits, **pooled}, {}, read.damaged, read.payload_bytes)

    def prepare(self, lookup: LookUp) -> ReadyPassages:
        """Run what is to be prefilled under the prefix, and put it into the prefix cache."""
        ready = dict(lookup.hits)
        if self.prefix_cache is not None and lookup.to_prefill:
            side, states = self.query_side, [passage.states for passage in lookup.to_prefill.values()]
            prefilled = side.prefill(lookup.prefix, states, side.batch_pairs, self.prefix_cache.dtype)
            for (doc_id, passage), prefix_kv in zip(lookup.to_prefill.items(), prefilled, strict=True):
                ready[doc_id] = cached = CachedPrefix(passage.tokens, passage.truncated, prefix_kv)
                self.prefix_cache.put(self._key(doc_id, lookup.chunk_size, lookup.prefix), cached)
        positions = [i for i, doc_id in enumerate(lookup.ids) if doc_id in ready]
        return ReadyPassages(positions, [ready[lookup.ids[i]] for i in positions], lookup.damaged)

    def read(
        self, ids: Sequence[str], prompts: Sequence[PromptTokens], chunk_size: int | None = None
    ) -> Sequence[PooledPassage | CachedPrefix]:
        """Both steps: the passages of `ids`, in this order. Raises as `look_up`, and `DamagedRecordError`."""
        read = self.prepare(self.look_up(ids, prompts, chunk_size))
        if read.damaged:
            raise DamagedRecordError(read.damaged[0].problem)
        return read.passages

    def _common_prefix(self, prompts: Sequence[PromptTokens]) -> tuple[int, ...]:
        """What the cache's entries for these prompts lie under; empty where it cannot serve them."""
        if self.prefix_cache is None or not prompts or self.query_side.isolated is not None:
            return ()
        prefix = self.query_side.prefix(prompts[0].prompt)
        return prefix if all(tuple(prompt.ids[: len(prefix)]) == prefix for prompt in prompts) else ()

    def _cached(
        self, ids: Sequence[str], chunk_size: int, prefix: tuple[int, ...]
    ) -> dict[str, PooledPassage | CachedPrefix]:
        if self.prefix_cache is None or not prefix:
            return {}
        cached = self.prefix_cache.get([self._key(doc_id, chunk_size, prefix) for doc_id in ids])
        return {doc_id: passage for doc_id, passage in zip(ids, cached, strict=True) if passage is not None}

    def _key(self, doc_id: str, chunk_size: int, prefix: tuple[int, ...]) -> PrefixKey:
        return PrefixKey(self.generation, self.decoder, doc_id, chunk_size, prefix)
