"""T5Gemma2's layer as torch modules that gradients go through; `kalm_cache.model` is the same layer for inference only.

Formulas: transformers 5.x, `models/t5gemma2/modeling_t5gemma2.py`. Parameter names equal the checkpoint's.
Legend: B batch, L tokens, D state width, H heads, K key/value heads, E head width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kalm_cache.model.config import RopeConfig, StackConfig

Rope = tuple[Tensor, Tensor]  # cos, sin: (L, E)


class RMSNorm(nn.Module):
    """x / rms(x) · (1 + weight), computed in float32 and returned in x's dtype."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """x (…, width) -> the same shape."""
        normed = F.rms_norm(x.float(), (x.shape[-1],), 1.0 + self.weight.float(), self.eps)
        return normed.to(x.dtype)


class GatedMLP(nn.Module):
    """down(gelu_tanh(gate(x)) · up(x))."""

    def __init__(self, config: StackConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x (…, D) -> the same shape."""
        gated = F.gelu(self.gate_proj(x), approximate="tanh") * self.up_proj(x)
        return self.down_proj(gated)


class Attention(nn.Module):
    """Grouped-query attention with normalised queries and keys.

    With `memory` (the pooled states of a passage) it is T5Gemma2's merged attention: the memory's keys and values,
    made by the same projections but without rotation, stand beside the tokens' own in one softmax.
    """

    def __init__(self, config: StackConfig) -> None:
        super().__init__()
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim = config.head_dim
        self.scale = config.query_pre_attn_scalar**-0.5
        self.q_proj = nn.Linear(config.hidden_size, self.heads * self.head_dim, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, self.kv_heads * self.head_dim, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, self.kv_heads * self.head_dim, bias=False)
        self.o_proj = nn.Linear(self.heads * self.head_dim, config.hidden_size, bias=False)
        self.q_norm = RMSNorm(self.head_dim, config.rms_norm_eps)
        self.k_norm = RMSNorm(self.head_dim, config.rms_norm_eps)

    def forward(self, x: Tensor, rope: Rope, mask: Tensor, memory: Tensor | None = None) -> Tensor:
        """x (B, L, D), memory (B, P, D), mask broadcastable to (B, 1, L, L [+ P]), True = visible -> (B, L, D)."""
        query = rotate(self.q_norm(self._split(self.q_proj(x), self.heads)), rope)  # (B, H, L, E)
        key = rotate(self.k_norm(self._split(self.k_proj(x), self.kv_heads)), rope)  # (B, K, L, E)
        value = self._split(self.v_proj(x), self.kv_heads)  # (B, K, L, E)
        if memory is not None:
            memory_key = self.k_norm(self._split(self.k_proj(memory), self.kv_heads))  # (B, K, P, E)
            key = torch.cat((key, memory_key), dim=2)  # (B, K, L + P, E)
            value = torch.cat((value, self._split(self.v_proj(memory), self.kv_heads)), dim=2)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=self.scale, enable_gqa=True)
        return self.o_proj(mixed.transpose(1, 2).flatten(2))  # (B, L, D)

    def _split(self, x: Tensor, heads: int) -> Tensor:
        return x.unflatten(-1, (heads, self.head_dim)).transpose(1, 2)  # (B, L, heads·E) -> (B, heads, L, E)


class Layer(nn.Module):
    """Attention and MLP, each normalised before and after, each with its residual."""

    def __init__(self, config: StackConfig) -> None:
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp = GatedMLP(config)
        self.pre_self_attn_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_self_attn_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.pre_feedforward_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_feedforward_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x: Tensor, rope: Rope, mask: Tensor, memory: Tensor | None = None) -> Tensor:
        """x (B, L, D) -> the same shape; `mask` and `memory` as in `Attention`."""
        attended = self.self_attn(self.pre_self_attn_layernorm(x), rope, mask, memory)
        x = x + self.post_self_attn_layernorm(attended)
        return x + self.post_feedforward_layernorm(self.mlp(self.pre_feedforward_layernorm(x)))


def rotate(x: Tensor, rope: Rope) -> Tensor:
    """Rotary position embedding of x (B, heads, L, E), in the half-split layout: x·cos + (-x₂, x₁)·sin."""
    cos, sin = rope
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def rope_table(length: int, head_dim: int, rope: RopeConfig, dtype: torch.dtype, device: torch.device) -> Rope:
    """cos and sin, (length, head_dim) each: angles in float32, result in `dtype`, as the reference rounds it."""
    exponent = torch.arange(0, head_dim, 2, dtype=torch.float32, device=device) / head_dim
    inverse_frequency = 1.0 / (rope.theta**exponent) / rope.factor  # (E / 2,)
    position = torch.arange(length, dtype=torch.float32, device=device)
    angle = torch.outer(position, inverse_frequency).repeat(1, 2)  # (L, E)
    return angle.cos().to(dtype), angle.sin().to(dtype)


def rope_tables(length: int, config: StackConfig, dtype: torch.dtype, device: torch.device) -> dict[str, Rope]:
    """One `rope_table` for every kind of layer that the stack has."""
    return {
        kind: rope_table(length, config.head_dim, config.rope[kind], dtype, device) for kind in set(config.layer_types)
    }


def bidirectional_window(length: int, window: int, device: torch.device) -> Tensor:
    """(length, length) bool: token i sees (window + 1) // 2 tokens up to and with itself, and window // 2 after it."""
    position = torch.arange(length, device=device)
    distance = position[:, None] - position[None, :]  # > 0: the key is to the left
    return (distance < (window + 1) // 2) & (distance >= -(window // 2))


def causal_window(length: int, window: int, device: torch.device) -> Tensor:
    """(length, length) bool: token i sees itself and the window − 1 tokens before it."""
    position = torch.arange(length, device=device)
    distance = position[:, None] - position[None, :]
    return (distance >= 0) & (distance < window)
