"""all-MiniLM-L6-v2 as teacher: token states, sentence vectors and single-token vectors. Float32, CPU.

Legend: B batch, S tokens, M = 384 the teacher's width, V vocabulary rows.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

CLS, SEP = 101, 102


class MiniLM:
    """A frozen teacher over its own WordPiece ids (which are the checkpoint's ids for words)."""

    def __init__(self, folder: Path) -> None:
        self.model = AutoModel.from_pretrained(folder, dtype=torch.float32, add_pooling_layer=False).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)

    @torch.inference_mode()
    def token_states(self, ids: Tensor, mask: Tensor) -> Tensor:
        """(B, S), (B, S) -> (B, S, M): last hidden states; ids carry [CLS] and [SEP]."""
        out: Tensor = self.model(input_ids=ids, attention_mask=mask).last_hidden_state
        return out

    def embed(self, texts: list[str], max_length: int = 128, batch: int = 64) -> np.ndarray:
        """Unit sentence vectors (N, M), float32, of texts cut at `max_length` tokens."""
        ids = self.tokenizer(texts, truncation=True, max_length=max_length)["input_ids"]
        order = np.argsort([len(i) for i in ids], kind="stable")
        vectors = np.zeros((len(texts), 384), np.float32)
        for start in range(0, len(order), batch):
            rows = order[start : start + batch]
            padded, mask = pad([ids[r] for r in rows])
            vectors[rows] = mean_unit(self.token_states(padded, mask), mask).numpy()
        return vectors

    def single_tokens(self, batch: int = 512) -> np.ndarray:
        """Last states of [CLS] token [SEP] for every vocabulary row: (V, 3, M)."""
        rows = torch.arange(len(self.tokenizer))
        ids = torch.stack([torch.full_like(rows, CLS), rows, torch.full_like(rows, SEP)], 1)  # (V, 3)
        chunks = [self.token_states(i, torch.ones_like(i)) for i in ids.split(batch)]
        return torch.cat(chunks).numpy()  # (V, 3, M)


def pad(ids: list[list[int]], length: int | None = None) -> tuple[Tensor, Tensor]:
    """Right-padded ids and their mask, both (B, S) int64."""
    length = length or max(map(len, ids))
    padded = torch.zeros(len(ids), length, dtype=torch.long)
    for row, tokens in zip(padded, ids, strict=True):
        row[: len(tokens)] = torch.tensor(tokens)
    lengths = torch.tensor([len(i) for i in ids])
    return padded, (torch.arange(length) < lengths[:, None]).long()


def mean_unit(states: Tensor, mask: Tensor) -> Tensor:
    """Mean over real tokens, scaled to length 1: (B, S, M), (B, S) -> (B, M)."""
    weights = mask[..., None].to(states.dtype)
    mean = (states * weights).sum(1) / weights.sum(1)
    return torch.nn.functional.normalize(mean, dim=-1)
