"""T5Gemma2's layer as functions that gradients go through; `kalm_cache.model` is the same layer for inference only.

Formulas: transformers 5.x, `models/t5gemma2/modeling_t5gemma2.py`. Parameter names equal the checkpoint's.
Legend: B passages, S tokens, Q queries of a passage, T prompt tokens, P pooled states, M memory (prefix and pooled
states), D state width, H heads, K key/value heads, E head width.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kalm_cache.model.config import RopeConfig, StackConfig
from training import fused

VOCABULARY = 30_522
WIDTH = 256
SLIDING, FULL = "sliding_attention", "full_attention"
STACK = StackConfig(
    vocab_size=VOCABULARY,
    hidden_size=WIDTH,
    intermediate_size=768,
    layer_types=(SLIDING, SLIDING, SLIDING, FULL),
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=64,
    query_pre_attn_scalar=64.0,
    sliding_window=256,
    rms_norm_eps=1e-6,
    rope={FULL: RopeConfig(1_000_000.0), SLIDING: RopeConfig(10_000.0)},
    final_logit_softcapping=None,
    eoi_token_index=VOCABULARY,  # outside the table: never met
)
K, E = STACK.num_key_value_heads, STACK.head_dim
H = STACK.num_attention_heads
SHARE = H // K  # query heads of a key/value head
SCALE = STACK.query_pre_attn_scalar**-0.5
EPS = STACK.rms_norm_eps
HIDDEN = -1e9

Weights = tuple[Tensor, ...]

Rope = tuple[Tensor, Tensor]  # cos, sin: (L, E / 2)


class RMSNorm(nn.Module):
    """The weight of `norm`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))


class GatedMLP(nn.Module):
    """The matrices of `feed_forward`."""

    def __init__(self, config: StackConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)


class Attention(nn.Module):
    """The matrices and norms of grouped-query attention."""

    def __init__(self, config: StackConfig) -> None:
        super().__init__()
        queries, keys = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, queries, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, keys, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, keys, bias=False)
        self.o_proj = nn.Linear(queries, config.hidden_size, bias=False)
        self.q_norm = RMSNorm(config.head_dim)
        self.k_norm = RMSNorm(config.head_dim)


class Layer(nn.Module):
    """A layer's parameters: attention and MLP, each with a norm before and after."""

    def __init__(self, config: StackConfig) -> None:
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp = GatedMLP(config)
        self.pre_self_attn_layernorm = RMSNorm(config.hidden_size)
        self.post_self_attn_layernorm = RMSNorm(config.hidden_size)
        self.pre_feedforward_layernorm = RMSNorm(config.hidden_size)
        self.post_feedforward_layernorm = RMSNorm(config.hidden_size)


def weights(layer: Any, dtype: torch.dtype) -> Weights:
    """A layer's matrices in the compute dtype and its norms' weights in float32, in the order that the layers take."""
    attn, mlp = layer.self_attn, layer.mlp
    matrices = (attn.q_proj, attn.k_proj, attn.v_proj, attn.o_proj, mlp.gate_proj, mlp.up_proj, mlp.down_proj)
    norms = (
        attn.q_norm,
        attn.k_norm,
        layer.pre_self_attn_layernorm,
        layer.post_self_attn_layernorm,
        layer.pre_feedforward_layernorm,
        layer.post_feedforward_layernorm,
    )
    return (*(m.weight.to(dtype) for m in matrices), *(n.weight for n in norms))


def norm(x: Tensor, weight: Tensor, residual: Tensor | None = None) -> Tensor:
    """[residual +] x / rms(x) · (1 + weight) over the last axis, computed in float32 and returned in x's dtype."""
    if fused.available(x):
        out: Tensor = fused.Norm.apply(x, weight, EPS, residual)  # type: ignore[no-untyped-call]
        return out
    y = x.float()
    y = (y * torch.rsqrt(y.square().mean(-1, keepdim=True) + EPS) * (1 + weight)).to(x.dtype)
    return y if residual is None else residual + y


