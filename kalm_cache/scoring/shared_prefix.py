"""The prefix that prompts share: keys and values taken to be the same for all passages, the mean over some of an index.

Prompt tokens before the query see the passage, so that their keys and values differ from passage to passage, but by
little. With the mean in their place a pair that was never met costs what one in the prefix cache does, and no memory.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Lock

from kalm_cache.model.kernels.prefix_kv import SharedPrefixKV
from kalm_cache.model.prompts import PromptTokens
from kalm_cache.scoring.batching import SharedPrompt
from kalm_cache.scoring.isolated_prefix import common_length, first_tokens
from kalm_cache.scoring.query_side import QuerySide
from kalm_cache.scoring.state_reader import StateReader

SAMPLE = 32  # passages that a mean is over
KEPT = 64  # means, of as many instructions and chunk sizes; those used longest ago leave first


@dataclass(frozen=True, slots=True)
class SharedPrefixStats:
    """Passages that means are over; how many means were computed since the start, are kept, and their bytes."""

    passages: int
    computed: int
    kept: int
    bytes: int


class MeanPrefixes:
    """Means of prefixes' keys and values over the same passages, one a prefix and chunk size. Safe between threads.

    A prompt whose query changes the last tokens of the prefix shares those before them: keys and values of a token
    depend on nothing after it.
    """

    def __init__(
        self,
        reader: StateReader,
        side: QuerySide,
        sample: Sequence[str],
        on_damage: Callable[[Sequence[str]], None],
    ) -> None:
        """`sample`: ids of stored passages; damaged ones are left out, and `on_damage` gets their problems."""
        self._reader, self._side, self._sample, self._on_damage = reader, side, list(sample), on_damage
        self._means: OrderedDict[tuple[tuple[int, ...], int], SharedPrefixKV] = OrderedDict()
        self._computed = 0
        self._lock = Lock()  # of the means
        self._computing = Lock()  # one at a time: who waits for the same finds it

    @property
    def known(self) -> list[tuple[tuple[int, ...], int]]:
        """The prefixes and chunk sizes whose means are kept."""
        with self._lock:
            return list(self._means)

    def length(self, prompt: PromptTokens) -> int:
        """How many tokens of a prompt are shared: those that it has in common with its instruction's prefix."""
        return common_length(self._side.prefix(prompt.prompt), prompt)

    def is_known(self, prompt: PromptTokens, chunk_size: int) -> bool:
        """Whether `share` computes nothing."""
        return not self.length(prompt) or self._find(self._side.prefix(prompt.prompt), chunk_size) is not None

    def share(self, prompt: PromptTokens, chunk_size: int) -> PromptTokens:
        """The prompt with the keys and values of its prefix over passages pooled at `chunk_size`.

        Raises:
            UsageError: a chunk size that is no multiple of the stored one.
        """
        length = self.length(prompt)
        mean = self.mean(self._side.prefix(prompt.prompt), chunk_size) if length else None
        if mean is None:
            return prompt
        return SharedPrompt(prompt.ids, prompt.truncated, prompt.prompt, first_tokens(mean, length))

    def mean(self, prefix: tuple[int, ...], chunk_size: int) -> SharedPrefixKV | None:
        """The mean of a prefix at a chunk size; `None`: no passage of the sample can be read. Raises as `share`."""
        with self._computing:
            if (known := self._find(prefix, chunk_size)) is not None:
                return known
            read = self._reader.read_valid(self._sample, chunk_size, self._side.decoder.stack.dtype)
            self._on_damage([record.problem for record in read.damaged])
            if not read.passages:
                return None
            mean = self._side.mean_prefix(prefix, [passage.states for passage in read.passages])
            with self._lock:
                self._computed += 1
                self._means[prefix, chunk_size] = mean
                while len(self._means) > KEPT:
                    self._means.popitem(last=False)
            return mean

    def stats(self) -> SharedPrefixStats:
        """Counts and sizes as they stand now."""
        with self._lock:
            size = sum(mean.nbytes for mean in self._means.values())
            return SharedPrefixStats(len(self._sample), self._computed, len(self._means), size)

    def _find(self, prefix: tuple[int, ...], chunk_size: int) -> SharedPrefixKV | None:
        with self._lock:
            mean = self._means.get((prefix, chunk_size))
            if mean is not None:
                self._means.move_to_end((prefix, chunk_size))
            return mean
