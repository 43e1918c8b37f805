import math

import pytest
import torch
from transformers import T5Gemma2TextConfig
from transformers.models.t5gemma2.modeling_t5gemma2 import T5Gemma2RotaryEmbedding

from kalm_cache.model.config import RopeConfig
from kalm_cache.model.layers import RMSNorm, TokenEmbedding, rope_table, rotate


def test_the_norm_scales_by_one_plus_its_weight():
    norm = RMSNorm(2, eps=0.0)
    norm.weight.data = torch.tensor([0.0, 1.0])
    # rms of (3, 4) is sqrt(12.5)
    expected = torch.tensor([3.0, 8.0]) / math.sqrt(12.5)
    torch.testing.assert_close(norm(torch.tensor([3.0, 4.0])), expected)


def test_the_norm_is_computed_in_float32_and_returned_in_the_input_dtype():
    norm = RMSNorm(2, eps=1e-6)
    # 300 squared overflows float16
    normed = norm(torch.tensor([300.0, 300.0], dtype=torch.float16))
    assert normed.dtype == torch.float16
    assert normed.tolist() == [1.0, 1.0]


def test_rotation_by_a_quarter_turn_swaps_the_halves():
    # one head of width 4: pairs (x0, x2) and (x1, x3) turn; at 90 degrees (a, b) becomes (-b, a)
    cos, sin = torch.zeros(1, 4), torch.ones(1, 4)
    x = torch.tensor([[[[1.0, 2.0, 3.0, 4.0]]]])
    assert rotate(x, (cos, sin)).tolist() == [[[[-3.0, -4.0, 1.0, 2.0]]]]


def test_rope_angles_fall_with_the_pair_and_grow_with_the_position():
    cos, sin = rope_table(3, 4, RopeConfig(theta=100.0), torch.float32, torch.device("cpu"))
    # frequencies 1 and 100 ** -0.5 = 0.1, each for two of the four columns
    angles = torch.tensor([[0.0, 0.0, 0.0, 0.0], [1.0, 0.1, 1.0, 0.1], [2.0, 0.2, 2.0, 0.2]])
    torch.testing.assert_close(cos, angles.cos())
    torch.testing.assert_close(sin, angles.sin())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("factor", [1.0, 8.0])
def test_rope_tables_equal_transformers(dtype: torch.dtype, factor: float):
    rope = {"rope_type": "linear", "rope_theta": 1_000_000.0, "factor": factor}
    sliding = {"rope_type": "default", "rope_theta": 10_000.0}
    config = T5Gemma2TextConfig(rope_parameters={"full_attention": rope, "sliding_attention": sliding})
    positions = torch.arange(1100).unsqueeze(0)
    expected = T5Gemma2RotaryEmbedding(config)(torch.empty(1, dtype=dtype), positions, "full_attention")
    tables = rope_table(1100, 256, RopeConfig(1_000_000.0, factor), dtype, torch.device("cpu"))
    for ours, theirs in zip(tables, expected, strict=True):
        assert torch.equal(ours, theirs[0])


def test_embeddings_are_scaled_by_the_root_of_the_width_and_end_of_image_has_its_own_vector():
    table = torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 5.0, 0.0]])
    embedding = TokenEmbedding(table, torch.tensor([7.0, 7.0, 7.0, 7.0]), eoi_token_index=2, dtype=torch.float32)
    states = embedding(torch.tensor([[0, 2, 1]]))
    assert states.tolist() == [[[2.0, 0.0, 0.0, 0.0], [7.0, 7.0, 7.0, 7.0], [0.0, 2.0, 0.0, 0.0]]]


def test_the_embedding_scale_is_rounded_to_the_dtype_of_the_run():
    embedding = TokenEmbedding(torch.ones(1, 640), None, eoi_token_index=5, dtype=torch.bfloat16)
    # sqrt(640) = 25.298…; bfloat16 steps by 0.125 there
    assert embedding(torch.tensor([[0]]))[0, 0, 0].item() == 25.25


def test_moving_or_casting_the_module_leaves_the_table_where_it_is():
    table = torch.ones(3, 4, dtype=torch.bfloat16)
    embedding = TokenEmbedding(table, None, eoi_token_index=5, dtype=torch.float32).to(torch.float64)
    assert embedding.table is table
    assert list(embedding.parameters()) == []
