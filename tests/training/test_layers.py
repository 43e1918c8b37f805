"""What is trained must be what is served: the trainable layers by hand, and against transformers."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import T5Gemma2TextConfig
from transformers.models.t5gemma2.modeling_t5gemma2 import T5Gemma2RotaryEmbedding

from benchmarks.reference import SlowReference, load_slow_reference, mean_of_groups
from kalm_cache.model.checkpoint import BUNDLED_TINY
from kalm_cache.model.config import RopeConfig
from tests.texts import DOCUMENTS, QUERIES, long_text
from training import fused, layers
from training.layers import bidirectional_window, norm, rope_table, rotate, rotated_norm
from training.model import Reranker, mean_pool
from training.restore import restore

CPU = torch.device("cpu")
TEXTS = [DOCUMENTS["plain"], long_text(40), "Beijing"]
ASKED = [QUERIES["plain"], "force between two masses of different size", "gravity"]


def test_the_norm_scales_by_one_plus_its_weight():
    weight = torch.tensor([0.0, 1.0])
    # rms of (3, 4) is sqrt(12.5)
    expected = torch.tensor([3.0, 8.0]) / math.sqrt(12.5)
    torch.testing.assert_close(norm(torch.tensor([3.0, 4.0]), weight), expected, atol=1e-6, rtol=1e-6)


def test_the_norm_is_computed_in_float32_and_returned_in_the_input_dtype():
    # 300 squared overflows float16
    normed = norm(torch.tensor([300.0, 300.0], dtype=torch.float16), torch.zeros(2))
    assert normed.dtype == torch.float16
    assert normed.tolist() == [1.0, 1.0]


def test_rotation_by_a_quarter_turn_swaps_the_halves():
    # one head of width 4: pairs (x0, x2) and (x1, x3) turn; at 90 degrees (a, b) becomes (-b, a)
    cos, sin = torch.zeros(1, 1, 4), torch.ones(1, 1, 4)
    x = torch.tensor([[[[1.0, 2.0, 3.0, 4.0]]]])
    assert rotate(x, cos, sin).tolist() == [[[[-3.0, -4.0, 1.0, 2.0]]]]


def test_rope_angles_fall_with_the_pair_and_grow_with_the_position():
    cos, sin = rope_table(3, 4, RopeConfig(theta=100.0), CPU)
    # frequencies 1 and 100 ** -0.5 = 0.1, each for two of the four columns
    angles = torch.tensor([[0.0, 0.0], [1.0, 0.1], [2.0, 0.2]])
    torch.testing.assert_close(cos, angles.cos())
    torch.testing.assert_close(sin, angles.sin())


@pytest.mark.parametrize("factor", [1.0, 8.0])
def test_rope_tables_equal_transformers(factor: float):
    rope = {"rope_type": "linear", "rope_theta": 1_000_000.0, "factor": factor}
    sliding = {"rope_type": "default", "rope_theta": 10_000.0}
    config = T5Gemma2TextConfig(rope_parameters={"full_attention": rope, "sliding_attention": sliding})
    positions = torch.arange(1100).unsqueeze(0)
    expected = T5Gemma2RotaryEmbedding(config)(torch.empty(1), positions, "full_attention")
    tables = rope_table(1100, 256, RopeConfig(1_000_000.0, factor), CPU)
    for ours, theirs in zip(tables, expected, strict=True):
        assert torch.equal(ours.repeat(1, 2), theirs[0])


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


def padded(rows: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(map(len, rows))
    mask = torch.tensor([[True] * len(r) + [False] * (width - len(r)) for r in rows])
    return torch.tensor([r + [0] * (width - len(r)) for r in rows]), mask


@pytest.fixture(scope="module")
def tiny() -> tuple[Reranker, SlowReference]:
    trained = restore(BUNDLED_TINY)
    trained.dtype = torch.float32
    return trained, load_slow_reference(BUNDLED_TINY)


@pytest.mark.parametrize("ratio", [1, 4, 16])
@pytest.mark.parametrize("shared", [1, 4])
@torch.no_grad()
def test_margins_of_a_padded_group_equal_transformers_of_each_pair(
    tiny: tuple[Reranker, SlowReference], ratio: int, shared: int
):
    trained, reference = tiny
    passages = [reference.passage_ids(text) for text in TEXTS]
    prompts = [reference.prompt_ids(query) for query in ASKED]
    ids, mask = padded(passages)
    asked, _ = padded(prompts)
    last = torch.tensor([[len(p) - 1 for p in prompts]])
    margins = trained.margins(asked[None], last, *mean_pool(trained.encode(ids, mask), mask, ratio), shared)
    expected = [
        [reference.margin(prompt, mean_of_groups(reference.states(passage), ratio)) for passage in passages]
        for prompt in prompts
    ]
    torch.testing.assert_close(margins[0], torch.tensor(expected), atol=5e-5, rtol=0)


def test_gradients_reach_every_weight(tiny: tuple[Reranker, SlowReference]):
    trained, reference = tiny
    ids, mask = padded([reference.passage_ids(text) for text in TEXTS])
    prompts = torch.tensor([[reference.prompt_ids(ASKED[0])]])
    last = torch.tensor([[prompts.shape[2] - 1]])
    trained.margins(prompts, last, *mean_pool(trained.encode(ids, mask), mask, 4), 4).square().sum().backward()
    for side in (trained.encoder, trained.decoder):
        assert all(weight.grad is not None and weight.grad.any() for weight in side.parameters())


def in_torch_and_fused(monkeypatch: pytest.MonkeyPatch, run, *inputs: torch.Tensor) -> list[list[torch.Tensor]]:
    """Output and gradients, computed by torch's operators and by the compiled code."""
    results = []
    for compiled in (False, True):
        if not compiled:
            monkeypatch.setattr(layers.fused, "available", lambda x: False)
        else:
            monkeypatch.undo()
        leaves = [x.clone().requires_grad_() for x in inputs]
        out = run(*leaves)
        (out.float() * torch.linspace(-1, 1, out.numel()).view(out.shape)).sum().backward()
        results.append([out, *(leaf.grad for leaf in leaves)])
    return results


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiled_norms_rotations_and_gates_equal_torchs_and_so_do_their_gradients(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
):
    torch.manual_seed(1)
    if not fused.available(torch.zeros(1, dtype=dtype)):
        pytest.skip("no compiler")
    x, residual = torch.randn(2, 3, 7, 4, 64).to(dtype), torch.randn(2, 3, 7, 4, 64).to(dtype)
    weight, rope = torch.randn(64) / 4, rope_table(7, 64, RopeConfig(100.0), CPU)
    gate = torch.cat((torch.linspace(-20, 20, 500), torch.randn(500))).to(dtype)
    for run, inputs in (
        (lambda x, w, r: norm(x, w, r), (x, weight, residual)),
        (lambda x, w: norm(x, w), (x, weight)),
        (lambda x, w: rotated_norm(x, w, rope), (x, weight)),
        (layers.gated_gelu, (gate, gate.flip(0))),
    ):
        for slow, fast in zip(*in_torch_and_fused(monkeypatch, run, *inputs), strict=True):
            rough = 2e-5 if dtype == torch.float32 else 3e-2
            torch.testing.assert_close(fast.float(), slow.float(), atol=rough, rtol=rough)
