"""The Triton kernels against torch's in Triton's interpreter, and compiled for an H100 without one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from kalm_cache.model.checkpoint import Checkpoint
from kalm_cache.model.encoder import PassageEncoder
from kalm_cache.model.kernels import Kernels
from kalm_cache.model.kernels.activations import Quantized
from kalm_cache.model.kernels.heads import Heads, Rope
from kalm_cache.model.kernels.prefix_kv import make_prefix_kv
from kalm_cache.model.kernels.torch_kernels import TorchKernels
from kalm_cache.model.kernels.triton.loading import triton_kernels
from kalm_cache.model.layers.decoder_pass import Prompts
from kalm_cache.model.layers.stack import Stack
from kalm_cache.model.runtime import load_decoder, load_encoder
from tests.model.kernels.draws import assert_alike, draws, random_spans

SLOW, CPU = TorchKernels(), torch.device("cpu")
SHARED_BYTES = 227 << 10  # that one block of programs of an H100 may take


@pytest.mark.parametrize("size", [(3, 17), (2, 640)], ids=str)
@pytest.mark.parametrize("run", ["float32", "bfloat16"])
def test_norms_and_gates_equal_torchs(triton: Kernels, run: str, size: tuple[int, int]):
    draw = draws(run)
    x, branch, weight, other = draw.states(*size), draw.states(*size), draw.weight(size[1]), draw.weight(size[1])
    assert_alike(triton.norm(x, weight, 1e-6, quantized=False), SLOW.norm(x, weight, 1e-6, quantized=False))
    ours, theirs = x.clone(), x.clone()
    out = triton.add_norm(ours, branch, weight, other, 1e-6, quantized=False)
    expected = SLOW.add_norm(theirs, branch, weight, other, 1e-6, quantized=False)
    assert_alike(ours, theirs)
    # torch normalises the rounded sum, this kernel the sum itself, as native.cpp does: up to one unit more
    within = 1e-5 if run == "float32" else 2**-6
    torch.testing.assert_close(out, expected, rtol=within, atol=within)
    gate_up = draw.states(size[0], 2 * size[1])
    assert_alike(*(each.gated_gelu(gate_up, draw.stream, quantized=False) for each in (triton, SLOW)))


def test_a_gate_wider_than_a_block_is_computed_in_blocks(triton: Kernels):
    gate_up = draws("float32").states(2, 2 * 1030)
    assert_alike(*(each.gated_gelu(gate_up, torch.float32, quantized=False) for each in (triton, SLOW)))


@pytest.mark.parametrize(("kv_heads", "group", "width"), [(1, 4, 32), (2, 2, 6)])
@pytest.mark.parametrize("parts", ["queries keys values", "keys values", "queries"])
def test_heads_equal_torchs(triton: Kernels, parts: str, kv_heads: int, group: int, width: int):
    draw, rows = draws("float32"), 5
    groups, slots = {"queries": group, "keys": 1, "values": 1}, {"queries": 4, "keys": 7, "values": 7}
    weights = {"queries": draw.weight(width), "keys": draw.weight(width), "values": None}
    product = draw.states(rows, sum(kv_heads * groups[name] * width for name in parts.split()))
    angle = torch.rand(9, width // 2, generator=draw.generator) * 6
    slot = torch.randperm(8, generator=draw.generator)[:rows]  # of 2 sequences
    rope = Rope(angle.cos(), angle.sin(), torch.randint(0, 9, (rows,), generator=draw.generator))

    def written(kernels: Kernels, rope: Rope | None) -> torch.Tensor:
        heads = {}
        for name in parts.split():
            buffer = torch.zeros(2, kv_heads, slots[name], groups[name], width)
            heads[name] = Heads(buffer, slot // 4 * slots[name] + slot % 4, weights[name])
        given = {name: heads.get(name) for name in ("queries", "keys", "values")}
        kernels.split_heads(product, **given, rope=rope, eps=1e-6)
        return torch.cat([each.out.flatten() for each in heads.values()])

    assert written(SLOW, None).any()
    assert_alike(written(triton, None), written(SLOW, None))
    assert_alike(written(triton, rope), written(SLOW, rope))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(
    ("sequences", "kv_heads", "queries", "group", "keys", "width"),
    # blocks of 16 and of 128 rows; keys of one block and of three, and no whole number of them
    [(1, 1, 1, 4, 1, 32), (2, 2, 5, 2, 70, 16), (1, 1, 70, 2, 40, 6)],
)
def test_attention_equals_torchs(
    triton: Kernels, dtype: torch.dtype, sequences: int, kv_heads: int, queries: int, group: int, keys: int, width: int
):
    draw = draws("float32")
    query = (draw.states(sequences, kv_heads, queries * group, width) / 3).to(dtype)
    key, value = ((draw.states(sequences, kv_heads, keys, width) / 3).to(dtype) for _ in range(2))
    spans = random_spans(sequences, queries, keys, draw.generator)
    seen = SLOW.visible(spans, keys, group)
    exact = SLOW.attend(query.float(), key.float(), value.float(), seen)
    within = 1e-5 if dtype == torch.float32 else 4e-3  # weights are rounded to float16, as are results
    torch.testing.assert_close(triton.attend(query, key, value, spans).float(), exact, rtol=within, atol=within)


def test_keys_that_no_row_of_a_block_sees_are_never_read(triton: Kernels):
    query, key, value = (
        torch.ones(1, 1, 2, 4),
        torch.full((1, 1, 96, 4), torch.nan),
        torch.full((1, 1, 96, 4), torch.nan),
    )
    key[:, :, 64:], value[:, :, 64:] = 1.0, 3.0
    # a block of keys is 32 slots: it begins where the first row's span does
    out = triton.attend(query, key, value, torch.tensor([[[64, 70, 0, 0], [70, 96, 0, 0]]], dtype=torch.int32))
    assert (out == 3.0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
def test_loading_cached_keys_and_values_equals_torchs(triton: Kernels, dtype: torch.dtype):
    draw = draws("float32")
    cached = [make_prefix_kv((1, 2), pooled, draw.states(3, 2, 2, 2 + pooled, 6), dtype) for pooled in (1, 40, 3)]
    ours, theirs = (torch.full((2, 3, 2, 44, 6), 7.0) for _ in range(2))
    triton.load_kv(cached, triton.locate(cached), 2, ours)
    SLOW.load_kv(cached, (), 2, theirs)
    assert torch.equal(ours, theirs)


def test_what_is_int8_is_computed_as_torchs(triton: Kernels):
    x, weight = draws("float32").states(2, 16), torch.ones(16)
    ours, theirs = (each.norm(x, weight, 1e-6, quantized=True) for each in (triton, SLOW))
    assert isinstance(ours, Quantized)
    assert_alike(ours, theirs)


def test_states_and_margins_are_those_of_the_torch_kernels(triton: Kernels, mini: Checkpoint):
    def results(kernels: Kernels) -> list[torch.Tensor]:
        def shortened(stack: Stack) -> Stack:
            return replace(stack, kernels=kernels, layers=stack.layers[1:3])  # one with a window, one without

        states = PassageEncoder(shortened(load_encoder(mini, CPU, torch.float32).stack))(torch.arange(5, 10), [3, 2])
        decoder = load_decoder(mini, (7, 8), CPU, torch.float32)
        decoder = replace(decoder, stack=shortened(decoder.stack))
        cached = decoder.prefill((5, 6), states, [3, 2], torch.float32)
        margins = decoder.margins(Prompts([[5, 6, 7]], [0, 0]), states, [3, 2])
        return [states, margins, decoder.margins_after(Prompts([[7]], [0, 0]), cached)]

    ours, theirs = results(triton), results(SLOW)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours[2], ours[1], rtol=1e-4, atol=1e-4)  # from cached prefixes, too


@pytest.mark.parametrize("dtype", ["bfloat16", pytest.param("float32", marks=pytest.mark.slow)])
def test_every_kernel_compiles_for_an_h100_without_spills(dtype: str):
    pytest.importorskip("triton")
    compiled = subprocess.run(
        [sys.executable, "-m", "tests.model.kernels.ahead", dtype],
        env=os.environ | {"TRITON_INTERPRET": "0"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert compiled.returncode == 0, compiled.stderr[-2000:]
    usage = json.loads(compiled.stdout)
    assert {name.split()[0] for name in usage} == {"norm", "add_norm", "gated_gelu", "split_heads", "load_kv", "attend"}
    assert {name: kernel["stack"] for name, kernel in usage.items() if kernel["stack"]} == {}
    assert all(kernel["shared"] <= SHARED_BYTES for kernel in usage.values())


@pytest.fixture
def untried() -> Iterator[None]:
    """What is found out about a device is kept for the process."""
    triton_kernels.cache_clear()
    yield
    triton_kernels.cache_clear()


@pytest.mark.usefixtures("untried")
def test_on_a_cpu_they_are_for_tritons_interpreter_alone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    assert triton_kernels(CPU, torch.float32) is None
    assert "Triton kernels need a GPU" in caplog.text


@pytest.mark.usefixtures("untried")
def test_where_triton_is_not_installed_there_are_none(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setitem(sys.modules, "kalm_cache.model.kernels.triton.kernels", None)
    assert triton_kernels(CPU, torch.float32) is None
    assert "no Triton kernels" in caplog.text


@pytest.mark.usefixtures("untried")
def test_kernels_that_compute_something_else_are_not_taken(
    triton: Kernels, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    assert triton_kernels(CPU, torch.float32).name == "triton"
    triton_kernels.cache_clear()
    monkeypatch.setattr(type(triton), "norm", lambda self, x, *_, **__: x)
    assert triton_kernels(CPU, torch.float32) is None
    assert "the Triton kernels cannot be used" in caplog.text
