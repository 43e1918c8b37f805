"""Token ids -> scaled rows of the embedding table; the end-of-image id has a vector of its own, which is not scaled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


class Embedding(Protocol):
    """A table (vocabulary, D), and its rows as the first layer takes them."""

    table: Tensor

    def __call__(self, ids: Tensor) -> Tensor:
        """ids (R,) int64, on the device of the run -> (R, D) there, in the run's dtype; a copy."""
        ...

    def tensors(self) -> Sequence[Tensor]:
        """What it keeps in memory."""
        ...


class TokenEmbedding:
    """A table that may lie in another dtype, or be mapped from disk: only the rows asked for are read and converted."""

    def __init__(self, table: Tensor, eoi_embedding: Tensor | None, eoi_token_index: int, dtype: torch.dtype) -> None:
        self.table, self.eoi_embedding, self.eoi_token_index = table, eoi_embedding, eoi_token_index
        self.dtype = dtype
        self.scale = torch.tensor(table.shape[1] ** 0.5).to(dtype)  # rounded to the run's dtype, as the reference does

    def __call__(self, ids: Tensor) -> Tensor:
        """See `Embedding`."""
        scaled = F.embedding(ids, self.table).to(self.dtype) * self.scale  # (R, D), by √D
        if self.eoi_embedding is None:
            return scaled
        is_eoi = (ids == self.eoi_token_index).unsqueeze(-1)  # (R, 1)
        return torch.where(is_eoi, self.eoi_embedding.to(self.dtype), scaled)

    def tensors(self) -> Sequence[Tensor]:
        """See `Embedding`: nothing of its own."""
        return ()

    def on(self, device: torch.device) -> DeviceEmbedding:
        """The same rows, all of them made there: a GPU waits for no row of a disk."""
        table = self.table.to(device, self.dtype) * self.scale  # the same roundings as of single rows
        if self.eoi_embedding is not None and 0 <= self.eoi_token_index < len(table):
            table[self.eoi_token_index] = self.eoi_embedding.to(self.dtype)
        return DeviceEmbedding(table)


class DeviceEmbedding:
    """A table on the device, of rows that are scaled already."""

    def __init__(self, table: Tensor) -> None:
        self.table = table

    def __call__(self, ids: Tensor) -> Tensor:
        """See `Embedding`."""
        return F.embedding(ids, self.table)  # (R, D)

    def tensors(self) -> Sequence[Tensor]:
        """See `Embedding`."""
        return (self.table,)
