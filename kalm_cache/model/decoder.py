"""The query side of T5Gemma2: prompt tokens and pooled passage states -> margin. Knows nothing of files or encoders.

Legend: N query-passage pairs, T prompt tokens, P pooled states, D state width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kalm_cache.model.config import StackConfig
from kalm_cache.model.layers import Layer, RMSNorm, TokenEmbedding, rope_tables


class QueryDecoder(nn.Module):
    """Causal decoder with merged attention and, in place of the vocabulary head, the rows of `yes` and `no`."""

    def __init__(self, config: StackConfig, embed_tokens: TokenEmbedding, answer_rows: Tensor) -> None:
        """answer_rows: (2, D), the head's rows of `yes` and `no`, in this order."""
        super().__init__()
        self.config = config
        self.embed_tokens = embed_tokens
        self.layers = nn.ModuleList(Layer(config) for _ in config.layer_types)
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.answer_rows = nn.Parameter(answer_rows)

    def forward(self, prompt: Tensor, last: Tensor, pooled: Tensor, pooled_mask: Tensor) -> Tensor:
        """The margin yes_logit − no_logit of every pair.

        Args:
            prompt: (N, T) int64 prompt token ids, padded on the right (attention is causal: padding is never seen).
            last: (N,) int64, index of each prompt's last token.
            pooled: (N, P, D) pooled states in the run's dtype, padded on the right.
            pooled_mask: (N, P) bool, True where a pooled state is real.

        Returns:
            (N,) float32.
        """
        x = self.embed_tokens(prompt)  # (N, T, D)
        length = prompt.shape[1]
        ropes = rope_tables(length, self.config, x.dtype, x.device)
        visible = pooled_mask[:, None, None, :].expand(-1, 1, length, -1)  # (N, 1, T, P)
        masks = {
            kind: torch.cat((causal_window(length, window, x.device).expand(len(x), 1, -1, -1), visible), dim=-1)
            for kind, window in (("full_attention", length), ("sliding_attention", self.config.sliding_window))
        }  # (N, 1, T, T + P)
        for layer, kind in zip(self.layers, self.config.layer_types, strict=True):
            x = layer(x, ropes[kind], masks[kind], pooled)
        answer = self.norm(x[torch.arange(len(x), device=x.device), last])  # (N, D)
        logits = self._soften((answer @ self.answer_rows.T).float())  # (N, 2)
        return logits[:, 0] - logits[:, 1]

    def _soften(self, logits: Tensor) -> Tensor:
        cap = self.config.final_logit_softcapping
        return logits if cap is None else torch.tanh(logits / cap) * cap


def causal_window(length: int, window: int, device: torch.device) -> Tensor:
    """(length, length) bool: token i sees itself and the window − 1 tokens before it."""
    position = torch.arange(length, device=device)
    distance = position[:, None] - position[None, :]
    return (distance >= 0) & (distance < window)
