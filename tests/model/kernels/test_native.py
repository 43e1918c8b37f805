"""The native kernels against torch's, on random input of awkward sizes."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from kalm_cache.model.kernels import native as native_module
from kalm_cache.model.kernels.activations import Quantized
from kalm_cache.model.kernels.heads import Heads, Rope
from kalm_cache.model.kernels.native import NativeKernels
from kalm_cache.model.kernels.prefix_kv import make_prefix_kv
from kalm_cache.model.kernels.torch_kernels import TorchKernels
from tests.model.kernels.draws import assert_alike, draws, random_spans

SLOW = TorchKernels()
RUNS = ["float32", "bfloat16", "int8"]  # what a run computes in; int8's stream is float32
SIZES = [(1, 1), (1, 64), (3, 17), (37, 31), (5, 640), (2, 1152)]
CACHED = [torch.float32, torch.bfloat16, torch.int8]


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_quantizing_equals_torchs(native: NativeKernels, size: tuple[int, int]):
    x = draws("float32").states(*size)
    assert_alike(native.quantize(x), SLOW.quantize(x))


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("run", RUNS)
def test_the_norm_equals_torchs(native: NativeKernels, run: str, size: tuple[int, int]):
    draw = draws(run)
    x, weight = draw.states(*size), draw.weight(size[1])
    ours, theirs = (kernels.norm(x, weight, 1e-6, quantized=draw.quantized) for kernels in (native, SLOW))
    assert_alike(ours, theirs)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize(
    ("run", "quantized"), [("float32", False), ("bfloat16", False), ("int8", True), ("int8", False)]
)
def test_adding_a_normalised_branch_equals_torchs(
    native: NativeKernels, run: str, size: tuple[int, int], quantized: bool
):
    draw = draws(run)
    x, branch, weights = draw.states(*size), draw.product(*size), (draw.weight(size[1]), draw.weight(size[1]))
    sums, outs = [x.clone(), x.clone()], []
    for kernels, total in zip((native, SLOW), sums, strict=True):
        outs.append(kernels.add_norm(total, branch, *weights, 1e-6, quantized=quantized))
    assert_alike(*sums)
    if run == "bfloat16":  # torch normalises the rounded sum, the native kernel the sum itself: up to one unit more
        torch.testing.assert_close(*outs, rtol=2**-6, atol=1e-2)
    else:
        assert_alike(*outs)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("run", RUNS)
def test_the_gated_gelu_equals_torchs(native: NativeKernels, run: str, size: tuple[int, int]):
    draw = draws(run)
    gate_up = draw.product(size[0], 2 * size[1])
    ours, theirs = (kernels.gated_gelu(gate_up, draw.stream, quantized=draw.quantized) for kernels in (native, SLOW))
    assert_alike(ours, theirs)


@pytest.mark.parametrize("rows", [1, 6])
@pytest.mark.parametrize(("kv_heads", "group", "width"), [(1, 4, 32), (2, 2, 16), (2, 1, 6), (4, 2, 256)])
@pytest.mark.parametrize("parts", ["queries keys values", "keys values", "queries"])
@pytest.mark.parametrize("run", RUNS)
def test_splitting_heads_equals_torchs(
    native: NativeKernels, run: str, parts: str, kv_heads: int, group: int, width: int, rows: int
):
    draw, names = draws(run), parts.split()
    groups = {"queries": group, "keys": 1, "values": 1}
    slots = {"queries": 4, "keys": 7, "values": 7}
    columns = sum(kv_heads * groups[name] * width for name in names)
    product = draw.product(rows, columns)
    angle = torch.rand(9, width // 2, generator=draw.generator) * 6
    position = torch.randint(0, 9, (rows,), generator=draw.generator)
    slot = torch.randperm(8, generator=draw.generator)[:rows]  # of 2 sequences
    weights = {"queries": draw.weight(width), "keys": draw.weight(width), "values": None}
    for rope in (Rope(angle.cos(), angle.sin(), position), None):
        written = []
        for kernels in (native, SLOW):
            buffers = {
                name: torch.zeros(2, kv_heads, slots[name], groups[name], width, dtype=draw.stream) for name in names
            }
            heads = {name: Heads(buffers[name], slot // 4 * slots[name] + slot % 4, weights[name]) for name in names}
            kernels.split_heads(
                product,
                queries=heads.get("queries"),
                keys=heads.get("keys"),
                values=heads.get("values"),
                rope=rope,
                eps=1e-6,
            )
            written.append(buffers)
        for name in names:
            assert written[0][name].any()
            if name == "values" and run == "int8":
                torch.testing.assert_close(written[0][name], written[1][name], rtol=1e-5, atol=1e-4)
            else:
                assert_alike(written[0][name], written[1][name])


@pytest.mark.parametrize("stream", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype", CACHED)
@pytest.mark.parametrize(("kv_heads", "width"), [(1, 5), (2, 32)])
def test_loading_cached_keys_and_values_equals_torchs(
    native: NativeKernels, dtype: torch.dtype, stream: torch.dtype, kv_heads: int, width: int
):
    draw = draws("float32")
    cached = [
        make_prefix_kv((1, 2), pooled, draw.states(3, 2, kv_heads, 2 + pooled, width), dtype) for pooled in (1, 4, 3)
    ]
    ours, theirs = (torch.full((2, 3, kv_heads, 9, width), 7.0, dtype=stream) for _ in range(2))
    for index in range(3):
        native.load_kv(cached, (), index, ours)
        SLOW.load_kv(cached, (), index, theirs)
        assert torch.equal(ours, theirs)


@pytest.fixture(params=[4 << 20, 1000, 1])
def score_bytes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """All heads' scores at once, those of some heads, of one head at a time."""
    monkeypatch.setattr(native_module, "SCORE_BYTES", request.param)
    yield request.param


