"""The prefix of a decoder that was trained to have one for all passages: its tokens see themselves alone, exactly."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from itertools import takewhile
from threading import Lock

from kalm_cache.model.decoder import QueryDecoder
from kalm_cache.model.kernels.prefix_kv import SharedPrefixKV
from kalm_cache.model.prompts import PromptTokens
from kalm_cache.scoring.batching import SharedPrompt

KEPT = 64  # prefixes, of as many instructions; those used longest ago leave first


class IsolatedPrefixes:
    """Keys and values of prefixes, computed at their first prompt. Safe between threads."""

    def __init__(self, decoder: QueryDecoder) -> None:
        self._decoder = decoder
        self._known: OrderedDict[tuple[int, ...], SharedPrefixKV] = OrderedDict()
        self._lock = Lock()

    def share(self, prompt: PromptTokens, prefix: tuple[int, ...]) -> PromptTokens:
        """The prompt with keys and values of the tokens that it has in common with its instruction's prefix."""
        length = common_length(prefix, prompt)
        if not length:
            return prompt
        with self._lock:
            known = self._known.pop(prefix, None) or self._decoder.isolated(prefix)
            self._known[prefix] = known
            if len(self._known) > KEPT:
                self._known.popitem(last=False)
        return SharedPrompt(prompt.ids, prompt.truncated, prompt.prompt, first_tokens(known, length))


def common_length(prefix: Sequence[int], prompt: PromptTokens) -> int:
    """How many tokens of a prompt are shared: those that it has in common with a prefix, and never all of them."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(prefix, prompt.ids[:-1], strict=False)))


def first_tokens(shared: SharedPrefixKV, length: int) -> SharedPrefixKV:
    """The first `length` tokens of a shared prefix: keys and values of a token depend on nothing after it."""
    if length == len(shared.prefix):
        return shared
    return SharedPrefixKV(shared.prefix[:length], shared.states[..., :length, :])
