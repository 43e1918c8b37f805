import torch

from kalm_cache.model.kernels.heads import Rope


def test_rotation_by_a_quarter_turn_swaps_the_halves():
    # one head of width 4: pairs (x0, x2) and (x1, x3) turn; at 90 degrees (a, b) becomes (-b, a)
    rope = Rope(torch.zeros(1, 2), torch.ones(1, 2), torch.tensor([0]))
    x = torch.tensor([[[[1.0, 2.0, 3.0, 4.0]]]])
    assert rope.rotate(x).tolist() == [[[[-3.0, -4.0, 1.0, 2.0]]]]


def test_every_row_turns_by_its_own_position():
    rope = Rope(torch.tensor([[1.0], [0.0], [-1.0]]), torch.tensor([[0.0], [1.0], [0.0]]), torch.tensor([2, 0, 1]))
    x = torch.tensor([[1.0, 2.0]] * 3).reshape(3, 1, 1, 2)
    assert rope.rotate(x).reshape(3, 2).tolist() == [[-1.0, -2.0], [1.0, 2.0], [-2.0, 1.0]]
    assert rope.at(torch.tensor([2, 2])).position.tolist() == [1, 1]
