"""What both kernels must compute, by hand."""

import math

import pytest
import torch

from kalm_cache.model.kernels import Kernels
from kalm_cache.model.kernels.activations import Accumulated, Quantized, to_float
from kalm_cache.model.kernels.heads import Heads, Rope
from kalm_cache.model.kernels.prefix_kv import PrefixKV
from kalm_cache.model.kernels.torch_kernels import TorchKernels
from kalm_cache.model.layers.linear import quantize_weight

ONES = torch.ones(2)


def gelu_tanh(x: float) -> float:
    return x / 2 * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def attention_weights(kernels: Kernels, scores: list[float], spans: list[list[int]]) -> list[list[float]]:
    """Softmax weights of queries whose scores all equal `scores`, one query a span: values are the unit vectors."""
    keys = len(scores)
    query = torch.zeros(1, 1, len(spans), keys)
    query[..., 0] = 1.0
    key = torch.zeros(1, 1, keys, keys)
    key[0, 0, :, 0] = torch.tensor(scores)
    visible = kernels.visible(torch.tensor([spans], dtype=torch.int32), keys, 1)
    return kernels.attend(query, key, torch.eye(keys)[None, None], visible)[0, 0].tolist()


def test_the_norm_divides_by_the_root_mean_square_and_multiplies_by_its_weight(kernels: Kernels):
    normed = kernels.norm(torch.tensor([[3.0, 4.0]]), torch.tensor([1.0, 2.0]), 0.0, quantized=False)
    # rms of (3, 4) is sqrt(12.5)
    torch.testing.assert_close(normed, torch.tensor([[3.0, 8.0]]) / math.sqrt(12.5))


def test_the_norms_epsilon_stands_under_the_root(kernels: Kernels):
    normed = kernels.norm(torch.tensor([[0.0, 0.0], [1.0, 1.0]]), ONES, 3.0, quantized=False)
    torch.testing.assert_close(normed, torch.tensor([[0.0, 0.0], [0.5, 0.5]]))


def test_the_norm_is_computed_in_float32_and_returned_in_the_input_dtype():
    # 300 squared overflows float16
    normed = TorchKernels().norm(torch.tensor([[300.0, 300.0]], dtype=torch.float16), ONES, 1e-6, quantized=False)
    assert normed.dtype == torch.float16
    assert normed.tolist() == [[1.0, 1.0]]


def test_bfloat16_squares_are_summed_in_float32(kernels: Kernels):
    # in bfloat16, 256 + 1 is 256: a running sum of squares would stay at 256
    row = torch.cat((torch.full((1, 1), 16.0), torch.ones(1, 255)), dim=1).to(torch.bfloat16)
    normed = kernels.norm(row, torch.ones(256), 0.0, quantized=False)
    assert normed[0, 1].item() == torch.tensor(math.sqrt(256 / 511)).to(torch.bfloat16).item()


def test_the_branch_is_normalised_before_it_is_added_and_the_sum_after(kernels: Kernels):
    x = torch.tensor([[1.0, 2.0]])
    out = kernels.add_norm(
        x, torch.tensor([[3.0, 4.0]]), torch.tensor([1.0, 0.5]), torch.tensor([2.0, 1.0]), 0.0, quantized=False
    )
    root = math.sqrt(12.5)
    total = [1 + 3 / root, 2 + 2 / root]
    rms = math.sqrt((total[0] ** 2 + total[1] ** 2) / 2)
    assert x.tolist() == [pytest.approx(total)]  # in place
    assert out.tolist() == [pytest.approx([2 * total[0] / rms, total[1] / rms])]


def test_the_largest_magnitude_of_a_row_becomes_127_and_a_row_of_zeros_stays_zero(kernels: Kernels):
    quantized = kernels.quantize(torch.tensor([[1.0, -2.0, 0.25], [0.0, 0.0, 0.0], [1e-3, 0.0, 1e-3]]))
    # 1 / (2 / 127) = 63.5, to even; 0.25 / (2 / 127) = 15.875
    assert quantized.values.tolist() == [[64, -127, 16], [0, 0, 0], [127, 0, 127]]
    torch.testing.assert_close(quantized.scale, torch.tensor([2 / 127, 0.0, 1e-3 / 127]))
    assert (quantized.values.dtype, quantized.scale.dtype) == (torch.int8, torch.float32)


def test_a_row_of_even_width_is_rotated_before_it_becomes_int8(kernels: Kernels):
    # (1, 3) R = (4, −2) / √2; −2 is −63.5 steps, to even
    quantized = kernels.quantize(torch.tensor([[1.0, 3.0]]))
    assert quantized.values.tolist() == [[127, -64]]
    torch.testing.assert_close(quantized.scale, torch.tensor([4 / math.sqrt(2) / 127]))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("width", [5, 64])
