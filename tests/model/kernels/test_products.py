"""int8 products of every instruction set that this processor has, against whole numbers."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from torch import Tensor

from kalm_cache.model.kernels import compile as compiling
from kalm_cache.model.kernels.native import NativeKernels
from kalm_cache.model.precision import cpu_capabilities

SOURCE = Path(__file__).with_name("products.cpp")
NEEDS = {  # -march, what the processor must have, and what `Lanes` takes then
    "native": (None, None),
    "sapphirerapids": ("amx_int8", "AMX"),
    "cascadelake": ("avx512_vnni", "AVX-512 VNNI"),
    "alderlake": ("avx_vnni", "AVX-VNNI"),
    "x86-64-v3": ("avx2", "AVX2"),
    "x86-64-v2": ("sse4_2", "plain"),
}


@pytest.fixture(params=NEEDS, scope="module")
def products(request: pytest.FixtureRequest) -> NativeKernels:
    needed, instructions = NEEDS[request.param]
    if needed and not cpu_capabilities().get(needed):
        pytest.skip(f"this processor has no {needed}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(compiling.MARCH, request.param)
        library = compiling.compiled_library.__wrapped__(SOURCE)
    if library is None:
        pytest.skip("no C++ compiler here")
    kernels = NativeKernels(library)
    assert instructions in (None, kernels.int8_instructions)
    return kernels


def draw(rows: int, width: int, seed: int) -> Tensor:
    """Random int8 of the whole range that is used, a third of it at either end: sums of pairs saturate in 16 bits."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(-127, 128, (rows, width), generator=generator)
    extreme = torch.randint(0, 6, (rows, width), generator=generator)
    return values.where(extreme > 1, 127 - 254 * extreme).to(torch.int8)


def product(kernels: NativeKernels, x: Tensor, weight: Tensor) -> Tensor:
    out = torch.full((len(x), len(weight)), 7, dtype=torch.int32)
    kernels.multiply_int8(x, weight, out)
    return out


@pytest.mark.parametrize("rows", [0, 1, 2, 3, 17, 64])
@pytest.mark.parametrize(
    ("outputs", "width"), [(1, 1), (4, 16), (5, 31), (3, 33), (9, 640), (257, 64), (48, 128), (6, 10_241)]
)
def test_products_of_any_size_equal_whole_numbers_multiplied(
    products: NativeKernels, rows: int, outputs: int, width: int
):
    x, weight = draw(rows, width, 1), draw(outputs, width, 2)
    assert torch.equal(product(products, x, weight).long(), x.long() @ weight.long().t())


def test_rows_of_several_tasks_equal_whole_numbers_multiplied(products: NativeKernels):
    x, weight = draw(301, 640, 1), draw(300, 640, 2)  # of 160 KiB of rows, and 256 outputs
    assert torch.equal(product(products, x, weight).long(), x.long() @ weight.long().t())


def test_rows_and_outputs_need_no_alignment(products: NativeKernels):
    x, weight = draw(12, 33, 1)[1:], draw(8, 33, 2)[3:]  # contiguous, and begin at odd addresses
    assert x.data_ptr() % 2 == weight.data_ptr() % 2 == 1
    assert torch.equal(product(products, x, weight).long(), x.long() @ weight.long().t())


def test_nothing_is_written_beside_the_product(products: NativeKernels):
    x, weight = draw(5, 70, 1), draw(7, 70, 2)
    held = torch.full((9, 7), 7, dtype=torch.int32)
    products.multiply_int8(x, weight, held[2:7])
    assert (held[:2] == 7).all()
    assert (held[7:] == 7).all()
    assert torch.equal(held[2:7].long(), x.long() @ weight.long().t())


def test_any_number_of_threads_gives_the_same_product(products: NativeKernels):
    x, weight, before = draw(150, 1030, 1), draw(515, 1030, 2), torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(product(products, x, weight))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_torchs_products_by_tiles_are_the_same_between_native_ones(products: NativeKernels):
    # both set the tiles of the thread up, each for its own shapes
    x, weight = draw(40, 192, 1), draw(24, 192, 2)
    before = torch.mm(x.bfloat16(), weight.t().bfloat16())
    for _ in range(2):
        assert torch.equal(product(products, x, weight).long(), x.long() @ weight.long().t())
        assert torch.equal(torch.mm(x.bfloat16(), weight.t().bfloat16()), before)


def test_the_kernel_that_this_processor_cannot_run_compiles_without_a_warning(tmp_path: Path):
    compiler = shutil.which("g++")
    if compiler is None or cpu_capabilities().get("architecture") != "x86_64":
        pytest.skip("no g++ here, or it compiles for another architecture")
    command = [compiler, *compiling.FLAGS, "-march=alderlake", f"-I{compiling.SOURCE.parent}", "-Wall", "-Wextra"]
    done = subprocess.run(
        [*command, "-c", str(SOURCE), "-o", str(tmp_path / "products.o")], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
