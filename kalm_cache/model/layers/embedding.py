"""Token ids -> scaled rows of the embedding table."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


class TokenEmbedding:
    """Token id -> scaled row of the embedding table; the end-of-image id has a vector of its own.

    The table may live in another dtype, or be mapped from disk: only the rows asked for are read and converted.
    """

    def __init__(self, table: Tensor, eoi_embedding: Tensor | None, eoi_token_index: int, dtype: torch.dtype) -> None:
        self.table, self.eoi_embedding, self.eoi_token_index = table, eoi_embedding, eoi_token_index
        self.dtype = dtype
        self.scale = torch.tensor(table.shape[1] ** 0.5).to(dtype)  # rounded to the run's dtype, as the reference does

    def __call__(self, ids: Tensor) -> Tensor:
        """ids (R,) int64 -> (R, D) on the ids' device."""
        # gathered where the table lies, then moved: R rows travel, not the table
        rows = F.embedding(ids.to(self.table.device), self.table).to(ids.device, self.dtype)  # (R, D)
        scaled = rows * self.scale.to(ids.device)  # by √D
        if self.eoi_embedding is None:
            return scaled
        is_eoi = (ids == self.eoi_token_index).unsqueeze(-1)  # (R, 1); its vector is not scaled
        return torch.where(is_eoi, self.eoi_embedding.to(ids.device, self.dtype), scaled)
