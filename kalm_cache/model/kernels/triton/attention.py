"""Softmax attention over spans of key slots: no mask is made, and blocks of keys that no row sees cost nothing.

One kernel serves the encoder, the decoder and what goes on from a cached prefix: `rows.py` of the layers says which
spans each has. The softmax is computed as keys go by (Dao et al., FlashAttention, arXiv 2205.14135): a row keeps its
largest score so far, the sum of its weights, and the sum of its weighted values.
Letters in shapes: `kalm_cache.model`.
"""

from __future__ import annotations

import triton
import triton.language as tl

UNSEEN = tl.constexpr(2**31 - 1)  # where the span of a row begins that sees nothing


@triton.jit
def _attend_span(
    query, key, value, begin, end, mixed, total, largest, keys,
    WIDTH: tl.constexpr, BLOCK_KEYS: tl.constexpr, BLOCK_WIDTH: tl.constexpr,
):  # fmt: skip
    """Go over the key slots [begin, end) of each row (BLOCK_ROWS,), from the first to the last that any row sees."""
    lane = tl.arange(0, BLOCK_WIDTH)
    first = tl.min(tl.where(begin < end, begin, UNSEEN), 0)
    last = tl.max(tl.where(begin < end, end, 0), 0)
    for start in range(first, last, BLOCK_KEYS):
        slot = start + tl.arange(0, BLOCK_KEYS)
        at = slot[:, None] * WIDTH + lane[None, :]
        inside = (slot[:, None] < keys) & (lane[None, :] < WIDTH)
        some_keys = tl.load(key + at, mask=inside, other=0)  # (BLOCK_KEYS, E)
        scores = tl.dot(query, some_keys.T, input_precision="ieee")  # (BLOCK_ROWS, BLOCK_KEYS)
        seen = (slot[None, :] >= begin[:, None]) & (slot[None, :] < end[:, None])
        scores = tl.where(seen, scores, float("-inf"))
        larger = tl.maximum(largest, tl.max(scores, 1))
        base = tl.where(larger == float("-inf"), 0.0, larger)  # of a row that has seen nothing: −∞ − −∞ is no number
        weights, shrink = tl.exp(scores - base[:, None]), tl.exp(largest - base)
        total = total * shrink + tl.sum(weights, 1)
        some_values = tl.load(value + at, mask=inside, other=0)
        mixed = tl.dot(
            weights.to(some_values.dtype), some_values, mixed * shrink[:, None], input_precision="ieee"
        )  # (BLOCK_ROWS, E)
        largest = larger
    return mixed, total, largest


@triton.jit(do_not_specialize=["queries", "keys"])  # compiled once, whatever the length of a batch
def attend(
    query, key, value, spans, out, heads, queries, group, keys,
    WIDTH: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_KEYS: tl.constexpr, BLOCK_WIDTH: tl.constexpr,
):  # fmt: skip
    """`Kernels.attend`: query, out (N, K, T·G, E), key, value (N, K, S, E), spans (N, T, 4); a program a block of rows.

    The programs of one head come one after the other: they read the same keys.
    """
    rows = queries * group
    blocks = tl.cdiv(rows, BLOCK_ROWS)
    head = (tl.program_id(0) // blocks).to(tl.int64)  # of N·K
    row = tl.program_id(0) % blocks * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    lane = tl.arange(0, BLOCK_WIDTH)
    span = spans + (head // heads * queries + row // group) * 4  # the G query heads of a token see alike
    real = row < rows
    at = (head * rows + row[:, None]) * WIDTH + lane[None, :]
    inside = real[:, None] & (lane[None, :] < WIDTH)
    some = tl.load(query + at, mask=inside, other=0)  # (BLOCK_ROWS, E)
    own_keys, own_values = key + head * keys * WIDTH, value + head * keys * WIDTH
    mixed = tl.zeros((BLOCK_ROWS, BLOCK_WIDTH), tl.float32)
    total, largest = tl.zeros((BLOCK_ROWS,), tl.float32), tl.full((BLOCK_ROWS,), float("-inf"), tl.float32)
    # both spans with the same code; a slot in neither is never read, but for those beside a block's edge
    for bound in tl.static_range(0, 4, 2):
        begin = tl.load(span + bound, mask=real, other=0)
        end = tl.load(span + bound + 1, mask=real, other=0)
        mixed, total, largest = _attend_span(
            some, own_keys, own_values, begin, end, mixed, total, largest, keys, WIDTH, BLOCK_KEYS, BLOCK_WIDTH
        )
    total = tl.where(total > 0, total, 1)  # a row that sees nothing, as beyond a sequence's end, comes out as zeros
    tl.store(out + at, mixed / total[:, None], mask=inside)
