"""The passage side of T5Gemma2: token ids -> last hidden states. Knows nothing of pooling, files or queries.

Legend: B batch, S passage tokens, D state width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kalm_cache.model.config import StackConfig
from kalm_cache.model.layers import Layer, RMSNorm, TokenEmbedding, rope_tables


class PassageEncoder(nn.Module):
    """Bidirectional text encoder; its sliding layers see a window around each token. No vision tower is ever built."""

    def __init__(self, config: StackConfig, embed_tokens: TokenEmbedding) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = embed_tokens
        self.layers = nn.ModuleList(Layer(config) for _ in config.layer_types)
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Last hidden states after the final norm.

        Args:
            ids: (B, S) int64, padded on the right with any id.
            mask: (B, S) bool, True where a token is real.

        Returns:
            (B, S, D) in the run's dtype; rows of padding are meaningless.
        """
        x = self.embed_tokens(ids)  # (B, S, D)
        ropes = rope_tables(ids.shape[1], self.config, x.dtype, x.device)
        real = mask[:, None, None, :]  # (B, 1, 1, S)
        # A padding row may see itself: a row that sees nothing would be NaN in some attention kernels.
        itself = torch.eye(ids.shape[1], dtype=torch.bool, device=ids.device)
        window = bidirectional_window(ids.shape[1], self.config.sliding_window, ids.device)
        masks = {"full_attention": real | itself, "sliding_attention": (real & window) | itself}
        for layer, kind in zip(self.layers, self.config.layer_types, strict=True):
            x = layer(x, ropes[kind], masks[kind])
        return self.norm(x)


def bidirectional_window(length: int, window: int, device: torch.device) -> Tensor:
    """(length, length) bool: token i sees (window + 1) // 2 tokens up to and with itself, and window // 2 after it."""
    position = torch.arange(length, device=device)
    distance = position[:, None] - position[None, :]  # > 0: the key is to the left
    return (distance < (window + 1) // 2) & (distance >= -(window // 2))
