"""Every Triton kernel compiled for an H100, without one: `python -m tests.model.kernels.ahead DTYPE`.

A driver poses as that of an H100, and `TritonKernels` is called with tensors of Nano's shape: what is compiled is what
would be launched. Nothing is launched. Prints a JSON object: kernel -> its registers, bytes of stack (spills) and of
shared memory. Knows no test, and wants a process without TRITON_INTERPRET.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from kalm_cache.model.kernels.heads import Heads, Rope
from kalm_cache.model.kernels.prefix_kv import make_prefix_kv
from kalm_cache.model.kernels.triton.kernels import TritonKernels

H100 = GPUTarget("cuda", 90, 32)
D, I, K, G, E = 640, 2048, 1, 4, 256  # noqa: E741  Nano's widths
ROWS, SEQUENCES, TOKENS = 40, 2, 20


class PosingDriver:
    """What Triton asks of a GPU's driver before it compiles."""

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return H100


def usage(cubin: bytes) -> dict[str, int]:
    """Registers and bytes of stack, of one compiled kernel."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        said = subprocess.run([tool, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True)
    registers, stack = re.search(r"REG:(\d+) STACK:(\d+)", said.stdout).groups()  # type: ignore[union-attr]
    return {"registers": int(registers), "stack": int(stack)}


def compile_all(dtype: torch.dtype) -> dict[str, dict[str, int]]:
    """Call each of the kernels once."""
    compiled: dict[str, dict[str, int]] = {}
    run = JITFunction.run

    def compile_only(self: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        kernel = run(self, *args, grid=grid, warmup=True, **kwargs)
        name = f"{self.__name__} {kwargs.get('BLOCK_ROWS', '')}".strip()
        compiled[name] = usage(kernel.asm["cubin"]) | {"shared": kernel.metadata.shared}
        return kernel

    JITFunction.run = compile_only
    kernels, x, weight = TritonKernels(), torch.zeros(ROWS, D, dtype=dtype), torch.ones(D)
    kernels.norm(x, weight, 1e-6, quantized=False)
    kernels.add_norm(x, x, weight, weight, 1e-6, quantized=False)
    kernels.gated_gelu(torch.zeros(ROWS, 2 * I, dtype=dtype), dtype, quantized=False)
    slot, head = torch.arange(ROWS), torch.ones(E)
    query = torch.zeros(SEQUENCES, K, TOKENS, G, E, dtype=dtype)
    both = torch.zeros(2, SEQUENCES, K, TOKENS, 1, E, dtype=dtype)
    kernels.split_heads(
        torch.zeros(ROWS, (G + 2) * K * E, dtype=dtype),
        queries=Heads(query, slot, head),
        keys=Heads(both[0], slot, head),
        values=Heads(both[1], slot),
        rope=Rope(torch.ones(64, E // 2), torch.zeros(64, E // 2), slot),
        eps=1e-6,
    )
    for cached in {dtype, torch.int8}:
        entry = make_prefix_kv((1,), 3, torch.ones(2, 2, K, 4, E), cached)
        kernels.load_kv([entry] * SEQUENCES, kernels.locate([entry] * SEQUENCES), 1, both.squeeze(-2))
    spans = torch.zeros(SEQUENCES, TOKENS, 4, dtype=torch.int32)
    keys, values = both.squeeze(-2)
    for tokens in (TOKENS, 1):  # of an answer, one
        some = query[:, :, :tokens].flatten(2, 3).expand(-1, -1, -1, -1).contiguous()
        longer = some.repeat_interleave(8, 2) if tokens > 1 else some
        kernels.attend(longer, keys, values, spans.repeat_interleave(8, 1) if tokens > 1 else spans[:, :1].contiguous())
    return compiled


if __name__ == "__main__":
    triton.runtime.driver.set_active(PosingDriver())
    print(json.dumps(compile_all(getattr(torch, sys.argv[1]))))