def test_a_row_that_is_not_finite_stays_visible_in_int8_and_harms_no_other(kernels: Kernels, value: float, width: int):
    x = torch.randn(3, width, generator=torch.Generator().manual_seed(0))
    damaged = x.clone()
    damaged[1, 3] = value
    weight = torch.ones(width)
    for whole, hurt in (
        (kernels.quantize(x), kernels.quantize(damaged)),
        (kernels.norm(x, weight, 1e-6, quantized=True), kernels.norm(damaged, weight, 1e-6, quantized=True)),
    ):
        assert isinstance(whole, Quantized)
        assert isinstance(hurt, Quantized)
        assert hurt.scale.isfinite().tolist() == [True, False, True]
        assert torch.equal(hurt.scale[[0, 2]], whole.scale[[0, 2]])
        assert torch.equal(hurt.values[[0, 2]], whole.values[[0, 2]])


def test_an_int8_product_is_nearer_for_the_rotation_where_one_number_is_large(kernels: Kernels):
    draw = torch.Generator().manual_seed(0)
    x, weight = torch.randn(32, 192, generator=draw), torch.randn(32, 192, generator=draw)
    x[:, 17] = 100.0  # steps of 100 / 127 leave little of the others
    exact = x @ weight.T
    plain = _rounded(x) @ _rounded(weight).T - exact
    error = to_float(quantize_weight(weight)(kernels.quantize(x))) - exact
    assert error.square().mean().sqrt() < plain.square().mean().sqrt() / 2


def _rounded(rows: torch.Tensor) -> torch.Tensor:
    """Rows as int8 without rotation would have them."""
    scale = rows.abs().amax(1, keepdim=True) / 127
    return (rows / scale).round() * scale


def test_gelu_of_the_gates_multiplies_the_rest(kernels: Kernels):
    gates, ups = [0.0, 1.0, -1.0, 0.5, -3.0], [5.0, 2.0, 2.0, -1.0, 10.0]
    out = kernels.gated_gelu(torch.tensor([gates + ups]), torch.float32, quantized=False)
    expected = [gelu_tanh(gate) * up for gate, up in zip(gates, ups, strict=True)]
    assert out.tolist() == [pytest.approx(expected, abs=1e-6)]


def test_gelu_of_very_large_gates_neither_overflows_nor_leaves_a_rest(kernels: Kernels):
    gates = [100.0, -100.0, 3e4, -3e4, 20.0, -20.0]
    out = kernels.gated_gelu(torch.tensor([gates + [1.0] * 6]), torch.float32, quantized=False)
    assert out.tolist() == [pytest.approx([100.0, 0.0, 3e4, 0.0, 20.0, 0.0], abs=1e-6)]


def test_an_int8_products_scales_count(kernels: Kernels):
    product = Accumulated(torch.tensor([[10, 30], [-4, 7]], dtype=torch.int32), ONES / 10, torch.tensor([1.0, 2.0]))
    # (1, 6) and (−0.4, 1.4): gate and up
    out = kernels.gated_gelu(product, torch.float32, quantized=False)
    assert out.tolist() == [pytest.approx([gelu_tanh(1.0) * 6.0]), pytest.approx([gelu_tanh(-0.4) * 1.4])]


def test_heads_are_cut_in_order_and_written_to_their_places(kernels: Kernels):
    # one row a token: 2 query heads of one key head, then its key, then its value; head width 2
    product = torch.tensor([[3.0, 4.0, 5.0, 0.0, 6.0, 8.0, 7.0, 9.0], [1.0, 1.0, 0.0, 2.0, 2.0, 2.0, -1.0, -2.0]])
    slot = torch.tensor([3, 0])  # of 2 sequences with 2 places each: the last place, and the first
    queries, keys, values = (torch.full((2, 1, 2, group, 2), 99.0) for group in (2, 1, 1))
    kernels.split_heads(
        product,
        queries=Heads(queries, slot, ONES * 2),
        keys=Heads(keys, slot, ONES),
        values=Heads(values, slot),
        rope=None,
        eps=0.0,
    )
    root = math.sqrt(12.5)
    torch.testing.assert_close(queries[1, 0, 1], torch.tensor([[6 / root, 8 / root], [2 * math.sqrt(2), 0.0]]))
    torch.testing.assert_close(queries[0, 0, 0], torch.tensor([[2.0, 2.0], [0.0, 2 * math.sqrt(2)]]))
    torch.testing.assert_close(keys[1, 0, 1, 0], torch.tensor([3 / root, 4 / root]))
    assert values[1, 0, 1, 0].tolist() == [7.0, 9.0]  # as they are
    assert values[0, 0, 0, 0].tolist() == [-1.0, -2.0]
    for buffer in (queries, keys, values):
        assert (buffer[0, 0, 1] == 99.0).all()  # no row's place
        assert (buffer[1, 0, 0] == 99.0).all()


def test_rotation_by_a_quarter_turn_swaps_the_halves_of_queries_and_keys_alone(kernels: Kernels):
    # pairs (x0, x2) and (x1, x3) turn at position 1: at 90 degrees (a, b) becomes (−b, a)
    rope = Rope(torch.tensor([[1.0, 1.0], [0.0, 0.0]]), torch.tensor([[0.0, 0.0], [1.0, 1.0]]), torch.tensor([1]))
    head = [1.0, -1.0, 1.0, -1.0]  # its norm is itself
    queries, keys, values = (torch.zeros(1, 1, 1, 1, 4) for _ in range(3))
    slot = torch.tensor([0])
    kernels.split_heads(
        torch.tensor([head * 3]),
        queries=Heads(queries, slot, torch.ones(4)),
        keys=Heads(keys, slot, torch.ones(4)),
        values=Heads(values, slot),
        rope=rope,
        eps=0.0,
    )
    assert queries.flatten().tolist() == keys.flatten().tolist() == [-1.0, 1.0, 1.0, -1.0]
    assert values.flatten().tolist() == head


