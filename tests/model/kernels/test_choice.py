import pytest
import torch

from kalm_cache.errors import UsageError
from kalm_cache.model import kernels
from kalm_cache.model.kernels import choose_kernels
from kalm_cache.model.kernels.native import NativeKernels

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KALM_CACHE_KERNELS", raising=False)


@pytest.fixture
def no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "native_library", lambda: None)


@pytest.fixture
def no_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "triton_kernels", lambda device, dtype: None)


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("choice", [None, "auto", "native"])
def test_native_kernels_are_taken_where_they_can_be_compiled(monkeypatch: pytest.MonkeyPatch, choice: str | None):
    if choice:
        monkeypatch.setenv("KALM_CACHE_KERNELS", choice)
    assert [choose_kernels(CPU, dtype).name for dtype in (torch.float32, torch.bfloat16)] == ["native"] * 2


def test_torch_kernels_are_taken_for_float16():
    assert choose_kernels(CPU, torch.float16).name == "torch"


def test_on_cuda_tritons_are_taken_where_they_can_be_used_and_torchs_where_not(monkeypatch: pytest.MonkeyPatch):
    usable = NativeKernels.__new__(NativeKernels)  # any kernels
    for found, taken in ((usable, "native"), (None, "torch")):
        monkeypatch.setattr(kernels, "triton_kernels", lambda device, dtype, found=found: found)
        assert choose_kernels(torch.device("cuda"), torch.bfloat16).name == taken
    monkeypatch.setenv("KALM_CACHE_KERNELS", "torch")
    monkeypatch.setattr(kernels, "triton_kernels", lambda device, dtype: pytest.fail("tried"))
    assert choose_kernels(torch.device("cuda"), torch.bfloat16).name == "torch"


@pytest.mark.usefixtures("no_triton")
def test_asking_for_tritons_where_they_cannot_be_used_is_an_error(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("KALM_CACHE_KERNELS", "triton")
    with pytest.raises(UsageError, match="KALM_CACHE_KERNELS is triton, but its kernels cannot be used on cpu"):
        choose_kernels(CPU, torch.float32)


def test_asking_for_torch_compiles_nothing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("KALM_CACHE_KERNELS", "torch")
    monkeypatch.setattr(kernels, "native_library", lambda: pytest.fail("compiled"))
    assert choose_kernels(CPU, torch.float32).name == "torch"


@pytest.mark.usefixtures("no_library")
def test_without_a_library_torch_kernels_do():
    assert choose_kernels(CPU, torch.float32).name == "torch"


@pytest.mark.usefixtures("no_library")
def test_asking_for_native_without_a_compiler_is_an_error(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("KALM_CACHE_KERNELS", "native")
    with pytest.raises(UsageError, match=r"KALM_CACHE_KERNELS is native, .* is a C\+\+ compiler there\?"):
        choose_kernels(CPU, torch.float32)


def test_an_empty_variable_is_an_unset_one(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("KALM_CACHE_KERNELS", "")
    empty = choose_kernels(CPU, torch.float32)
    monkeypatch.delenv("KALM_CACHE_KERNELS")
    assert type(empty) is type(choose_kernels(CPU, torch.float32))


@pytest.mark.parametrize("word", ["cuda", "Native"])
def test_another_word_is_refused(monkeypatch: pytest.MonkeyPatch, word: str):
    monkeypatch.setenv("KALM_CACHE_KERNELS", word)
    with pytest.raises(UsageError, match=f"KALM_CACHE_KERNELS is '{word}'; it must be auto, native, torch or triton"):
        choose_kernels(CPU, torch.float32)
