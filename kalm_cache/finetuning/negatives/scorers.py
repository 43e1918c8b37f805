"""What tells whether a mined passage is relevant after all: the untrained decoder's margins, or a teacher's scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kalm_cache.errors import DamagedRecordError, MissingExtraError, UsageError
from kalm_cache.finetuning.data.example import Item
from kalm_cache.finetuning.passages import Passages
from kalm_cache.finetuning.results.held_out import Prompts
from kalm_cache.scoring.batching import DECODE_BATCH

if TYPE_CHECKING:
    from kalm_cache.index.passage_index import PassageIndex


@dataclass(frozen=True, slots=True)
class MarginScorer:
    """Margins of the decoder as it is, over the states at one chunk size."""

    prompts: Prompts
    passages: Passages
    chunk_size: int

    def __call__(self, query: str, instruction: str | None, items: Sequence[Item]) -> list[float]:
        """The margin of each item."""
        prompt, states = self.prompts.tokens(query, instruction), self.passages.states(items, self.chunk_size)
        return self.prompts.side.margins([prompt] * len(states), states, DECODE_BATCH)


class TeacherScorer:
    """Scores of a sentence-transformers CrossEncoder, over the texts that the index keeps."""

    def __init__(self, index: PassageIndex, name: str) -> None:
        """Load the model `name`: a folder or a hub id.

        Raises:
            MissingExtraError: sentence-transformers is not installed.
            UsageError: it is no CrossEncoder.
        """
        try:
            from sentence_transformers import CrossEncoder
        except ImportError as exc:
            raise MissingExtraError("sentence-transformers", "sentence-transformers") from exc
        from torch.nn import Identity

        self._index = index
        try:
            # the logit, not its sigmoid: of two scores near 1 the difference would be lost
            self._model: Any = CrossEncoder(name, device=str(index.query_side.device), activation_fn=Identity())
        except (OSError, ValueError) as exc:
            raise UsageError(f"--teacher {name}: no CrossEncoder of sentence-transformers: {exc}") from exc

    def __call__(self, query: str, instruction: str | None, items: Sequence[Item]) -> list[float]:
        """The teacher's score of each item; it sees no instruction."""
        scores = self._model.predict([(query, text) for text in self._texts(items)], show_progress_bar=False)
        return [float(score) for score in scores]

    def _texts(self, items: Sequence[Item]) -> list[str]:
        ids = [item.value for item in items if item.is_id]
        stored = dict(zip(ids, self._index.find_texts(ids), strict=True))
        return [_kept(item.value, stored[item.value]) if item.is_id else item.value for item in items]


def _kept(doc_id: str, text: str | DamagedRecordError | None) -> str:
    if isinstance(text, DamagedRecordError):
        raise text
    if text is None:
        raise UsageError(f"the index keeps no text of {doc_id!r}, which a teacher needs; index with store_text")
    return text
