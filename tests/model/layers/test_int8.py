"""Which way multiplies int8, whether it is exact, and where int8 is refused."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from kalm_cache.errors import UsageError
from kalm_cache.model.checkpoint import open_checkpoint
from kalm_cache.model.kernels.native import NativeKernels
from kalm_cache.model.kernels.torch_kernels import TorchKernels
from kalm_cache.model.layers import int8
from kalm_cache.model.layers.int8 import TORCH, Int8Products, int8_products, multiply_int8, require_fast_int8
from kalm_cache.scoring.query_side import load_query_side

SLOW = Int8Products("float32", int8._in_float32, "there is no compiler")
VNNI = {"architecture": "x86_64", "avx512_f": True, "avx512_vnni": True}


@pytest.fixture(params=["as it is", "native", "float32"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Products as this processor makes them, natively, and as one with nothing does."""
    if request.param == "native":
        native = request.getfixturevalue("native")
        monkeypatch.setattr(int8, "int8_products", lambda: Int8Products("native", native.multiply_int8))
    if request.param == "float32":
        monkeypatch.setattr(int8, "int8_products", lambda: SLOW)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("width", [64, 1024, 1025, 10_240])
def test_the_largest_int8_products_are_exact(width: int):
    x, weight = torch.full((17, width), 127, dtype=torch.int8), torch.full((5, width), -127, dtype=torch.int8)
    weight[:, ::7] = 126
    expected = (x.long() @ weight.long().T).to(torch.int32)
    out = torch.empty(17, 5, dtype=torch.int32)
    assert torch.equal(multiply_int8(x, weight), expected)
    assert torch.equal(multiply_int8(x, weight, out), expected)
    assert torch.equal(out, expected)


@pytest.mark.parametrize(
    ("capabilities", "exact", "instructions", "name", "problem"),
    [
        (VNNI, True, "AVX-512 VNNI", "oneDNN", ""),
        (VNNI, False, "AVX2", "native, AVX2", ""),  # oneDNN and the compiler were told to do without
        (VNNI | {"amx_int8": True}, True, "AMX", "native, AMX", ""),
        (VNNI | {"amx_int8": True}, True, None, "oneDNN", ""),
        (VNNI, True, None, "oneDNN", ""),
        ({"avx2": True}, True, "AVX2", "native, AVX2", ""),
        ({"avx2": True, "avx_vnni": True}, True, "AVX-VNNI", "native, AVX-VNNI", ""),
        ({"avx2": True}, True, None, "float32", "the native kernels and a C++ compiler"),
        ({"avx2": True, "avx512_f": True}, True, "AVX2", "native, AVX2", "AVX-512 without VNNI"),
        ({"sse4_2": True}, True, "plain", "native, plain", "neither AVX2 nor VNNI"),
        ({}, True, "dot product", "native, dot product", ""),
    ],
)
def test_native_products_are_taken_with_amx_then_torchs_where_they_are_fast_and_exact_and_else_native_ones(
    monkeypatch: pytest.MonkeyPatch,
    native: NativeKernels,
    capabilities: dict[str, object],
    exact: bool,
    instructions: str | None,
    name: str,
    problem: str,
):
    largest = 127 * 127 * 64 if exact else 32767
    monkeypatch.setattr(int8, "cpu_capabilities", lambda: {"avx512_f": False, "avx512_vnni": False} | capabilities)
    monkeypatch.setattr(torch, "_int_mm", lambda x, weight: torch.full((32, 32), largest))
    monkeypatch.setattr(int8, "choose_kernels", lambda device, dtype: native if instructions else TorchKernels())
    monkeypatch.setattr(NativeKernels, "int8_instructions", instructions)
    products = int8_products.__wrapped__()
    assert products.name == name
    assert problem in products.problem
    assert bool(products.problem) is bool(problem)


def test_int8_that_is_slower_than_float32_is_refused_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, mini_folder: Path
):
    monkeypatch.setattr(int8, "int8_products", lambda: SLOW)
    monkeypatch.delenv("KALM_CACHE_KERNELS", raising=False)
    with pytest.raises(UsageError, match=r"int8 is slower than float32 here: there is no compiler; take dtype float32"):
        load_query_side(
            open_checkpoint(str(mini_folder)), device=torch.device("cpu"), dtype=torch.int8, query_max_length=64
        )


def test_plain_kernels_that_were_asked_for_compute_int8_with_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(int8, "int8_products", lambda: SLOW)
    monkeypatch.setenv("KALM_CACHE_KERNELS", "torch")
    with caplog.at_level(logging.WARNING, logger="kalm_cache"):
        require_fast_int8()
    assert [record.getMessage() for record in caplog.records] == [
        "dtype int8 is slower than float32 here: there is no compiler"
    ]


def test_fast_int8_is_neither_refused_nor_warned_of(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    monkeypatch.setattr(int8, "int8_products", lambda: TORCH)
    require_fast_int8()
    assert caplog.records == []
