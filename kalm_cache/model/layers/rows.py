"""Sequences of different lengths laid end to end, and which key slots each of their tokens sees. Pure index arithmetic.

Products run over such rows: no padding is multiplied. Attention runs over buffers of keys and values with S slots for
each sequence:

    [ prefix tokens | pooled states ]  padded to `past` slots  [ new tokens ]

New tokens are those that a run computes. An encoder has no past; a decoder's is the passage's pooled states, and before
them the prompt's prefix where the prefix cache holds it.
Letters in shapes: `kalm_cache.model`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Rows:
    """Sequences end to end. lengths (N,); sequence, position (R,): row i is token `position[i]` of `sequence[i]`."""

    lengths: Tensor
    sequence: Tensor
    position: Tensor

    @property
    def longest(self) -> int:
        """T: the number of tokens of the longest sequence."""
        return int(self.lengths.max())

    def slots(self, slots: int, offset: int = 0) -> Tensor:
        """(R,) int64: each row's slot in a buffer of `slots` a sequence, the first `offset` of which are left free."""
        return self.sequence * slots + self.position + offset

    def padded(self) -> Rows:
        """The same with the last row repeated, so that their number is a common one (`pad_to_bucket`)."""
        row = torch.arange(pad_to_bucket(len(self.position))).clamp(max=len(self.position) - 1)  # (R, padded)
        return Rows(self.lengths, self.sequence[row], self.position[row])

    def first(self) -> Tensor:
        """(N,) int64: the row of each sequence's first token."""
        return self.lengths.cumsum(0) - self.lengths

    def last(self) -> Tensor:
        """(N,) int64: the row of each sequence's last token."""
        return self.lengths.cumsum(0) - 1


def pack_rows(lengths: Sequence[int]) -> Rows:
    """The rows of sequences of these lengths."""
    count = torch.tensor(lengths, dtype=torch.int64)  # (N,)
    sequence = torch.arange(len(count)).repeat_interleave(count)  # (N,) -> (R,): 0 0 0 1 2 2 …
    starts = count.cumsum(0) - count  # (N,): the row of each sequence's first token
    return Rows(count, sequence, torch.arange(int(count.sum())) - starts[sequence])


def pad_to_bucket(count: int, step: int = 16) -> int:
    """The next multiple of `step`, and of a 16th of the power of two below.

    Products of bfloat16 and int8 are compiled for the very shape, which takes milliseconds: there had better be few.
    """
    # 16 buckets from each power of two to the next: at most a 16th more rows, once that is above `step`
    step = max(step, 1 << max(0, count.bit_length() - 5))
    return -(-count // step) * step


def bidirectional_spans(lengths: Tensor, window: int | None) -> Tensor:
    """The encoder's spans, (N, T, 4) int32: slots [a, b) and [c, d) are seen.

    With a window, token i sees (window + 1) // 2 tokens up to and with itself, and window // 2 after it.
    """
    token = torch.arange(int(lengths.max())).expand(len(lengths), -1)  # (T,) -> (N, T)
    end = lengths.unsqueeze(1).expand_as(token)  # (N,) -> (N, T)
    if window is None:
        return _spans(torch.zeros_like(token), end)
    # as the reference's `sliding_window_mask_function`
    begin = (token - (window + 1) // 2 + 1).clamp(min=0)
    return _spans(begin, torch.minimum(token + window // 2 + 1, end))


def causal_spans(count: int, pooled: Tensor, *, past: int, prefix: int, window: int | None) -> Tensor:
    """The decoder's spans, (N, T, 4) int32: in the past its prefix and every pooled state, then the new tokens so far.

    Args:
        count: T, new tokens of each sequence, or more.
        pooled: (N,) pooled states of each sequence.
        past: slots before the new tokens.
        prefix: prompt tokens in the past, before the pooled states.
        window: how many prompt tokens, itself included, a token sees; `None` = all.
    """
    token = torch.arange(count).expand(len(pooled), -1)  # (T,) -> (N, T)
    # the first prompt token that the window shows; it lies in the prefix, or among the new tokens
    first = torch.zeros_like(token) if window is None else (prefix + token - window + 1).clamp(min=0)
    # No window hides pooled states. They follow the prefix in the buffer, so that what is left of the prefix and all of
    # them are one span
    begin, end = first.clamp(max=prefix), (prefix + pooled).unsqueeze(1).expand_as(token)
    # new token j lies in slot past + j and is prompt token prefix + j
    return _spans(begin, end, past + (first - prefix).clamp(min=0), past + token + 1)


def _spans(begin: Tensor, end: Tensor, second: Tensor | None = None, second_end: Tensor | None = None) -> Tensor:
    """Four bounds (N, T) -> (N, T, 4) int32; native code reads it by address."""
    empty = torch.zeros_like(begin)
    bounds = (begin, end, empty if second is None else second, empty if second_end is None else second_end)
    return torch.stack(bounds, dim=-1).to(torch.int32).contiguous()