def rotated_norm(x: Tensor, weight: Tensor, rope: Rope) -> Tensor:
    """`norm` of heads (…, T, heads, E), rotated by their tokens' angles."""
    if fused.available(x):
        out: Tensor = fused.RotatedNorm.apply(x, weight, EPS, *rope)  # type: ignore[no-untyped-call]
        return out
    cos, sin = (part.repeat(1, 2).unsqueeze(-2).to(x.dtype) for part in rope)  # (T, 1, E)
    return rotate(norm(x, weight), cos, sin)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of x (…, heads, E) in the half-split layout; cos and sin broadcast to it."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def heads(x: Tensor, matrix: Tensor) -> Tensor:
    """Projection split into heads: (…, D) -> (…, heads, E)."""
    return F.linear(x, matrix).unflatten(-1, (-1, E))


def feed_forward(x: Tensor, w: Weights) -> Tensor:
    """x + norm(MLP(norm(x)))."""
    h = norm(x, w[11])
    return norm(F.linear(gated_gelu(F.linear(h, w[4]), F.linear(h, w[5])), w[6]), w[12], x)


def gated_gelu(gate: Tensor, up: Tensor) -> Tensor:
    """gelu_tanh(gate) · up."""
    if fused.available(gate):
        out: Tensor = fused.GatedGelu.apply(gate, up)  # type: ignore[no-untyped-call]
        return out
    return F.gelu(gate, approximate="tanh") * up


def encoder_layer(x: Tensor, w: Weights, rope: Rope, bias: Tensor) -> Tensor:
    """x (B, S, D), bias broadcastable to (B, K, H/K, S, S) -> (B, S, D)."""
    count, length, width = x.shape
    h = norm(x, w[9])
    query = rotated_norm(heads(h, w[0]), w[7], rope).transpose(1, 2).reshape(count, K, SHARE * length, E)
    key = rotated_norm(heads(h, w[1]), w[8], rope).transpose(1, 2)  # (B, K, S, E)
    value = heads(h, w[2]).transpose(1, 2)
    scores = (query @ key.transpose(2, 3)).float().view(count, K, SHARE, length, length) * SCALE + bias
    share = scores.softmax(-1).to(x.dtype).view(count, K, SHARE * length, length)
    mixed = (share @ value).view(count, H, length, E).transpose(1, 2).reshape(count, length, width)
    return feed_forward(norm(F.linear(mixed, w[3]), w[10], x), w)


def memory(pooled: Tensor, w: Weights) -> tuple[Tensor, Tensor]:
    """Keys (not rotated) and values of pooled states: (B, P, D) -> (B, K, P, E) each."""
    return norm(heads(pooled, w[1]), w[8]).transpose(1, 2), heads(pooled, w[2]).transpose(1, 2)


def own_keys(x: Tensor, w: Weights, rope: Rope) -> tuple[Tensor, Tensor]:
    """Keys (rotated) and values of a prefix: (B, 1, T, D) -> (B, K, T, E) each."""
    h = norm(x[:, 0], w[9])
    return rotated_norm(heads(h, w[1]), w[8], rope).transpose(1, 2), heads(h, w[2]).transpose(1, 2)


def decoder_layer(
    x: Tensor, w: Weights, rope: Rope, memory_key: Tensor, memory_value: Tensor, memory_bias: Tensor
) -> Tensor:
    """Merged attention and MLP: x (B, Q, T, D), memory (B, K, M, E), its bias (B, 1, 1, 1, 1, M) -> (B, Q, T, D)."""
    count, queries, length, width = x.shape
    h = norm(x, w[9])
    query = rotated_norm(heads(h, w[0]), w[7], rope).view(count, queries, length, K, SHARE, E)
    key = rotated_norm(heads(h, w[1]), w[8], rope).permute(0, 1, 3, 2, 4).reshape(-1, length, E)
    value = heads(h, w[2]).permute(0, 1, 3, 2, 4).reshape(-1, length, E)
    causal = torch.full((length, length), HIDDEN, device=x.device).triu(1)
    own_query = query.permute(0, 1, 3, 4, 2, 5).reshape(-1, SHARE * length, E)
    own = (own_query @ key.transpose(1, 2)).float().view(count, queries, K, SHARE, length, length) * SCALE + causal
    far_query = query.permute(0, 3, 1, 4, 2, 5).reshape(count * K, -1, E)
    far = (far_query @ memory_key.flatten(0, 1).transpose(1, 2)).float()
    far = far.view(count, K, queries, SHARE, length, -1).transpose(1, 2) * SCALE + memory_bias
    share = torch.cat((own, far), -1).softmax(-1).to(x.dtype)  # (B, Q, K, H/K, T, T + M)
    own_share = share[..., :length].reshape(-1, SHARE * length, length)
    far_share = share[..., length:].transpose(1, 2).reshape(count * K, queries * SHARE * length, -1)
    mixed = (own_share @ value).view(count, queries, K, SHARE, length, E)
    mixed = mixed + (far_share @ memory_value.flatten(0, 1)).view(count, K, queries, SHARE, length, E).transpose(1, 2)
    mixed = mixed.permute(0, 1, 4, 2, 3, 5).reshape(count, queries, length, width)
    return feed_forward(norm(F.linear(mixed, w[3]), w[10], x), w)


