import torch

from kalm_cache.model.kernels.activations import (
    Accumulated,
    Quantized,
    select_activation,
    select_product,
    to_float,
)


def test_rows_are_selected_with_their_scales():
    x = Quantized(torch.tensor([[1], [2], [3]], dtype=torch.int8), torch.tensor([0.1, 0.2, 0.3]))
    for rows in (torch.tensor([2, 0, 2]), slice(1, 3)):
        selected = select_activation(x, rows)
        assert isinstance(selected, Quantized)
        assert torch.equal(selected.values, x.values[rows])
        assert torch.equal(selected.scale, x.scale[rows])
    assert select_activation(torch.tensor([[1.0], [2.0]]), slice(1, 2)).tolist() == [[2.0]]


def test_a_products_columns_keep_their_scales_when_rows_are_selected():
    values = torch.tensor([[10, 20], [30, 40]], dtype=torch.int32)
    product = Accumulated(values, torch.tensor([1.0, 0.5]), torch.tensor([1.0, 0.1]))
    assert to_float(select_product(product, torch.tensor([1, 1, 0]))).tolist() == [[15, 2], [15, 2], [10, 2]]
    assert select_product(torch.tensor([[1.0], [2.0]]), torch.tensor([1])).tolist() == [[2.0]]


def test_a_product_of_half_precision_is_widened():
    assert to_float(torch.ones(1, 2, dtype=torch.bfloat16)).dtype == torch.float32
