from __future__ import annotations

import os

import pytest

from kalm_cache.model.kernels import Kernels
from kalm_cache.model.kernels.torch_kernels import TorchKernels


@pytest.fixture(scope="session")
def triton() -> Kernels:
    """In Triton's interpreter: slow, and the same numbers."""
    pytest.importorskip("triton", reason="Triton is not installed")
    if os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("a GPU is here: tests/model/test_cuda.py runs what Triton compiles for it")
    from kalm_cache.model.kernels.triton.kernels import TritonKernels

    return TritonKernels()


@pytest.fixture(params=["native", "torch", "triton"])
def kernels(request: pytest.FixtureRequest) -> Kernels:
    """Any kernels: what holds for one must hold for the others."""
    return TorchKernels() if request.param == "torch" else request.getfixturevalue(request.param)
