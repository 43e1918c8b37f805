import pytest
import torch

from kalm_cache.errors import UsageError
from kalm_cache.model import precision
from kalm_cache.model.precision import (
    dtype_name,
    has_native_bfloat16,  # itself: tests/conftest.py replaces the module's while tests run
    resolve_device,
    resolve_dtype,
    stream_dtype,
)

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize("dtype", [None, "auto"])
@pytest.mark.parametrize(("native", "expected"), [(True, torch.bfloat16), (False, torch.float32)])
def test_auto_is_bfloat16_on_cuda_and_on_cpus_that_multiply_it_natively(
    monkeypatch: pytest.MonkeyPatch, dtype: str | None, native: bool, expected: torch.dtype
):
    monkeypatch.setattr(precision, "has_native_bfloat16", lambda: native)
    assert resolve_dtype(dtype, CPU) == expected
    assert resolve_dtype(dtype, CUDA) == torch.bfloat16


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({"amx_bf16": True}, True),
        ({"amx_bf16": False, "avx512_bf16": True}, True),
        ({"amx_bf16": False, "avx512_bf16": False, "avx512_vnni": True}, False),
        ({}, False),
    ],
)
def test_native_bfloat16_is_amx_or_avx512_bf16(
    monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, bool], expected: bool
):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert has_native_bfloat16() is expected


def test_a_torch_that_does_not_tell_what_the_cpu_has_counts_as_without(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert has_native_bfloat16() is False


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("float32", torch.float32),
        ("fp32", torch.float32),
        ("bf16", torch.bfloat16),
        ("bfloat16", torch.bfloat16),
        ("fp16", torch.float16),
        ("float16", torch.float16),
        ("int8", torch.int8),
        (torch.bfloat16, torch.bfloat16),
        (torch.int8, torch.int8),
    ],
)
def test_dtype_names_are_known(name: str | torch.dtype, dtype: torch.dtype):
    assert resolve_dtype(name, CPU) == dtype


@pytest.mark.parametrize("dtype", ["int4", "", "float64", torch.float64])
def test_an_unknown_dtype_is_refused(dtype: str | torch.dtype):
    with pytest.raises(UsageError, match="is not known: use auto, float32"):
        resolve_dtype(dtype, CPU)


def test_int8_is_refused_on_cuda():
    with pytest.raises(UsageError, match="int8 is for CPUs, the device is cuda: give --device cpu"):
        resolve_dtype("int8", CUDA)


def test_dtype_names_are_long():
    assert dtype_name(resolve_dtype("bf16", CPU)) == "bfloat16"


def test_states_are_in_the_dtype_of_the_run_and_in_float32_in_an_int8_run():
    assert stream_dtype(torch.int8) == torch.float32
    assert stream_dtype(torch.bfloat16) == torch.bfloat16


def test_an_unknown_device_is_refused():
    with pytest.raises(UsageError, match="'gpu' is not one that torch knows"):
        resolve_device("gpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_without_cuda_the_device_is_the_cpu_and_cuda_is_refused():
    assert resolve_device(None) == resolve_device("auto") == resolve_device(CPU) == CPU
    with pytest.raises(UsageError, match="torch sees no CUDA here"):
        resolve_device("cuda:0")


def test_a_cuda_device_beyond_the_last_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(UsageError, match="'cuda:9' was asked for, but the last one that torch sees here is cuda:1"):
        resolve_device("cuda:9")


@pytest.mark.parametrize("device", ["mps", "xpu:0", "meta"])
def test_a_device_on_which_the_runtime_was_never_run_is_refused_in_words(device: str):
    with pytest.raises(UsageError, match=f"'{device}' is neither a CPU nor CUDA, and nothing else is supported"):
        resolve_device(device)


def test_no_test_depends_on_what_this_cpu_multiplies_natively():
    assert resolve_dtype(None, CPU) == torch.float32
