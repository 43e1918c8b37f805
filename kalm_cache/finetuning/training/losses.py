"""What is learnt from one query's list: margins, grades and a teacher's scores → a loss. Pure tensor code.

C passages of one query. margins (C,) float32; grades (C,), 0 = not relevant; scores (C,), a teacher's.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from kalm_cache.errors import UsageError

Loss = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def listwise_softmax(margins: Tensor, grades: Tensor, scores: Tensor | None) -> Tensor:
    """Cross-entropy of the margins' softmax against the grades, which sum to 1: ListNet (Cao et al., ICML 2007)."""
    return -(grades / grades.sum() * F.log_softmax(margins, dim=0)).sum()


def lambda_loss(margins: Tensor, grades: Tensor, scores: Tensor | None) -> Tensor:
    """Logistic loss of each pair in the wrong or right order, times what swapping the two would change in nDCG.

    LambdaRank's weights in the LambdaLoss framework (Wang et al., CIKM 2018), natural logarithm; gains are the grades,
    as `evaluation.measures.metrics` has them, and no rank is cut off.
    """
    order = margins.detach().argsort(descending=True, stable=True)
    ranks = torch.empty_like(order)
    ranks[order] = torch.arange(1, len(margins) + 1, device=margins.device)
    discounts = 1 / torch.log2(ranks + 1.0)  # (C,)
    best = (grades.sort(descending=True).values * discounts.sort(descending=True).values).sum()
    gains = grades / best
    weights = (gains[:, None] - gains[None, :]).clamp(min=0) * (discounts[:, None] - discounts[None, :]).abs()
    return (weights * F.softplus(margins[None, :] - margins[:, None])).sum()  # pairs (i, j) with i the better one


def binary_cross_entropy(margins: Tensor, grades: Tensor, scores: Tensor | None) -> Tensor:
    """Mean over the passages of the cross-entropy of P(yes) = sigmoid(margin) against relevant or not."""
    return F.binary_cross_entropy_with_logits(margins, (grades > 0).float())


def margin_mse(margins: Tensor, grades: Tensor, scores: Tensor | None) -> Tensor:
    """Mean over pairs of a relevant and another passage of the squared error of their difference, to the teacher's.

    Hofstätter et al., 2020 (arXiv 2010.02666).
    """
    assert scores is not None, "checked where the data is read"
    errors = margins - scores  # (C,): a difference of errors is an error of differences
    return (errors[grades > 0][:, None] - errors[grades <= 0][None, :]).square().mean()


def distil(margins: Tensor, grades: Tensor, scores: Tensor | None) -> Tensor:
    """Mean squared error to the margins of the decoder as it was before: no judgment is asked."""
    assert scores is not None, "the trainer computes them"
    return (margins - scores).square().mean()


LOSSES: dict[str, Loss] = {
    "softmax": listwise_softmax,
    "lambda": lambda_loss,
    "bce": binary_cross_entropy,
    "margin-mse": margin_mse,
    "distil": distil,
}
NEED_SCORES = ("margin-mse",)


def get_loss(name: str) -> Loss:
    """The loss of that name. Raises `UsageError`."""
    if name not in LOSSES:
        raise UsageError(f"loss {name!r} is not known; expected {', '.join(LOSSES)}")
    return LOSSES[name]
