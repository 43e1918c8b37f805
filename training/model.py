"""The checkpoint's shape, and its layers arranged for training: matrix products in bfloat16, weights in float32.

The layers compute what `kalm_cache.model`'s do, with gradients. What differs besides: the embedding table is one for
both stacks, with the rows of markers and answers trained apart; a passage's keys and values, and the prompt's fixed
beginning, are computed once for all queries of its group; and the last layer computes only what the margin needs.
Legend: B passages, S tokens, G groups, C passages of a group, Q queries of a group, T prompt tokens, P pooled states,
M memory (prefix and pooled states), D state width, H heads, K key/value heads, E head width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kalm_cache.model.config import StackConfig
from training import layers
from training.layers import (
    FULL,
    HIDDEN,
    SLIDING,
    STACK,
    Layer,
    RMSNorm,
    bidirectional_window,
    norm,
    rope_tables,
    weights,
)

YES, NO = 2748, 2053  # ids of the words in MiniLM's vocabulary
MARKERS = (*range(1, 12), YES, NO)  # ids of training/tokenizer.py's markers and phrases, and the answers


class Stack(nn.Module):
    """Layers and final norm of one side; the other side's twin has the same shapes and names."""

    def __init__(self, config: StackConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(config) for _ in config.layer_types)
        self.norm = RMSNorm(config.hidden_size)


class Reranker(nn.Module):
    """Encoder, decoder and their one embedding table."""

    def __init__(self, config: StackConfig = STACK, dtype: torch.dtype = torch.bfloat16) -> None:
        super().__init__()
        self.config, self.dtype = config, dtype
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
        rows = F.embedding(ids, self.table, sparse=self.table.requires_grad)
        marked = F.embedding(slots, self.marker_rows)
        rows = torch.where((slots > 0)[..., None], marked, rows) * self.config.hidden_size**0.5
        return rows.to(self.dtype)

    def encode(self, ids: Tensor, mask: Tensor) -> Tensor:
        """(B, S) int64, (B, S) bool -> last hidden states (B, S, D), in the compute dtype."""
        x = self.embed(ids)
        length = ids.shape[1]
        ropes = rope_tables(length, self.config, ids.device)
        real = mask[:, None, None, None, :]
        window = bidirectional_window(length, self.config.sliding_window, ids.device)
        biases = {FULL: additive(real), SLIDING: additive(real & window) if length > 128 else additive(real)}
        for layer, kind in zip(self.encoder.layers, self.config.layer_types, strict=True):
            x = layers.encoder_layer(x, weights(layer, self.dtype), ropes[kind], biases[kind])
        return norm(x, self.encoder.norm.weight)

    def margins(self, prompts: Tensor, last: Tensor, pooled: Tensor, pooled_mask: Tensor, shared: int) -> Tensor:
        """yes logit - no logit of every query of a group for every passage of it: (G, Q, C), float32.

        Args:
            prompts: (G, Q, T) int64, right-padded.
            last: (G, Q) int64, index of the last prompt token.
            pooled: (G · C, P, D) and pooled_mask (G · C, P) bool.
            shared: so many first tokens are the same in every prompt, and are computed once a passage.
        """
        groups, queries, length = prompts.shape
        size = len(pooled) // groups
        ropes = rope_tables(length, self.config, prompts.device)
        before = self.embed(prompts[:1, :1, :shared]).expand(len(pooled), -1, -1, -1)  # (B, 1, shared, D)
        x = self.embed(prompts[:, :, shared:])[:, None].expand(-1, size, -1, -1, -1).flatten(0, 1)  # (B, Q, T, D)
        place = (last - shared).repeat_interleave(size, 0)  # (B, Q)
        memory_bias = additive(pooled_mask)[:, None, None, None, None, :]  # (B, 1, 1, 1, 1, P)
        known = torch.cat((memory_bias.new_zeros(*memory_bias.shape[:-1], shared), memory_bias), -1)
        for number, (layer, kind) in enumerate(zip(self.decoder.layers, self.config.layer_types, strict=True)):
            w = weights(layer, self.dtype)
            cos, sin = ropes[kind]
            head, tail = (cos[:shared], sin[:shared]), (cos[shared:], sin[shared:])
            key, value = layers.memory(pooled, w)
            prefix_key, prefix_value = layers.own_keys(before, w, head)
            final = number == len(self.decoder.layers) - 1
            if not final:
                before = layers.decoder_layer(before, w, head, key, value, memory_bias)
            key, value = torch.cat((prefix_key, key), 2), torch.cat((prefix_value, value), 2)
            if final:
                x = layers.last_token_layer(x, place, w, tail, key, value, known)
            else:
                x = layers.decoder_layer(x, w, tail, key, value, known)
        answer = self.marker_rows[MARKERS.index(YES) + 1] - self.marker_rows[MARKERS.index(NO) + 1]
        out = norm(x, self.decoder.norm.weight).float() @ answer  # (B, Q)
        return out.view(groups, size, queries).transpose(1, 2)


def additive(visible: Tensor) -> Tensor:
    """True = visible -> 0, False -> a large negative float32."""
    return torch.zeros(visible.shape, device=visible.device).masked_fill_(~visible, HIDDEN)


def mean_pool(states: Tensor, mask: Tensor, ratio: int) -> tuple[Tensor, Tensor]:
    """Means of consecutive groups of `ratio` real states: (B, S, D), (B, S) -> (B, P, D), (B, P) bool.

    Summed in float32 and returned in the states' dtype, as an index job with 16-bit states keeps them.
    """
    if ratio == 1:
        return states, mask
    short = -states.shape[1] % ratio
    states, mask = F.pad(states, (0, 0, 0, short)), F.pad(mask, (0, short))
    weights = mask.to(states.dtype).unflatten(1, (-1, ratio))  # (B, P, r)
    counts = weights.sum(-1)
    sums = (states.unflatten(1, (-1, ratio)) * weights[..., None]).sum(2)
    return sums / counts.clamp_min(1)[..., None], counts > 0