def test_attention_weighs_by_the_softmax_of_its_scores(kernels: Kernels):
    [weights] = attention_weights(kernels, [0.0, math.log(3)], [[0, 2, 0, 0]])
    assert weights == pytest.approx([0.25, 0.75])


def test_what_lies_outside_both_spans_has_no_weight(kernels: Kernels):
    third = pytest.approx(1 / 3)
    spans = [[1, 2, 3, 5], [0, 0, 4, 5], [2, 4, 0, 0], [0, 5, 0, 0], [3, 3, 0, 1]]
    weights = attention_weights(kernels, [7.0] * 5, spans)
    assert weights[0] == [0.0, third, 0.0, third, third]
    assert weights[1] == [0.0, 0.0, 0.0, 0.0, 1.0]
    assert weights[2] == [0.0, 0.0, 0.5, 0.5, 0.0]
    assert weights[3] == pytest.approx([0.2] * 5)
    assert weights[4] == [1.0, 0.0, 0.0, 0.0, 0.0]


def test_a_query_that_sees_nothing_disturbs_no_other(kernels: Kernels):
    weights = attention_weights(kernels, [1.0, 1.0], [[0, 0, 0, 0], [0, 2, 0, 0], [2, 1, 1, 1], [1, 2, 0, 0]])
    assert (weights[1], weights[3]) == ([0.5, 0.5], [0.0, 1.0])


def test_scores_of_any_size_give_weights_that_add_up(kernels: Kernels):
    for scores in ([1e4, -1e4, 0.0], [-1e30, 1e30, -1e30], [-1e4, -1e4 - 200.0, -2e4], [3e38, -3e38, 0.0]):
        [weights] = attention_weights(kernels, scores, [[0, 3, 0, 0]])
        largest = scores.index(max(scores))
        assert weights == pytest.approx([float(i == largest) for i in range(3)], abs=1e-30)
    [weights] = attention_weights(kernels, [-1e30, -1e30, -1e30], [[0, 3, 0, 0]])
    assert weights == pytest.approx([1 / 3] * 3)


def test_the_exponential_is_right_over_its_whole_range(kernels: Kernels):
    scores = torch.linspace(-86.0, 0.0, 512)
    [weights] = attention_weights(kernels, scores.tolist(), [[0, 512, 0, 0]])
    exact = scores.double().softmax(0)
    assert weights == pytest.approx(exact.tolist(), rel=2e-6, abs=1e-37)


def test_what_was_kept_is_recalled_to_the_first_places(kernels: Kernels):
    # two layers, one key head, width 2; passages of 2 and 1 places; the second layer is asked for
    first = torch.arange(16.0).reshape(2, 2, 1, 2, 2)
    second = torch.full((2, 2, 1, 1, 2), -3.0)
    out = torch.full((2, 2, 1, 3, 2), 99.0)
    cached = [PrefixKV((1,), 1, first), PrefixKV((1,), 0, second)]
    kernels.load_kv(cached, kernels.locate(cached), 1, out)
    assert out[:, 0, 0].tolist() == [
        [[8.0, 9.0], [10.0, 11.0], [99.0, 99.0]],
        [[12.0, 13.0], [14.0, 15.0], [99.0, 99.0]],
    ]
    assert out[:, 1, 0].tolist() == [[[-3.0, -3.0], [99.0, 99.0], [99.0, 99.0]]] * 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_was_kept_in_int8_is_multiplied_by_the_scale_of_its_vector(kernels: Kernels, dtype: torch.dtype):
    states = torch.tensor([[[[[1, 2], [3, 4]]], [[[5, 6], [-127, 0]]]]], dtype=torch.int8)  # (1, 2, 1, 2, 2)
    scale = torch.tensor([[[[0.5, 2.0]], [[1.0, 0.25]]]])  # (1, 2, 1, 2)
    out = torch.zeros(2, 1, 1, 2, 2, dtype=dtype)
    cached = [PrefixKV((1,), 1, states, scale)]
    kernels.load_kv(cached, kernels.locate(cached), 0, out)
    assert out.tolist() == [[[[[0.5, 1.0], [6.0, 8.0]]]], [[[[5.0, 6.0], [-31.75, 0.0]]]]]


def test_torch_spells_spans_out_for_every_head_of_a_group():
    visible = TorchKernels().visible(torch.tensor([[[0, 1, 3, 4], [1, 3, 0, 0]]], dtype=torch.int32), 4, 2)
    assert visible.int().tolist() == [[[[1, 0, 0, 1], [1, 0, 0, 1], [0, 1, 1, 0], [0, 1, 1, 0]]]]
