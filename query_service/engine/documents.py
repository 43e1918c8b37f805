"""Texts → pooled states, for passages that the index does not hold. Knows nothing of queries or of HTTP."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from threading import Lock

import torch

from kalm_cache.codec import get_codec
from kalm_cache.errors import IndexMismatchError
from kalm_cache.model.checkpoint import Checkpoint, open_checkpoint
from kalm_cache.model.digests import encoder_digest
from kalm_cache.model.prompts import CutSide, Tokens
from kalm_cache.scoring.passage_side import PassageSide, load_passage_side, tokenize_passages
from kalm_cache.scoring.pooling import PooledPassage, mean_pool
from kalm_cache.scoring.state_codec import codec_of
from kalm_cache.scoring.text_states import LookedUp, TextStates, text_states
from kalm_cache.storage.text_cache.text_cache import TextCache
from query_service.engine.served import ServedModel

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class EncodingOptions:
    """How a text is encoded.

    chunk_size: pooling ratio; `None` = the model's. max_tokens: that count, if fewer than the model's. cut_side: where
    a text that has more is cut. cache: false = the text cache is neither read nor written.
    """

    chunk_size: int | None = None
    max_tokens: int | None = None
    cut_side: CutSide = "right"
    cache: bool = True


class DocumentEncoder:
    """The encoder of the served model, behind the text cache. It loads on first use: until then nothing encodes."""

    def __init__(
        self,
        model: ServedModel,
        location: str | None = None,
        *,
        cache: TextCache | None = None,
        reuse_from: DocumentEncoder | None = None,
    ) -> None:
        """Treat documents as the model's passages.

        Args:
            model: whose settings hold.
            location: where the model lies; `None` = what it is named.
            cache: keeps what was encoded.
            reuse_from: of an earlier generation: its weights are used again where the model is the same.
        """
        self._model, self._location = model, location or model.name
        self._cached = None if cache is None else _part_of(cache, model)
        self._passage_side = reuse_from._for(model) if reuse_from else None
        self._checkpoint: Checkpoint | None = reuse_from._checkpoint if reuse_from and self._passage_side else None
        self._encode_with_sensitivity()
        self._lock = Lock()

    @property
    def loaded(self) -> bool:
        """Whether the weights are in memory."""
        return self._passage_side is not None

    def load(self) -> None:
        """Load the weights, if they are not.

        Raises:
            CheckpointError: the model is missing or incomplete.
            IndexMismatchError: it is no longer the model that is served.
        """
        self._load()

    def caches(self, options: EncodingOptions) -> bool:
        """Whether texts are looked up in the text cache, and kept there."""
        return self._cached_for(options) is not None

    def holds(self, texts: Sequence[str], options: EncodingOptions) -> bool:
        """Whether the text cache has every text as it is, so that nothing is to be encoded. Reads no states."""
        cached = self._cached_for(options)
        return cached is not None and cached.holds(texts)

    def look_up(self, texts: Sequence[str], options: EncodingOptions) -> LookedUp:
        """Find texts in the text cache; the others are tokenised. Needs no weights."""
        cached, counts = self._cached_for(options), _Counting(self, self._max_length(options))
        if cached is None:
            tokens = counts.tokenize(texts, options.cut_side)
            return LookedUp({}, dict(zip(texts, tokens, strict=True)))
        return cached.look_up(counts, texts, cut_side=options.cut_side)

    def tokenize(self, texts: Sequence[str], max_length: int, cut_side: CutSide = "right") -> list[Tokens]:
        """The tokens of each text that count."""
        return tokenize_passages(self._model.query_side.tokenizer, texts, max_length, cut_side)

    def encode(self, batch: Mapping[str, Tokens], options: EncodingOptions) -> dict[str, PooledPassage]:
        """The pooled states of one batch of texts, which the text cache gets, too. Raises as `load`."""
        side, cached = self._load(), self._cached_for(options)
        if cached is not None:
            return cached.encode(side, batch)
        states = replace(side, chunk_size=self._chunk_size(options)).encode(list(batch.values()))
        return {
            text: PooledPassage(len(tokens.ids), tokens.truncated, pooled)
            for (text, tokens), pooled in zip(batch.items(), states, strict=True)
        }

    def shared(self, options: EncodingOptions) -> EncodingOptions:
        """The options with which a text is looked up and encoded, for requests of any options that come to the same.

        What the text cache holds is pooled at its own ratio; `pool` gives the one that was asked for.
        """
        if not self.caches(options):
            return options
        return replace(options, chunk_size=self._model.stored_chunk_size, max_tokens=self._max_length(options))

    def pools(self, options: EncodingOptions) -> bool:
        """Whether the ratio of the options is another one than that of `shared(options)`."""
        return self.caches(options) and self._chunk_size(options) != self._model.stored_chunk_size

    def pool(self, passages: Mapping[str, PooledPassage], options: EncodingOptions) -> dict[str, PooledPassage]:
        """States (P, D) of `shared(options)` → (P', D) float32 at the ratio of the options."""
        chosen, stored = list(passages.values()), self._model.stored_chunk_size
        states = torch.cat([passage.states.to("cpu", torch.float32) for passage in chosen])
        lengths = [passage.tokens for passage in chosen]
        pooled = mean_pool(states, lengths, self._chunk_size(options), stored_chunk_size=stored)
        return {
            text: replace(passage, states=each) for (text, passage), each in zip(passages.items(), pooled, strict=True)
        }

    def _cached_for(self, options: EncodingOptions) -> TextStates | None:
        """What holds the states that the options ask for; none holds a ratio that is no multiple of the stored one."""
        fits = self._chunk_size(options) % self._model.stored_chunk_size == 0
        return self._cached if options.cache and fits else None

    def _chunk_size(self, options: EncodingOptions) -> int:
        return options.chunk_size or self._model.chunk_size

    def _max_length(self, options: EncodingOptions) -> int:
        return min(options.max_tokens or self._model.max_length, self._model.max_length)

    def _for(self, model: ServedModel) -> PassageSide | None:
        """The loaded weights with another index's settings, where these were made by the same model."""
        if self._passage_side is None or self._model.encoded_by.encoder != model.encoded_by.encoder:
            return None
        return replace(self._passage_side, max_length=model.max_length, chunk_size=model.chunk_size)

    def _load(self) -> PassageSide:
        with self._lock:
            if self._passage_side is None:
                self._checkpoint = self._open()
                self._encode_with_sensitivity()
                self._passage_side = self._passage_side_of(self._checkpoint)
                logger.info("loaded the encoder of %s: this service now encodes raw documents", self._location)
            return self._passage_side

    def _encode_with_sensitivity(self) -> None:
        """Let the text cache's codec round by the checkpoint's sensitivity, as an index's does; decoding needs none."""
        if self._cached is not None and self._checkpoint is not None:
            self._cached = replace(self._cached, codec=codec_of(self._checkpoint, self._model.codec))

    def _open(self) -> Checkpoint:
        checkpoint = open_checkpoint(self._location)
        served, found = self._model.encoded_by.encoder, encoder_digest(checkpoint)
        if found != served:
            raise IndexMismatchError(
                f"a model whose encoder has digest {served[:12]}… is served, but that of {self._location!r} now has "
                f"digest {found[:12]}…; restart the service with the model that it serves, which built the index"
            )
        return checkpoint

    def _passage_side_of(self, checkpoint: Checkpoint) -> PassageSide:
        query_side = self._model.query_side
        return load_passage_side(
            checkpoint,
            device=query_side.device,
            dtype=query_side.dtype,
            max_length=self._model.max_length,
            chunk_size=self._model.chunk_size,
            tokenizer=query_side.tokenizer,
        )


@dataclass(frozen=True, slots=True)
class _Counting:
    """An encoder's tokens of texts, so many of which count."""

    encoder: DocumentEncoder
    max_length: int

    def tokenize(self, documents: Sequence[str], cut_side: CutSide = "right") -> list[Tokens]:
        return self.encoder.tokenize(documents, self.max_length, cut_side)


def _part_of(cache: TextCache, model: ServedModel) -> TextStates:
    """The part of a text cache with the states of a model."""
    dtype, codec = model.query_side.dtype, get_codec(model.codec)
    return text_states(cache, model.encoded_by, codec, dtype=dtype, chunk_size=model.stored_chunk_size)
