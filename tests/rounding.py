"""What holds of reduced precision on every processor.

Rounding errors change with the instruction set and with the order in which numbers are summed, so that no single margin
can be promised. Their root mean square over many pairs can: it is measured in units of what transformers' own bfloat16
run of the same checkpoint has, on the same processor.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

# Both runs round at nearly the same places (ours keeps logits, norms and attention weights wider), so the errors are
# alike: 0.6 to 1.5 times theirs were seen over five seeds, three shapes and four instruction sets. The root mean square
# of 37 pairs that share prompts and passages is itself known to about a third; rounding once more would add the rest.
BFLOAT16_TIMES = 2.0
# int8 rounds products' inputs alone, but to 1/127 of a row's largest number, about 0.8% of its root mean square;
# bfloat16 rounds each number by 0.2% on average, many more times: 1.4 to 3 times its errors were seen.
INT8_TIMES = 4.0
TIMES = {torch.bfloat16: BFLOAT16_TIMES, torch.int8: INT8_TIMES}

# A margin of a random checkpoint (tests/checkpoints.py) is a state of D numbers of about 1 times the difference of two
# rows of length 2, so that an error of ε in each number moves it by ε · √8. Where transformers' own run is too slow to
# compare with: bfloat16's ε is at most four of its steps of 2⁻⁸ (one to two were seen), int8's 1/20 (1/40 was seen).
RANDOM_WITHIN = {torch.bfloat16: 8**0.5 * 4 / 256, torch.int8: 8**0.5 / 20}


def rms_error(margins: Sequence[float], exact: Sequence[float]) -> float:
    """The root mean square of what margins are off by."""
    return math.sqrt(sum((a - b) ** 2 for a, b in zip(margins, exact, strict=True)) / len(exact))
