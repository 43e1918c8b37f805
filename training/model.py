"""The checkpoint's shape, and the runtime's own modules arranged for training. Float32, CPU.

The layers compute what `kalm_cache.model`'s do, with gradients. What differs besides is that the embedding
table is one for both stacks, with the rows of markers and answers trained apart; that a pair's passage and the prompt's
fixed beginning are computed once for all its pairs; and that the last layer computes only what the margin needs.
Legend: B passages, S passage tokens, N query-passage pairs, T prompt tokens, P pooled states, D state width.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kalm_cache.model.config import RopeConfig, StackConfig
from training.layers import Layer, RMSNorm, bidirectional_window, causal_window, rope_tables, rotate

VOCABULARY = 30_522
WIDTH = 256
YES, NO = 2748, 2053  # ids of the words in MiniLM's vocabulary
MARKERS = (*range(1, 12), YES, NO)  # ids of training/tokenizer.py's markers and phrases, and the answers
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


class Stack(nn.Module):
    """Layers and final norm of one side; the other side's twin has the same shapes and names."""

    def __init__(self, config: StackConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(config) for _ in config.layer_types)
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class Reranker(nn.Module):
    """Encoder, decoder and their one embedding table."""

    def __init__(self, config: StackConfig = STACK) -> None:
        super().__init__()
        self.config = config
        self.table = nn.Parameter(torch.zeros(config.vocab_size, config.hidden_size), requires_grad=False)
        # Only markers and answers move at first: a dense gradient of the whole table would cost as much as a layer.
        self.marker_rows = nn.Parameter(torch.randn(len(MARKERS) + 1, config.hidden_size) / config.hidden_size**0.5)
        self.slots: Tensor
        slots = torch.zeros(config.vocab_size, dtype=torch.long)
        slots[torch.tensor(MARKERS)] = torch.arange(1, len(MARKERS) + 1)
        self.register_buffer("slots", slots, persistent=False)
        self.encoder, self.decoder = Stack(config), Stack(config)

    def embed(self, ids: Tensor) -> Tensor:
        """Scaled rows (…, D): of the table, or of `marker_rows` for markers and answers."""
        slots = self.slots[ids]
        sparse = self.table.requires_grad
        rows = F.embedding(ids, self.table, sparse=sparse)
        marked = F.embedding(slots, self.marker_rows)
        return torch.where((slots > 0)[..., None], marked, rows) * self.config.hidden_size**0.5

    def encode(self, ids: Tensor, mask: Tensor) -> Tensor:
        """(B, S) int64, (B, S) bool -> last hidden states (B, S, D)."""
        x = self.embed(ids)
        length = ids.shape[1]
        ropes = rope_tables(length, self.config, x.dtype, x.device)
        real = mask[:, None, None, :]
        window = bidirectional_window(length, self.config.sliding_window, ids.device)
        # An additive mask: float kernels take it as it is.
        masks = {FULL: additive(real), SLIDING: additive(real & window) if length > 128 else additive(real)}
        for layer, kind in zip(self.encoder.layers, self.config.layer_types, strict=True):
            x = layer(x, ropes[kind], masks[kind])
        out: Tensor = self.encoder.norm(x)
        return out

    def margins(
        self,
        prompt: Tensor,
        last: Tensor,
        pooled: Tensor,
        pooled_mask: Tensor,
        passage: Tensor | None = None,
        shared: int = 0,
    ) -> Tensor:
        """yes logit - no logit, (N,).

        Args:
            prompt: (N, T) int64, right-padded.
            last: (N,) int64, index of the last prompt token.
            pooled: (R, P, D) and pooled_mask (R, P) bool: the passages that the pairs are about.
            passage: (N,) int64, each pair's row of `pooled`; None: pair n is about row n.
            shared: so many first tokens are the same in every prompt, and are computed once a passage.
        """
        passage = torch.arange(len(prompt)) if passage is None else passage
        ropes = rope_tables(prompt.shape[1], self.config, torch.float32, prompt.device)
        head = {kind: (cos[:shared], sin[:shared]) for kind, (cos, sin) in ropes.items()}
        tail = {kind: (cos[shared:], sin[shared:]) for kind, (cos, sin) in ropes.items()}
        before = self.embed(prompt[:1, :shared]).expand(len(pooled), -1, -1)  # (R, shared, D)
        x = self.embed(prompt[:, shared:])
        head_mask = merged_mask(shared, pooled_mask)
        known = torch.cat((pooled_mask.new_ones(len(pooled), shared), pooled_mask), 1)
        mask = merged_mask(x.shape[1], known[passage])
        for number, (layer, kind) in enumerate(zip(self.decoder.layers, self.config.layer_types, strict=True)):
            key, value = memory(layer, pooled)
            if shared:
                prefix_key, prefix_value = own_keys(layer, before, head[kind])
                if number < len(self.decoder.layers) - 1:
                    before = decoder_layer(layer, before, head[kind], head_mask, key, value)
                key, value = torch.cat((prefix_key, key), 2), torch.cat((prefix_value, value), 2)
            if number < len(self.decoder.layers) - 1:
                x = decoder_layer(layer, x, tail[kind], mask, key[passage], value[passage])
            else:
                x = last_token_layer(layer, x, last - shared, tail[kind], mask, key[passage], value[passage])
        answer = self.marker_rows[MARKERS.index(YES) + 1] - self.marker_rows[MARKERS.index(NO) + 1]
        out: Tensor = self.decoder.norm(x) @ answer  # (N, D) -> (N,)
        return out