@pytest.mark.usefixtures("score_bytes")
@pytest.mark.parametrize(
    ("sequences", "kv_heads", "queries", "group", "keys", "width"),
    [(1, 1, 1, 4, 1, 32), (3, 2, 5, 2, 23, 16), (2, 1, 7, 4, 40, 8), (5, 3, 2, 1, 17, 6)],
)
def test_attention_equals_torchs(
    native: NativeKernels, sequences: int, kv_heads: int, queries: int, group: int, keys: int, width: int
):
    draw = draws("float32")
    query = draw.states(sequences, kv_heads, queries * group, width) / 3
    key, value = (draw.states(sequences, kv_heads, keys, width) / 3 for _ in range(2))
    spans = random_spans(sequences, queries, keys, draw.generator)
    ours, theirs = (
        kernels.attend(query, key, value, kernels.visible(spans, keys, group)) for kernels in (native, SLOW)
    )
    assert_alike(ours, theirs)


@pytest.mark.usefixtures("score_bytes")
def test_bfloat16_attention_rounds_scores_and_weights_and_nothing_else(native: NativeKernels):
    draw = draws("bfloat16")
    query, key, value = (draw.states(2, 2, rows, 16) / 3 for rows in (6, 19, 19))
    spans = random_spans(2, 3, 19, draw.generator)
    ours = native.attend(query, key, value, native.visible(spans, 19, 2))
    scores = (query @ key.transpose(2, 3)).float()
    seen = SLOW.visible(spans, 19, 2)
    weights = scores.masked_fill(~seen, -torch.inf).softmax(-1).to(torch.bfloat16)
    assert_alike(ours, weights @ value)


@pytest.mark.parametrize("run", RUNS)
def test_the_same_input_gives_the_same_bits_on_any_number_of_threads(native: NativeKernels, run: str):
    draw = draws(run)
    x, branch, gate_up = draw.states(33, 70), draw.product(33, 70), draw.product(33, 140)
    query, key, value = (draw.states(3, 2, rows, 16) for rows in (8, 21, 21))
    spans, weight = random_spans(3, 4, 21, draw.generator), draw.weight(70)

    def run_all() -> list[Tensor]:
        total = x.clone()
        results = [
            native.norm(x, weight, 1e-6, quantized=draw.quantized),
            native.add_norm(total, branch, weight, weight, 1e-6, quantized=draw.quantized),
            native.gated_gelu(gate_up, draw.stream, quantized=draw.quantized),
        ]
        flat = [part for one in results for part in ((one.values, one.scale) if isinstance(one, Quantized) else (one,))]
        return [*flat, total, native.attend(query, key, value, spans)]

    once = run_all()
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            again = run_all()
            assert all(torch.equal(left, right) for left, right in zip(once, again, strict=True))
    finally:
        torch.set_num_threads(before)
