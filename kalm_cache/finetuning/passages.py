"""Passages → pooled states: by id straight from the index's store, texts from a text cache that holds them encoded.

Nothing is copied, and no more is in memory than what one step asks for.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from kalm_cache.codec import get_codec
from kalm_cache.finetuning.data.example import Item
from kalm_cache.model.checkpoint import Checkpoint
from kalm_cache.model.precision import resolve_dtype
from kalm_cache.model.prompts import CutSide, PromptTokenizer, Tokens
from kalm_cache.scoring.passage_side import PassageSide, load_passage_side, tokenize_passages
from kalm_cache.scoring.pooling import PooledPassage, mean_pool
from kalm_cache.scoring.state_reader import StateReader
from kalm_cache.scoring.text_states import TextStates, Tokenizing, open_text_states
from kalm_cache.storage.text_cache.text_cache import TextCache, TextCacheOptions

if TYPE_CHECKING:
    from kalm_cache.index.passage_index import PassageIndex

TEXTS_TOGETHER = 16  # texts encoded together
OWN_CACHE_BYTES = 64 << 30  # of a run without a text cache: the states of its texts, on disk


@dataclass(frozen=True, slots=True)
class Passages:
    """The passages of one index, and of any texts. `texts` holds the encoded ones; `side()` loads the encoder."""

    reader: StateReader
    texts: TextStates
    tokenizer: Tokenizing
    side: Callable[[], PassageSide]

    def states(self, items: Sequence[Item], chunk_size: int) -> list[Tensor]:
        """The states of each item, (P, D) float32 on the CPU, pooled at `chunk_size`.

        Raises:
            UnknownIdError: ids that the index does not hold.
            DamagedRecordError: a record fails its checksum.
            UsageError: `chunk_size` is no multiple of the stored one.
        """
        ids = list(dict.fromkeys(item.value for item in items if item.is_id))
        texts = list(dict.fromkeys(item.value for item in items if not item.is_id))
        by_id = dict(zip(ids, self.reader.read(ids, chunk_size), strict=True)) if ids else {}
        by_text = self._of_texts(texts, chunk_size) if texts else {}
        return [by_id[item.value].states if item.is_id else by_text[item.value] for item in items]

    def encode(self, items: Sequence[Item], advance: Callable[[int], None]) -> None:
        """Encode the texts among items that are not encoded yet; `advance` gets how many texts came to be done."""
        texts = list(dict.fromkeys(item.value for item in items if not item.is_id))
        for start in range(0, len(texts), TEXTS_TOGETHER):
            some = texts[start : start + TEXTS_TOGETHER]
            self._pooled(some)
            advance(len(some))

    def _of_texts(self, texts: Sequence[str], chunk_size: int) -> dict[str, Tensor]:
        stored = self.reader.stored_chunk_size
        found = self._pooled(texts)
        return {
            text: mean_pool(passage.states, [passage.tokens], chunk_size, stored_chunk_size=stored)[0]
            for text, passage in found.items()
        }

    def _pooled(self, texts: Sequence[str]) -> dict[str, PooledPassage]:
        looked_up = self.texts.look_up(self.tokenizer, texts)
        if not looked_up.missing:
            return looked_up.found
        encoded = self.texts.encode(self.side(), looked_up.missing)
        fresh = {text: PooledPassage(p.tokens, p.truncated, p.states.float().cpu()) for text, p in encoded.items()}
        return looked_up.found | fresh


@dataclass(frozen=True, slots=True)
class _Tokenizing:
    """Makes tokens of passages without an encoder."""

    tokenizer: PromptTokenizer
    max_length: int

    def tokenize(self, documents: Sequence[str], cut_side: CutSide = "right") -> list[Tokens]:
        """As `PassageSide.tokenize`."""
        return tokenize_passages(self.tokenizer, documents, self.max_length, cut_side)


@contextmanager
def open_passages(
    index: PassageIndex, checkpoint: Checkpoint, own_cache: Path, text_cache: TextCache | None = None
) -> Iterator[Passages]:
    """The passages of an index, and of texts that `checkpoint` encodes as the index's were.

    Args:
        index: open.
        checkpoint: the model that built it.
        own_cache: folder that takes the states of texts where there is no `text_cache`; made at the first text.
        text_cache: a shared one; it stays open.
    """
    stored, device = index.generation.manifest.fingerprint, index.query_side.device
    codec, dtype = get_codec(stored.codec), resolve_dtype(stored.dtype, device)
    tokenizer = index.query_side.tokenizer

    @functools.cache
    def side() -> PassageSide:
        return load_passage_side(
            checkpoint,
            device=device,
            dtype=dtype,
            max_length=stored.max_length,
            chunk_size=stored.chunk_size,
            tokenizer=tokenizer,
        )

    with ExitStack() as stack:
        cache = text_cache or stack.enter_context(TextCache(TextCacheOptions(own_cache, OWN_CACHE_BYTES)))
        texts = open_text_states(cache, checkpoint, codec, dtype=dtype, chunk_size=stored.chunk_size)
        reader = StateReader(index.store, codec, stored.chunk_size)
        yield Passages(reader, texts, _Tokenizing(tokenizer, stored.max_length), side)
