"""A product's columns cut into heads: normalised, rotated (RoPE), and written to the slots that attention reads.

Letters in shapes: `kalm_cache.model`; heads.py beside this room says what `Heads` and `Rope` hold.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _write(
    row, from_, out, slot, weight, cos, sin, slots, eps,
    HEADS: tl.constexpr, GROUP: tl.constexpr, HALF: tl.constexpr, NORMED: tl.constexpr, ROTATED: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """One kind of heads of one row, `from_` on, to out (N, K, slots, G, E) at the row's slot.

    cos, sin (BLOCK,) of the row's position. Both halves of a head are held apart, as the rotation takes them.
    """
    lane = tl.arange(0, BLOCK)
    inside = lane < HALF
    at = tl.load(slot + row)
    to = out + ((at // slots * HEADS * slots + at % slots) * GROUP) * 2 * HALF
    for head in range(HEADS * GROUP):
        start = from_ + head * 2 * HALF
        first = tl.load(start + lane, mask=inside, other=0).to(tl.float32)
        second = tl.load(start + HALF + lane, mask=inside, other=0).to(tl.float32)
        if NORMED:
            squares = tl.sum(first * first, 0) + tl.sum(second * second, 0)
            factor = 1 / tl.sqrt(squares / (2 * HALF) + eps)
            first *= factor * tl.load(weight + lane, mask=inside, other=0)
            second *= factor * tl.load(weight + HALF + lane, mask=inside, other=0)
            if ROTATED:
                first, second = first * cos - second * sin, second * cos + first * sin
        # head k·G + g lies at [sequence, k, slot, g]
        place = to + (head // GROUP * slots * GROUP + head % GROUP) * 2 * HALF
        tl.store(place + lane, first, mask=inside)
        tl.store(place + HALF + lane, second, mask=inside)


@triton.jit(do_not_specialize=["query_slots", "key_slots", "value_slots"])
def split_heads(
    product, columns,
    query, query_slot, query_weight, query_slots,
    key, key_slot, key_weight, key_slots,
    value, value_slot, value_slots,
    cos, sin, position, eps,
    QUERY_HEADS: tl.constexpr, KEY_HEADS: tl.constexpr, VALUE_HEADS: tl.constexpr, GROUP: tl.constexpr,
    HALF: tl.constexpr, ROTATED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """`Kernels.split_heads`: product (R, columns), queries first, then keys, then values; a program a row.

    `…_HEADS`: key/value heads of each kind, 0 where the product has none.
    """
    row, lane = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    from_ = product + row * columns
    turned_cos, turned_sin = tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32)
    if ROTATED:
        angle = tl.load(position + row) * HALF + lane
        turned_cos = tl.load(cos + angle, mask=lane < HALF, other=0)
        turned_sin = tl.load(sin + angle, mask=lane < HALF, other=0)
    if QUERY_HEADS:
        _write(
            row, from_, query, query_slot, query_weight, turned_cos, turned_sin, query_slots, eps,
            QUERY_HEADS, GROUP, HALF, True, ROTATED, BLOCK,
        )  # fmt: skip
    from_ += QUERY_HEADS * GROUP * 2 * HALF
    if KEY_HEADS:
        _write(
            row, from_, key, key_slot, key_weight, turned_cos, turned_sin, key_slots, eps,
            KEY_HEADS, 1, HALF, True, ROTATED, BLOCK,
        )  # fmt: skip
    from_ += KEY_HEADS * 2 * HALF
    if VALUE_HEADS:
        _write(
            row, from_, value, value_slot, query_weight, turned_cos, turned_sin, value_slots, eps,
            VALUE_HEADS, 1, HALF, False, False, BLOCK,
        )  # fmt: skip
