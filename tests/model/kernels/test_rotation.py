import pytest
import torch

from kalm_cache.model.kernels.rotation import MAX_BLOCKS, rotate


def dense(width: int) -> torch.Tensor:
    """R itself: the Hadamard matrix of the blocks (Sylvester's), times the identity within a block."""
    blocks = min(width & -width, MAX_BLOCKS)
    hadamard = torch.ones(1, 1, dtype=torch.float64)
    while len(hadamard) < blocks:
        hadamard = torch.kron(hadamard, torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64))
    return torch.kron(hadamard, torch.eye(width // blocks, dtype=torch.float64)) / blocks**0.5


def test_two_halves_become_their_sum_and_their_difference():
    root = 2**0.5
    assert rotate(torch.tensor([1.0, 3.0])).tolist() == pytest.approx([4 / root, -2 / root])
    # six numbers are two blocks of three
    rotated = rotate(torch.tensor([1.0, 2.0, 3.0, 10.0, 20.0, 30.0]))
    assert rotated.tolist() == pytest.approx([number / root for number in (11, 22, 33, -9, -18, -27)])


def test_a_row_of_odd_width_stays_as_it_is():
    x = torch.tensor([[1.0, 2.0, 3.0]])
    assert torch.equal(rotate(x), x)


@pytest.mark.parametrize("width", [1, 2, 12, 64, 128, 640, 192])
def test_the_rotation_is_the_hadamard_matrix_over_equal_parts(width: int):
    x = torch.randn(3, width, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(rotate(x), (x.double() @ dense(width)).float(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(dense(width) @ dense(width).T, torch.eye(width, dtype=torch.float64))


def test_products_of_rotated_rows_are_products_of_the_rows():
    x, weight = torch.randn(5, 640, generator=torch.Generator().manual_seed(0)).split([2, 3])
    torch.testing.assert_close(rotate(x) @ rotate(weight).T, x @ weight.T, atol=1e-4, rtol=1e-5)
