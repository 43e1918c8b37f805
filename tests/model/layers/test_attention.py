import pytest
import torch
from transformers import T5Gemma2TextConfig
from transformers.models.t5gemma2.modeling_t5gemma2 import T5Gemma2RotaryEmbedding

from kalm_cache.model.config import RopeConfig
from kalm_cache.model.layers.attention import rope_of


def test_rope_angles_fall_with_the_pair_and_grow_with_the_position():
    rope = rope_of(torch.arange(3), 3, 4, RopeConfig(theta=100.0))
    # frequencies 1 and 100 ** -0.5 = 0.1
    angles = torch.tensor([[0.0, 0.0], [1.0, 0.1], [2.0, 0.2]])
    torch.testing.assert_close(rope.cos[:3], angles.cos())
    torch.testing.assert_close(rope.sin[:3], angles.sin())


@pytest.mark.parametrize("length", [1, 5, 1100])
@pytest.mark.parametrize("factor", [1.0, 8.0])
def test_rope_tables_equal_transformers(factor: float, length: int):
    rope = {"rope_type": "linear", "rope_theta": 1_000_000.0, "factor": factor}
    sliding = {"rope_type": "default", "rope_theta": 10_000.0}
    config = T5Gemma2TextConfig(rope_parameters={"full_attention": rope, "sliding_attention": sliding})
    positions = torch.arange(length)
    theirs = T5Gemma2RotaryEmbedding(config)(torch.empty(1), positions.unsqueeze(0), "full_attention")
    ours = rope_of(positions, length, 256, RopeConfig(1_000_000.0, factor))
    for table, expected in zip((ours.cos, ours.sin), theirs, strict=True):
        assert torch.equal(table[ours.position].repeat(1, 2), expected[0])  # theirs has both halves


def test_a_table_serves_every_position_below_its_length():
    for length in (1, 2, 511, 512, 513, 2048, 2049):
        assert len(rope_of(torch.tensor([length - 1]), length, 4, RopeConfig(100.0)).cos) >= length
