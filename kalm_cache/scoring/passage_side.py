"""The passage side, offline: text -> tokens -> states -> pooled. Knows nothing of queries or of the store.

Letters in shapes: `kalm_cache.model`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from kalm_cache.model.checkpoint import Checkpoint
from kalm_cache.model.encoder import PassageEncoder
from kalm_cache.model.prompts import CutSide, PromptTokenizer, Tokens, load_prompt_tokenizer
from kalm_cache.model.runtime import load_encoder
from kalm_cache.scoring.pooling import PooledPassage, mean_pool
from kalm_cache.scoring.room import Room


@dataclass(frozen=True, slots=True)
class PassageSide:
    """Tokenizer, text encoder and pooling with fixed `max_length` (tokens) and `chunk_size` (pooling ratio)."""

    tokenizer: PromptTokenizer
    encoder: PassageEncoder
    device: torch.device
    dtype: torch.dtype
    max_length: int
    chunk_size: int
    room: Room = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "room", Room(self.device))

    def tokenize(self, documents: Sequence[str], cut_side: CutSide = "right") -> list[Tokens]:
        """Tokens of each document behind the reference's passage prefix, cut to `max_length`."""
        return tokenize_passages(self.tokenizer, documents, self.max_length, cut_side)

    def encode(self, batch: Sequence[Tokens]) -> list[Tensor]:
        """Pooled states of one batch, computed together where they fit: (P, D) a passage, on the run's device.

        They are in the run's dtype (float32 in an int8 run).

        Raises:
            DeviceMemoryError: the device has no memory for one of them alone.
            DeviceLostError: the device fails until the process ends.
        """
        return self.room.compute(batch, lambda tokens: len(tokens.ids), self._encode)

    @torch.inference_mode()
    def _encode(self, batch: Sequence[Tokens]) -> list[Tensor]:
        lengths = [len(tokens.ids) for tokens in batch]
        ids = torch.tensor([token for tokens in batch for token in tokens.ids])  # (R,)
        # (R,) -> (R, D) -> (P, D) for each passage
        return mean_pool(self.encoder(ids, lengths), lengths, self.chunk_size)

    def encode_documents(
        self, documents: Sequence[str], batch_size: int, cut_side: CutSide = "right"
    ) -> list[PooledPassage]:
        """Documents of a request, `batch_size` at a time, sorted by length so that a batch holds little padding."""
        tokens = self.tokenize(documents, cut_side)
        # products run over real tokens alone; attention's buffers are padded to the longest passage of a batch
        order = sorted(range(len(tokens)), key=lambda i: -len(tokens[i].ids))
        states: dict[int, Tensor] = {}
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            states.update(zip(batch, self.encode([tokens[i] for i in batch]), strict=True))
        return [PooledPassage(len(each.ids), each.truncated, states[i]) for i, each in enumerate(tokens)]


def tokenize_passages(
    tokenizer: PromptTokenizer, documents: Sequence[str], max_length: int, cut_side: CutSide = "right"
) -> list[Tokens]:
    """Tokens of each document behind the reference's passage prefix, cut to `max_length`. Needs no encoder."""
    if cut_side == "left":
        return [tokenizer.passage_end(document, max_length) for document in documents]
    return tokenizer.passages(documents, max_length)


def load_passage_side(
    checkpoint: Checkpoint,
    *,
    device: torch.device,
    dtype: torch.dtype,
    max_length: int,
    chunk_size: int,
    tokenizer: PromptTokenizer | None = None,
) -> PassageSide:
    """Load the encoder half of a checkpoint. Raises `CheckpointError` when something is missing.

    Args:
        checkpoint: an open checkpoint.
        device: where to compute.
        dtype: what to compute in.
        max_length: tokens of a passage that count.
        chunk_size: pooling ratio.
        tokenizer: the checkpoint's, where it is loaded already (Gemma's takes 290 MiB); `None` = load it.
    """
    tokenizer = tokenizer or load_prompt_tokenizer(checkpoint.folder, checkpoint.config.encoder.vocab_size)
    encoder = load_encoder(checkpoint, device, dtype)
    return PassageSide(tokenizer, encoder, device, dtype, max_length, chunk_size)
