"""The native kernels on ARM, which nobody here has: compiled for it, and int8 products run in an emulator."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from kalm_cache.model.kernels.compile import FLAGS, SOURCE

COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
PRODUCTS = Path(__file__).with_name("products_alone.cpp")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (shutil.which(COMPILER) and shutil.which(EMULATOR)),
        reason="needs qemu and a compiler for ARM (Debian: apt-get install qemu-user g++-aarch64-linux-gnu)",
    ),
]


def run(*command: object) -> tuple[str, str]:
    """What a command that succeeds writes to stdout and stderr."""
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, done.stderr


@pytest.mark.parametrize(("march", "instructions"), [("armv8-a", "plain"), ("armv8.2-a+dotprod", "dot product")])
def test_int8_products_on_arm_equal_whole_numbers_multiplied(march: str, instructions: str, tmp_path: Path) -> None:
    program = tmp_path / "products"
    run(COMPILER, *FLAGS, f"-march={march}", f"-I{SOURCE.parent}", "-static", PRODUCTS, "-o", program)
    assert run(EMULATOR, "-cpu", "max", program) == (f"{instructions}\n", "")


def test_all_kernels_compile_for_arm_without_a_warning(tmp_path: Path) -> None:
    command = (COMPILER, *FLAGS, "-march=armv8.2-a+dotprod", "-Wall", "-Wextra", "-c", SOURCE)
    assert run(*command, "-o", tmp_path / "kernels.o") == ("", "")
