"""The trainable layers by hand, and against the inference runtime: what is trained must be what is served."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from transformers import T5Gemma2TextConfig
from transformers.models.t5gemma2.modeling_t5gemma2 import T5Gemma2RotaryEmbedding

from benchmarks.reference import SlowReference
from kalm_cache.model.checkpoint import Checkpoint
from kalm_cache.model.config import RopeConfig, StackConfig
from kalm_cache.model.decoder_pass import Prompts
from kalm_cache.model.runtime import load_decoder, load_encoder
from tests.texts import DOCUMENTS, QUERIES, long_text
from training.layers import (
    Layer,
    RMSNorm,
    bidirectional_window,
    causal_window,
    rope_table,
    rope_tables,
    rotate,
)

CPU = torch.device("cpu")


class Stack(nn.Module):
    """One side's layers and final norm, with the checkpoint's names."""

    def __init__(self, config: StackConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(config) for _ in config.layer_types)
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


def load(checkpoint: Checkpoint, prefix: str, config: StackConfig) -> Stack:
    stack = Stack(config)
    stack.load_state_dict({name: checkpoint.tensor(prefix + name) for name in stack.state_dict()})
    return stack


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
    cos, sin = rope_table(3, 4, RopeConfig(theta=100.0), torch.float32, CPU)
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
    tables = rope_table(1100, 256, RopeConfig(1_000_000.0, factor), dtype, CPU)
    for ours, theirs in zip(tables, expected, strict=True):
        assert torch.equal(ours, theirs[0])


def test_an_even_window_sees_one_token_more_to_the_right_than_to_the_left():
    # 4: the token itself and 1 to the left, 2 to the right
    assert bidirectional_window(5, 4, CPU).int().tolist() == [
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0],
        [0, 1, 1, 1, 1],
        [0, 0, 1, 1, 1],
        [0, 0, 0, 1, 1],
    ]


def test_an_odd_window_sees_as_far_left_as_right():
    assert bidirectional_window(4, 3, CPU).int().tolist() == [
        [1, 1, 0, 0],
        [1, 1, 1, 0],
        [0, 1, 1, 1],
        [0, 0, 1, 1],
    ]


def test_a_token_sees_itself_and_the_window_before_it():
    assert causal_window(4, 2, CPU).int().tolist() == [
        [1, 0, 0, 0],
        [1, 1, 0, 0],
        [0, 1, 1, 0],
        [0, 0, 1, 1],
    ]


def test_a_window_as_long_as_the_text_is_plain_causal_attention():
    assert torch.equal(causal_window(5, 5, CPU), torch.ones(5, 5).tril().bool())


@pytest.mark.parametrize("document", [DOCUMENTS["plain"], long_text(40)], ids=["plain", "long"])
@torch.no_grad()
def test_an_encoder_of_trainable_layers_equals_the_runtimes(
    mini: Checkpoint, mini_reference: SlowReference, document: str
):
    config, ids = mini.config.encoder, torch.tensor(mini_reference.passage_ids(document))
    trained, served = load(mini, "model.encoder.", config), load_encoder(mini, CPU, torch.float32)
    x = served.stack.embed(ids).unsqueeze(0)
    ropes = rope_tables(len(ids), config, torch.float32, CPU)
    for layer, kind in zip(trained.layers, config.layer_types, strict=True):
        window = config.window_of(kind)
        x = layer(x, ropes[kind], bidirectional_window(len(ids), window or 2 * len(ids), CPU))
    torch.testing.assert_close(trained.norm(x)[0], served(ids, [len(ids)]), atol=2e-5, rtol=1e-5)


@torch.no_grad()
def test_a_decoder_of_trainable_layers_equals_the_runtimes(mini: Checkpoint, mini_reference: SlowReference):
    config, ids = mini.config.decoder, mini_reference.prompt_ids(QUERIES["plain"])
    pooled = mini_reference.states(mini_reference.passage_ids(DOCUMENTS["plain"]))
    trained, served = load(mini, "model.decoder.", config), load_decoder(mini, (99, 103), CPU, torch.float32)
    x = served.stack.embed(torch.tensor(ids)).unsqueeze(0)
    ropes = rope_tables(len(ids), config, torch.float32, CPU)
    every_state = torch.ones(len(ids), len(pooled), dtype=torch.bool)
    for layer, kind in zip(trained.layers, config.layer_types, strict=True):
        own = causal_window(len(ids), config.window_of(kind) or len(ids), CPU)
        x = layer(x, ropes[kind], torch.cat((own, every_state), dim=1), pooled.unsqueeze(0))
    yes, no = (trained.norm(x[0, -1]) @ served.answer_rows.T).tolist()
    margin = served.margins(Prompts([ids], [0]), pooled, [len(pooled)]).item()
    assert margin == pytest.approx(yes - no, abs=2e-5)


def test_gradients_reach_every_weight_of_a_layer(mini: Checkpoint):
    config = mini.config.decoder
    layer = load(mini, "model.decoder.", config).layers[0]
    ropes = rope_tables(5, config, torch.float32, CPU)
    x, memory = torch.randn(1, 8, config.hidden_size).split([5, 3], dim=1)
    layer(x, ropes["sliding_attention"], torch.ones(5, 8).bool(), memory).sum().backward()
    assert all(weight.grad is not None and weight.grad.any() for weight in layer.parameters())
