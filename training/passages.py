"""Tokenised texts on disk: flat ids with offsets."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor


class Passages:
    """Tokenised texts as `prepare` (or `invent`) left them."""

    def __init__(self, path: Path) -> None:
        with np.load(path) as arrays:
            self.ids, self.offsets = arrays["ids"], arrays["offsets"]
        self.lengths = np.diff(self.offsets)

    def __len__(self) -> int:
        return len(self.lengths)

    def tokens(self, row: int) -> np.ndarray:
        """Ids of one text."""
        found: np.ndarray = self.ids[self.offsets[row] : self.offsets[row + 1]]
        return found

    def batch(self, rows: np.ndarray, length: int) -> tuple[Tensor, Tensor]:
        """Ids and mask, right-padded to `length`: (B, length) int64 and bool.

        One width, because bfloat16 products are compiled for each shape that they meet.
        """
        ids = np.zeros((len(rows), length), np.int64)
        mask = np.zeros((len(rows), length), bool)
        for i, row in enumerate(rows):
            tokens = self.tokens(row)[:length]
            ids[i, : len(tokens)], mask[i, : len(tokens)] = tokens, True
        return torch.from_numpy(ids), torch.from_numpy(mask)


def flatten(ids: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Flat ids (uint16) and offsets (N + 1,)."""
    offsets = np.cumsum([0] + [len(i) for i in ids])
    return np.concatenate([np.asarray(i, np.uint16) for i in ids]), offsets