def last_token_layer(
    x: Tensor,
    last: Tensor,
    w: Weights,
    rope: Rope,
    memory_key: Tensor,
    memory_value: Tensor,
    memory_bias: Tensor,
) -> Tensor:
    """`decoder_layer` for one position a query: x (B, Q, T, D), last (B, Q) -> (B, Q, D)."""
    count, queries, length, width = x.shape
    h = norm(x, w[9])
    at = last[..., None, None].expand(-1, -1, 1, width)
    query = norm(heads(h.gather(2, at)[:, :, 0], w[0]), w[7])  # (B, Q, H, E)
    query = rotate(query, *(part[last].repeat(1, 1, 2).unsqueeze(2).to(query.dtype) for part in rope))
    key = rotated_norm(heads(h, w[1]), w[8], rope)  # (B, Q, T, K, E)
    value = heads(h, w[2])
    query = query.view(count, queries, K, SHARE, E)
    own = (query.flatten(0, 1) @ key.flatten(0, 1).permute(0, 2, 3, 1)).float()  # (B · Q, K, H/K, T)
    own = own.view(count, queries, K, SHARE, length) * SCALE
    later = torch.arange(length, device=x.device) > last[..., None]  # (B, Q, T)
    own = own.masked_fill(later[:, :, None, None], HIDDEN)
    far = query.transpose(1, 2).reshape(count * K, -1, E) @ memory_key.flatten(0, 1).transpose(1, 2)
    far = far.float().view(count, K, queries, SHARE, -1).transpose(1, 2) * SCALE + memory_bias[:, :, :, 0]
    share = torch.cat((own, far), -1).softmax(-1).to(x.dtype)
    mixed = share[..., :length].flatten(0, 1) @ value.flatten(0, 1).transpose(1, 2)
    mixed = mixed.view(count, queries, K, SHARE, E)
    far_share = share[..., length:].transpose(1, 2).reshape(count * K, queries * SHARE, -1)
    mixed = mixed + (far_share @ memory_value.flatten(0, 1)).view(count, K, queries, SHARE, E).transpose(1, 2)
    x = norm(F.linear(mixed.reshape(count, queries, width), w[3]), w[10], x.gather(2, at)[:, :, 0])
    return feed_forward(x, w)


def rope_table(length: int, head_dim: int, rope: RopeConfig, device: torch.device) -> Rope:
    """cos and sin, (length, head_dim / 2) float32 each: of a pair's two columns the angles are the same."""
    exponent = torch.arange(0, head_dim, 2, dtype=torch.float32, device=device) / head_dim
    inverse_frequency = 1.0 / (rope.theta**exponent) / rope.factor  # (E / 2,)
    position = torch.arange(length, dtype=torch.float32, device=device)
    angle = torch.outer(position, inverse_frequency)  # (L, E / 2)
    return angle.cos(), angle.sin()


def rope_tables(length: int, config: StackConfig, device: torch.device) -> dict[str, Rope]:
    """One `rope_table` for every kind of layer that the stack has."""
    return {kind: rope_table(length, config.head_dim, config.rope[kind], device) for kind in set(config.layer_types)}


def bidirectional_window(length: int, window: int, device: torch.device) -> Tensor:
    """(length, length) bool: token i sees (window + 1) // 2 tokens up to and with itself, and window // 2 after it."""
    position = torch.arange(length, device=device)
    distance = position[:, None] - position[None, :]  # > 0: the key is to the left
    return (distance < (window + 1) // 2) & (distance >= -(window // 2))
