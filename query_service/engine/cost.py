"""What decoding costs: predicted from lengths, which are known before anything runs, and corrected by what it took."""

from __future__ import annotations

from collections.abc import Sequence
from threading import Lock

from kalm_cache.model.kernels.prefix_kv import PrefixKV
from kalm_cache.scoring.batching import Pair
from kalm_cache.scoring.query_side import QuerySide

WEIGHT_OF_THE_LATEST = 0.1
MOST_AT_ONCE = 4.0  # a batch counts as at most so many times the average: one that stalled says little of the next


class CostModel:
    """Milliseconds a unit, as a moving average; a unit is one prompt token through the decoder. Thread-safe."""

    def __init__(self, ms_per_unit: float = 0.0) -> None:
        """`ms_per_unit`: what is taken before anything was measured; 0 = predict nothing until then."""
        self._ms_per_unit = ms_per_unit
        self._lock = Lock()

    @staticmethod
    def units(side: QuerySide, pairs: Sequence[Pair]) -> list[float]:
        """Units of each pair: its prompt tokens after a cached prefix; without one, all, and weighted pooled states."""
        weight = state_weight(side)
        return [
            pair.size.prompt + (0.0 if isinstance(pair.passage, PrefixKV) else weight * pair.size.pooled)
            for pair in pairs
        ]

    def ms(self, units: float) -> float:
        """How long this many units take together with others in full batches."""
        return units * self._ms_per_unit

    def learn(self, units: float, took_ms: float) -> None:
        """Correct the average by a batch."""
        if units <= 0:
            return
        with self._lock:
            measured = took_ms / units
            before = self._ms_per_unit or measured
            self._ms_per_unit = before + WEIGHT_OF_THE_LATEST * (min(measured, MOST_AT_ONCE * before) - before)


def state_weight(side: QuerySide) -> float:
    """Cost of a pooled state over that of a prompt token: keys and values alone, against all products of a layer."""
    config = side.decoder.stack.config
    key_values = 2 * config.num_key_value_heads * config.head_dim
    queries = config.num_attention_heads * config.head_dim
    return key_values / (key_values + 2 * queries + 3 * config.intermediate_size)
