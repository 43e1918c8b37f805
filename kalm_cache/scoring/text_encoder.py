"""Texts → pooled states, in batches: from a text cache where there is one, else encoded. Knows nothing of queries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from kalm_cache.model.precision import stream_dtype
from kalm_cache.model.prompts import Tokens
from kalm_cache.progress_bar import Advance
from kalm_cache.scoring.passage_side import PassageSide
from kalm_cache.scoring.text_states import LookedUp, TextStates


@dataclass(frozen=True, slots=True)
class TextEncoder:
    """A passage side, and the part of a cache that holds its states; `cached` is `None` where there is none."""

    side: PassageSide
    cached: TextStates | None = None

    def states(self, texts: Sequence[str], batch_size: int, advance: Advance) -> dict[str, Tensor]:
        """The states (P, D) of each distinct text, in the run's dtype, on its device.

        Args:
            texts: as the encoder gets them.
            batch_size: of those encoded together.
            advance: gets how many texts came to be done.
        """
        looked_up = self._look_up(list(dict.fromkeys(texts)))
        dtype = stream_dtype(self.side.dtype)
        states = {text: found.states.to(self.side.device, dtype) for text, found in looked_up.found.items()}
        advance(len(states))
        # products run over real tokens alone; attention's buffers are padded to the longest passage of a batch
        left = sorted(looked_up.missing.items(), key=lambda item: -len(item[1].ids))
        for start in range(0, len(left), batch_size):
            batch = dict(left[start : start + batch_size])
            states |= self._encode(batch)
            advance(len(batch))
        return states

    def _look_up(self, texts: list[str]) -> LookedUp:
        if self.cached is None:
            return LookedUp({}, dict(zip(texts, self.side.tokenize(texts), strict=True)))
        return self.cached.look_up(self.side, texts, chunk_size=self.side.chunk_size)

    def _encode(self, batch: dict[str, Tokens]) -> dict[str, Tensor]:
        if self.cached is None:
            return dict(zip(batch, self.side.encode(list(batch.values())), strict=True))
        encoded = self.cached.encode(self.side, batch, chunk_size=self.side.chunk_size)
        return {text: passage.states for text, passage in encoded.items()}
