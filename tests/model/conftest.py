from __future__ import annotations

import pytest

from kalm_cache.model.kernels import Kernels
from kalm_cache.model.kernels.native import NativeKernels, native_library
from kalm_cache.model.kernels.torch_kernels import TorchKernels


@pytest.fixture(scope="session")
def native() -> NativeKernels:
    library = native_library()
    if library is None:
        pytest.skip("no C++ compiler here")
    return NativeKernels(library)


@pytest.fixture(params=["native", "torch"])
def kernels(request: pytest.FixtureRequest) -> Kernels:
    """Either kernels: what holds for one must hold for the other."""
    return request.getfixturevalue("native") if request.param == "native" else TorchKernels()
