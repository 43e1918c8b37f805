"""Cached keys and values, copied from where each passage's lie.

Letters in shapes: `kalm_cache.model`.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["index", "sequences", "slots"])
def load_kv(
    states, scales, lengths, index, out, sequences, slots,
    FROM: tl.constexpr, SCALED: tl.constexpr, HEADS: tl.constexpr, WIDTH: tl.constexpr,
    BLOCK_SLOTS: tl.constexpr, BLOCK_WIDTH: tl.constexpr,
):  # fmt: skip
    """`Kernels.load_kv`: layer `index` of each sequence's states to the first slots of out (2, N, K, S, E).

    states, scales, lengths (N,) int64: the addresses of a sequence's (layers, 2, K, L + P, E) in `FROM` and of its
    scales (layers, 2, K, L + P) float32, and its L + P. A program copies one head's keys or values.
    """
    program = tl.program_id(0)
    n, kind = program // (2 * HEADS), program // HEADS % 2
    head = program % HEADS
    length = tl.load(lengths + n)
    first = ((index * 2 + kind) * HEADS + head) * length  # of the vectors of one head and kind
    from_ = tl.load(states + n).to(tl.pointer_type(FROM)) + first * WIDTH
    to = out + ((kind * sequences + n).to(tl.int64) * HEADS + head) * slots * WIDTH
    lane = tl.arange(0, BLOCK_WIDTH)
    for start in range(0, length, BLOCK_SLOTS):
        slot = start + tl.arange(0, BLOCK_SLOTS)
        inside = (slot[:, None] < length) & (lane[None, :] < WIDTH)
        at = slot[:, None] * WIDTH + lane[None, :]
        vectors = tl.load(from_ + at, mask=inside, other=0).to(tl.float32)
        if SCALED:
            scale = tl.load(scales + n).to(tl.pointer_type(tl.float32)) + first
            vectors *= tl.load(scale + slot, mask=slot < length, other=0)[:, None]
        tl.store(to + at, vectors, mask=inside)
