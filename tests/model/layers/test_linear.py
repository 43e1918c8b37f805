import pytest
import torch

from kalm_cache.model import precision
from kalm_cache.model.kernels.activations import Accumulated, Quantized, to_float
from kalm_cache.model.layers.linear import Linear, ScratchBuffer, multiply, quantize_weight

WEIGHT = torch.tensor([[2.0, 0.5, -1.0], [0.0, 0.0, 0.0], [-4.0, 4.0, 0.01]])


def test_a_product_is_the_input_times_the_transposed_weight():
    linear = Linear(torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]))
    assert linear(torch.tensor([[1.0, 10.0], [2.0, 0.0]])).tolist() == [[21.0, 43.0, 65.0], [2.0, 6.0, 10.0]]


def test_int8_weights_have_one_scale_an_output_and_an_output_of_zeros_stays_zero():
    linear = quantize_weight(WEIGHT)
    assert linear.scale is not None
    torch.testing.assert_close(linear.scale, torch.tensor([2 / 127, 0.0, 4 / 127]))
    # 0.5 / (2 / 127) = 31.75; −1 / (2 / 127) = −63.5, to even; 0.01 / (4 / 127) = 0.3
    assert linear.weight.tolist() == [[127, 32, -64], [0, 0, 0], [-127, 127, 0]]
    assert (linear.weight.dtype, linear.scale.dtype) == (torch.int8, torch.float32)


def test_weights_of_a_bfloat16_checkpoint_are_quantised_in_float32():
    weight = torch.randn(5, 64, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    ours, exact = quantize_weight(weight), quantize_weight(weight.float())
    assert torch.equal(ours.weight, exact.weight)
    assert torch.equal(ours.scale, exact.scale)


def test_an_int8_product_keeps_its_sums_and_both_scales():
    linear = Linear(torch.tensor([[1, -2], [127, 127]], dtype=torch.int8), torch.tensor([0.5, 2.0]))
    product = linear(Quantized(torch.tensor([[3, 4], [127, 127]], dtype=torch.int8), torch.tensor([1.0, 0.25])))
    assert isinstance(product, Accumulated)
    assert product.values.tolist() == [[-5, 889], [-127, 32258]]
    assert to_float(product).tolist() == [[-2.5, 1778.0], [-15.875, 16129.0]]


@pytest.mark.parametrize("rows", [1, 2, 16, 17])
@pytest.mark.parametrize(("width", "outputs"), [(1, 1), (3, 5), (64, 33)])
def test_int8_products_of_any_size_equal_whole_numbers_multiplied(rows: int, width: int, outputs: int):
    draw = torch.Generator().manual_seed(rows)
    values = torch.randint(-127, 128, (rows, width), generator=draw)
    weight = torch.randint(-127, 128, (outputs, width), generator=draw)
    linear = Linear(weight.to(torch.int8), torch.ones(outputs))
    product = linear(Quantized(values.to(torch.int8), torch.ones(rows)))
    assert isinstance(product, Accumulated)
    assert torch.equal(product.values.long(), values @ weight.T)


def test_a_part_of_the_outputs_shares_memory_with_the_whole():
    linear = quantize_weight(WEIGHT)
    part = linear.outputs(1, 3)
    assert part.weight.tolist() == linear.weight[1:3].tolist()
    assert part.weight.data_ptr() == linear.weight[1].data_ptr()
    assert part.scale is not None
    assert linear.scale is not None
    assert part.scale.data_ptr() == linear.scale[1].data_ptr()
    assert Linear(WEIGHT).outputs(2).weight.tolist() == [WEIGHT[2].tolist()]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_product_filled_block_by_block_equals_the_whole(dtype: torch.dtype):
    linear, x = Linear(WEIGHT.to(dtype)), torch.randn(7, 3, generator=torch.Generator().manual_seed(1)).to(dtype)
    out = linear.empty(7, x)
    for start in (0, 3, 6):
        linear.fill(out, start, x[start : start + 3])
    torch.testing.assert_close(out, linear(x))


def test_an_int8_product_filled_block_by_block_equals_the_whole():
    linear = quantize_weight(WEIGHT)
    x = Quantized(torch.randint(-127, 128, (7, 3)).to(torch.int8), torch.rand(7))
    out, whole = linear.empty(7, x), linear(x)
    for start in (0, 3, 6):
        linear.fill(out, start, Quantized(x.values[start : start + 3], x.scale[start : start + 3]))
    assert isinstance(out, Accumulated)
    assert isinstance(whole, Accumulated)
    assert torch.equal(out.values, whole.values)
    assert torch.equal(out.row_scale, whole.row_scale)
    assert torch.equal(out.column_scale, whole.column_scale)


def test_what_is_kept_in_memory_is_the_weight_and_its_scales():
    assert len(Linear(WEIGHT).tensors()) == 1
    assert [tensor.dtype for tensor in quantize_weight(WEIGHT).tensors()] == [torch.int8, torch.float32]


def test_a_scratch_buffer_gives_each_product_its_numbers_from_the_same_memory():
    scratch, generator = ScratchBuffer(), torch.Generator().manual_seed(0)
    first, second = (Linear(torch.randn(6, 4, generator=generator)) for _ in range(2))
    x = torch.randn(5, 4, generator=generator)
    product = scratch.product(first, x)
    assert torch.equal(product, first(x))
    assert torch.equal(fewer := scratch.product(second, x[:3]), second(x[:3]))
    assert fewer.data_ptr() == product.data_ptr()
    more = x.repeat(2, 1)  # than the buffer holds
    assert torch.equal(scratch.product(first, more), first(more))


def test_a_scratch_buffer_keeps_no_scale_of_an_earlier_product():
    scratch, generator = ScratchBuffer(), torch.Generator().manual_seed(0)
    first, second = (quantize_weight(torch.randn(6, 4, generator=generator)) for _ in range(2))
    values = torch.randint(-127, 128, (20, 4), dtype=torch.int8, generator=generator)
    x = Quantized(values, torch.rand(20, generator=generator))
    for linear in (first, second):
        product = scratch.product(linear, x)
        assert torch.equal(to_float(product), to_float(linear(x)))


def test_a_cpu_without_bfloat16_multiplies_it_in_float32_and_rounds_once(monkeypatch: pytest.MonkeyPatch):
    draw = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(rows, 40, generator=draw).to(torch.bfloat16) for rows in (5, 7))
    monkeypatch.setattr(precision, "lacks_bfloat16", lambda: True)
    expected = (x.double() @ weight.double().t()).to(torch.bfloat16)
    out = torch.empty(5, 7, dtype=torch.bfloat16)
    assert torch.equal(multiply(x, weight), expected)
    assert torch.equal(multiply(x, weight, out), expected)
    assert torch.equal(out, expected)
    assert precision.widen(x).dtype == torch.float32
    assert precision.widen(single := x.float()) is single