def merged_mask(length: int, memory_mask: Tensor) -> Tensor:
    """Additive mask of `length` causal tokens before a memory (N, P): (N, 1, length, length + P)."""
    visible = memory_mask[:, None, None, :].expand(-1, 1, length, -1)
    causal = causal_window(length, length, memory_mask.device).expand(len(memory_mask), 1, -1, -1)
    return additive(torch.cat((causal, visible), dim=-1))


def memory(layer: Any, pooled: Tensor) -> tuple[Tensor, Tensor]:
    """Keys (not rotated) and values of pooled states: (R, P, D) -> (R, K, P, E) each."""
    attn = layer.self_attn
    return attn.k_norm(attn._split(attn.k_proj(pooled), attn.kv_heads)), attn._split(attn.v_proj(pooled), attn.kv_heads)


def own_keys(layer: Any, x: Tensor, rope: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Keys (rotated) and values of the decoder's own tokens: (R, T, D) -> (R, K, T, E) each."""
    attn, normed = layer.self_attn, layer.pre_self_attn_layernorm(x)
    key = rotate(attn.k_norm(attn._split(attn.k_proj(normed), attn.kv_heads)), rope)
    return key, attn._split(attn.v_proj(normed), attn.kv_heads)


def decoder_layer(
    layer: Any, x: Tensor, rope: tuple[Tensor, Tensor], mask: Tensor, memory_key: Tensor, memory_value: Tensor
) -> Tensor:
    """`Layer.forward` with the memory's keys and values already made: (N, T, D) -> (N, T, D)."""
    attn = layer.self_attn
    normed = layer.pre_self_attn_layernorm(x)
    query = rotate(attn.q_norm(attn._split(attn.q_proj(normed), attn.heads)), rope)  # (N, H, T, E)
    key = rotate(attn.k_norm(attn._split(attn.k_proj(normed), attn.kv_heads)), rope)  # (N, K, T, E)
    key = torch.cat((key, memory_key), dim=2)
    value = torch.cat((attn._split(attn.v_proj(normed), attn.kv_heads), memory_value), dim=2)
    mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=attn.scale, enable_gqa=True)
    x = x + layer.post_self_attn_layernorm(attn.o_proj(mixed.transpose(1, 2).flatten(2)))
    out: Tensor = x + layer.post_feedforward_layernorm(layer.mlp(layer.pre_feedforward_layernorm(x)))
    return out


def last_token_layer(
    layer: Any,
    x: Tensor,
    last: Tensor,
    rope: tuple[Tensor, Tensor],
    mask: Tensor,
    memory_key: Tensor,
    memory_value: Tensor,
) -> Tensor:
    """`decoder_layer` for one position a row: keys and values of all tokens, query and MLP of the last: -> (N, D)."""
    attn = layer.self_attn
    rows = torch.arange(len(x))
    normed = layer.pre_self_attn_layernorm(x)
    query = attn.q_norm(attn._split(attn.q_proj(normed[rows, last].unsqueeze(1)), attn.heads))  # (N, H, 1, E)
    query = rotate(query, (rope[0][last][:, None, None], rope[1][last][:, None, None]))
    key = torch.cat((rotate(attn.k_norm(attn._split(attn.k_proj(normed), attn.kv_heads)), rope), memory_key), dim=2)
    value = torch.cat((attn._split(attn.v_proj(normed), attn.kv_heads), memory_value), dim=2)
    seen = mask[rows, :, last].unsqueeze(2)  # (N, 1, 1, T + P)
    mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=seen, scale=attn.scale, enable_gqa=True)
    y = x[rows, last] + layer.post_self_attn_layernorm(attn.o_proj(mixed.flatten(1)))
    out: Tensor = y + layer.post_feedforward_layernorm(layer.mlp(layer.pre_feedforward_layernorm(y)))
    return out


def compile_layers() -> None:
    """Compiles the layers once for all depths and shapes: a little faster than eager, after minutes of compiling."""
    import torch._dynamo

    global decoder_layer
    torch._dynamo.config.cache_size_limit = 64
    Layer.forward = torch.compile(Layer.forward, dynamic=True)  # type: ignore[method-assign]
    decoder_layer = torch.compile(decoder_layer, dynamic=True)


def additive(visible: Tensor) -> Tensor:
    """True = visible -> 0, False -> a large negative float32."""
    return torch.zeros(visible.shape).masked_fill_(~visible, -1e9)


def mean_pool(states: Tensor, mask: Tensor, ratio: int) -> tuple[Tensor, Tensor]:
    """Means of consecutive groups of `ratio` real states: (B, S, D), (B, S) -> (B, P, D), (B, P) bool."""
    if ratio == 1:
        return states, mask
    short = -states.shape[1] % ratio
    states, mask = F.pad(states, (0, 0, 0, short)), F.pad(mask, (0, short))
    weights = mask.to(states.dtype).unflatten(1, (-1, ratio))  # (B, P, r)
    counts = weights.sum(-1)
    sums = (states.unflatten(1, (-1, ratio)) * weights[..., None]).sum(2)
    return sums / counts.clamp_min(1)[..., None], counts > 0
