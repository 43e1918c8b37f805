"""Texts → pooled states: from the text cache, else encoded and put into it. Knows nothing of queries.

Legend: P pooled states of a passage, D state width.

A text is looked up by itself. One that is not there is tokenised; if it has more tokens than count, it is looked up by
those that do, so that what never reaches the model makes no new entry.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from kalm_cache.codec import Codec
from kalm_cache.codec.sensitivity import sensitivity_digest
from kalm_cache.errors import DamagedRecordError
from kalm_cache.model.checkpoint import SENSITIVITY_FILE, Checkpoint
from kalm_cache.model.digests import encoder_digest
from kalm_cache.model.precision import dtype_name, stream_dtype
from kalm_cache.model.prompts import PASSAGE_TEMPLATE, CutSide, Tokens
from kalm_cache.process.progress_bar import Advance
from kalm_cache.scoring.passage_side import PassageSide
from kalm_cache.scoring.pooling import PooledPassage
from kalm_cache.storage.record import Record
from kalm_cache.storage.text_cache.text_cache import Namespace, TextCache

FORMAT = 1
ROUNDED = {"fp16": torch.float16, "bf16": torch.bfloat16}  # codecs that round each value to the nearest of a dtype
WHOLE, CUT = b"t", b"k"  # what a key is the hash of: a text, or the tokens of one that was cut


@dataclass(frozen=True, slots=True)
class LookedUp:
    """Distinct texts, as a request needs them.

    found: passages that the cache held, states (P, D) float32. missing: the tokens of the others.
    """

    found: dict[str, PooledPassage]
    missing: dict[str, Tokens]


class Tokenizing(Protocol):
    """Makes tokens of passages; a `PassageSide` does, and it needs no encoder."""

    @property
    def max_length(self) -> int:
        """Tokens of a passage that count."""

    def tokenize(self, documents: Sequence[str], cut_side: CutSide = "right") -> list[Tokens]:
        """The tokens of each document that count."""


@dataclass(frozen=True, slots=True)
class TextStates:
    """The states of any text, pooled at `chunk_size`: `look_up` reads and tokenises, `encode` computes and stores."""

    namespace: Namespace
    codec: Codec
    chunk_size: int

    def holds(self, texts: Sequence[str]) -> bool:
        """Whether each text is there by itself. A look-up may yet find one damaged, too old, or gone."""
        return self.namespace.cache.holds([self.namespace.key(WHOLE, text.encode()) for text in texts])

    def look_up(self, side: Tokenizing, texts: Sequence[str], *, cut_side: CutSide = "right") -> LookedUp:
        """Find what the cache holds; a damaged or unknown record counts as missing.

        Args:
            side: tokenises; its `max_length` tokens of a passage count.
            texts: as the encoder gets them, with their titles.
            cut_side: where a passage that is too long loses tokens.
        """
        keys = {text: self.namespace.key(WHOLE, text.encode()) for text in texts}
        records = self._records(keys)
        records = {text: record for text, record in records.items() if record.tokens <= side.max_length}
        rest = [text for text in keys if text not in records]
        missing = dict(zip(rest, side.tokenize(rest, cut_side), strict=True)) if rest else {}
        records |= self._records(
            {text: self._key(text, tokens) for text, tokens in missing.items() if tokens.truncated}
        )
        found = self._decode(records)
        return LookedUp(found, {text: tokens for text, tokens in missing.items() if text not in found})

    def encode(self, side: PassageSide, missing: Mapping[str, Tokens]) -> dict[str, PooledPassage]:
        """Encode one batch, states (P, D) in the run's dtype, and queue it to be cached.

        States are as fp16 and bf16 round them, so that this answer is that of every later hit. The codecs of fewer bits
        take longer, and round behind the answer: theirs differs by the error that they document.
        """
        encoded = replace(side, chunk_size=self.chunk_size).encode(list(missing.values()))
        passages = {}
        for (text, tokens), states in zip(missing.items(), encoded, strict=True):
            rounded = self._rounded(states)
            self._put(self._key(text, tokens), tokens, rounded)
            passages[text] = PooledPassage(len(tokens.ids), tokens.truncated, rounded)
        return passages

    def _rounded(self, states: Tensor) -> Tensor:
        dtype = ROUNDED.get(self.codec.name.partition("+")[0])
        if dtype is None:
            return states
        rounded = states.to(dtype).to(states.dtype)
        return torch.where(rounded.isfinite(), rounded, states)  # one that the codec cannot hold is not cached

    def _key(self, text: str, tokens: Tokens) -> bytes:
        if not tokens.truncated:
            return self.namespace.key(WHOLE, text.encode())
        return self.namespace.key(CUT, np.asarray(tokens.ids, dtype="<u4").tobytes())

    def _records(self, keys: Mapping[str, bytes]) -> dict[str, Record]:
        found = self.namespace.cache.find(list(keys.values())) if keys else []
        return {text: record for text, record in zip(keys, found, strict=True) if record is not None}

    def _put(self, key: bytes, tokens: Tokens, states: Tensor) -> None:
        def make() -> Record:
            payload = self.codec.encode(states.float().cpu().numpy())
            width = states.shape[1]
            return Record(self.codec.number, self.chunk_size, width, len(tokens.ids), tokens.truncated, payload)

        self.namespace.cache.put(key, states.numel() * states.element_size(), make)

    def _decode(self, records: Mapping[str, Record]) -> dict[str, PooledPassage]:
        """Records → passages; one that does not decode is left out."""
        try:
            return self._decode_all(records)
        except DamagedRecordError:
            sound: dict[str, PooledPassage] = {}
            for text, record in records.items():
                try:
                    sound |= self._decode_all({text: record})
                except DamagedRecordError:
                    continue
            return sound

    def _decode_all(self, records: Mapping[str, Record]) -> dict[str, PooledPassage]:
        if not records:
            return {}
        chosen = list(records.values())
        rows, width = [record.rows for record in chosen], chosen[0].width
        states = torch.empty(sum(rows), width)
        self.codec.decode_many([record.payload for record in chosen], rows, width, states.numpy())
        return {
            text: PooledPassage(record.tokens, record.truncated, each)
            for (text, record), each in zip(records.items(), states.split(rows), strict=True)
        }


def open_text_states(
    cache: TextCache, checkpoint: Checkpoint, codec: Codec, *, dtype: torch.dtype, chunk_size: int
) -> TextStates:
    """The part of a cache whose states `checkpoint` computes in `dtype` and `codec` stores at `chunk_size`."""
    return text_states(cache, encoded_by(checkpoint, codec.name), codec, dtype=dtype, chunk_size=chunk_size)


@dataclass(frozen=True, slots=True)
class EncodedBy:
    """What of a checkpoint decides stored states: `encoder_digest` and `sensitivity_digest`. Its decoder does not."""

    encoder: str
    sensitivity: str


def encoded_by(checkpoint: Checkpoint, codec: str) -> EncodedBy:
    """The digests of a checkpoint whose states a codec stores. Raises `CheckpointError`."""
    return EncodedBy(encoder_digest(checkpoint), sensitivity_digest(checkpoint.folder / SENSITIVITY_FILE, codec))


def text_states(
    cache: TextCache, encoded: EncodedBy, codec: Codec, *, dtype: torch.dtype, chunk_size: int
) -> TextStates:
    """As `open_text_states`, for a checkpoint that is known by its digests."""
    namespace = cache.namespace(
        {
            "format": FORMAT,
            "model": encoded.encoder,  # weights, configuration and tokenizer
            "sensitivity": encoded.sensitivity,
            "passage_template": PASSAGE_TEMPLATE,
            "dtype": dtype_name(dtype),
            "codec": codec.name,
            "chunk_size": chunk_size,
        }
    )
    return TextStates(namespace, codec, chunk_size)


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
        return self.cached.look_up(self.side, texts)

    def _encode(self, batch: dict[str, Tokens]) -> dict[str, Tensor]:
        if self.cached is None:
            return dict(zip(batch, self.side.encode(list(batch.values())), strict=True))
        encoded = self.cached.encode(self.side, batch)
        return {text: passage.states for text, passage in encoded.items()}
