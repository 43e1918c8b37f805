"""The prefix cache: keys and values of passages under a prompt's prefix, in bounded memory, which later queries reuse.

Prompt tokens before the query depend on instruction and passage alone. With Gemma's tokenizer they are 53 of the 65
tokens of a short query's prompt, so that a passage met before costs the decoder a fifth.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from threading import Lock

import torch

from kalm_cache.errors import UsageError
from kalm_cache.model.kernels.prefix_kv import PrefixKV

PREFIX_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.int8}
GIB = 1 << 30
SHARE = 0.7  # of the memory that is free beside the model; the rest is for batches
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PrefixKey:
    """One passage as one generation holds it, at one pooling ratio, under one prompt prefix (token ids) of one decoder.

    `decoder`: its digest.
    """

    generation: str
    decoder: str
    doc_id: str
    chunk_size: int
    prefix: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class CachedPrefix:
    """One cached passage; `tokens` and `truncated` as `PooledPassage` has them."""

    tokens: int
    truncated: bool
    states: PrefixKV


@dataclass(frozen=True, slots=True)
class PrefixCacheStats:
    """Counts since the start, and what is cached now."""

    hits: int
    misses: int
    evicted: int
    passages: int
    bytes: int
    capacity_bytes: int


class PrefixCache:
    """Least recently used passages leave first when the bytes are used up. Safe to share between threads."""

    def __init__(self, capacity_gib: float, dtype: str = "bfloat16") -> None:
        """Hold at most `capacity_gib` GiB of keys and values in `dtype`: float32, bfloat16, or int8 with scales.

        Raises:
            UsageError: a capacity that is not positive, or another dtype.
        """
        if not capacity_gib > 0:
            raise UsageError(f"prefix_cache_gib is {capacity_gib}; it must be positive, or 0 for no prefix cache")
        if dtype not in PREFIX_DTYPES:
            raise UsageError(f"prefix_cache_dtype {dtype!r} is not known: use {', '.join(PREFIX_DTYPES)}")
        self.dtype = PREFIX_DTYPES[dtype]
        self._capacity = int(capacity_gib * GIB)
        self._entries: OrderedDict[PrefixKey, CachedPrefix] = OrderedDict()
        self._bytes = self._hits = self._misses = self._evicted = 0
        self._lock = Lock()

    def get(self, keys: Sequence[PrefixKey]) -> list[CachedPrefix | None]:
        """The entry of each key, `None` where there is none; counts hits and misses."""
        with self._lock:
            passages = [self._entries.get(key) for key in keys]
            for key, passage in zip(keys, passages, strict=True):
                if passage is None:
                    self._misses += 1
                else:
                    self._hits += 1
                    self._entries.move_to_end(key)
        return passages

    def put(self, key: PrefixKey, passage: CachedPrefix) -> None:
        """Cache a passage, evicting others as needed; one larger than the whole cache is not taken."""
        size = passage.states.nbytes
        if size > self._capacity:
            return
        with self._lock:
            old = self._entries.pop(key, None)
            self._bytes += size - (old.states.nbytes if old else 0)
            self._entries[key] = passage
            while self._bytes > self._capacity:
                _, evicted = self._entries.popitem(last=False)
                self._bytes -= evicted.states.nbytes
                self._evicted += 1

    def stats(self) -> PrefixCacheStats:
        """Counts and sizes as they stand now."""
        with self._lock:
            return PrefixCacheStats(
                self._hits, self._misses, self._evicted, len(self._entries), self._bytes, self._capacity
            )


def gib_with_room(gib: float, device: torch.device) -> float:
    """So much of `gib` as a prefix cache may take on the device, whose models are loaded. A warning says if it is less.

    Its entries lie where the decoder computes: on CUDA they take the memory of batches.
    """
    if device.type != "cuda":
        return gib
    free = torch.cuda.mem_get_info(device)[0] / GIB
    if gib > SHARE * free:
        logger.warning(
            "prefix_cache_gib is %.1f, and %s has %.1f GiB free: %.1f are used", gib, device, free, SHARE * free
        )
    return min(gib, SHARE * free)
