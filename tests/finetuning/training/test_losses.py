"""Each loss against a value computed by hand."""

from __future__ import annotations

from math import exp, log, log2

import pytest
import torch
from torch import tensor

from kalm_cache.errors import UsageError
from kalm_cache.finetuning.training.losses import LOSSES, get_loss

MARGINS = tensor([1.0, 2.0, 0.0])


def test_the_listwise_softmax_is_the_cross_entropy_against_the_grades() -> None:
    total = exp(1) + exp(2) + exp(0)
    expected = -(2 / 3 * log(exp(1) / total) + 1 / 3 * log(exp(0) / total))
    assert get_loss("softmax")(MARGINS, tensor([2.0, 0.0, 1.0]), None).item() == pytest.approx(expected, abs=1e-6)


def test_the_lambda_loss_weighs_each_pair_by_what_swapping_it_changes_in_ndcg() -> None:
    # ranks by margin: the second passage 1, the first 2, the third 3; grades 2, 0, 1
    discounts = [1 / log2(3), 1.0, 1 / log2(4)]  # of the passages, in their order
    best = 2 * 1 + 1 / log2(3)
    first_second = 2 * abs(discounts[0] - discounts[1]) * log(1 + exp(-(1 - 2)))
    first_third = (2 - 1) * abs(discounts[0] - discounts[2]) * log(1 + exp(-(1 - 0)))
    third_second = 1 * abs(discounts[2] - discounts[1]) * log(1 + exp(-(0 - 2)))
    expected = (first_second + first_third + third_second) / best
    assert get_loss("lambda")(MARGINS, tensor([2.0, 0.0, 1.0]), None).item() == pytest.approx(expected, abs=1e-6)


def test_the_binary_cross_entropy_is_the_mean_over_passages() -> None:
    expected = (log(1 + exp(-1)) + log(1 + exp(2)) + log(1 + exp(-0.0))) / 3
    assert get_loss("bce")(MARGINS, tensor([3.0, 0.0, 1.0]), None).item() == pytest.approx(expected, abs=1e-6)


def test_margin_mse_is_the_squared_error_of_each_pairs_difference() -> None:
    # pairs of the first with the second and the third: differences -1 and 1, the teacher's 4 and 5
    expected = ((-1 - 4) ** 2 + (1 - 5) ** 2) / 2
    found = get_loss("margin-mse")(MARGINS, tensor([1.0, 0.0, 0.0]), tensor([6.0, 2.0, 1.0]))
    assert found.item() == pytest.approx(expected)


@pytest.mark.parametrize("name", list(LOSSES))
def test_every_loss_pulls_a_relevant_passage_up(name: str) -> None:
    margins = MARGINS.clone().requires_grad_()
    get_loss(name)(margins, tensor([1.0, 0.0, 0.0]), tensor([6.0, 1.5, 1.0])).backward()
    assert margins.grad is not None
    assert margins.grad[0] < 0
    assert margins.grad[1] > 0


def test_an_unknown_loss_is_refused_by_name() -> None:
    with pytest.raises(UsageError, match="'hinge' is not known; expected softmax, lambda, bce, margin-mse"):
        get_loss("hinge")
    assert torch.isfinite(MARGINS).all()


def test_distilling_by_hand() -> None:
    loss = get_loss("distil")(tensor([1.0, 2.0]), tensor([0.0, 0.0]), tensor([4.0, 3.0]))
    assert loss == pytest.approx((9.0 + 1.0) / 2)
