"""The dtype of a run, and whether this machine really is fast in it: some 50 ms of matrix products."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import torch

from kalm_cache.doctor.check import Check, verdict
from kalm_cache.model.layers.int8 import multiply_int8
from kalm_cache.model.precision import dtype_name, resolve_device, resolve_dtype

ROWS, WIDTH, OUTPUTS = 512, 640, 1536  # the shape of a small decoder's products
MEASURED_S = 0.012  # for each dtype
FASTER = 1.3  # times another dtype must be faster to be worth a word
CPU_FLAGS = ("amx_bf16", "amx_int8", "avx512_bf16", "avx512_vnni")


def check_dtype(device: str, dtype: str) -> Check:
    """What `device` and `dtype` resolve to, and measured speeds. Raises `UsageError` for what is not known."""
    place = resolve_device(device)
    chosen = resolve_dtype(dtype, place)
    speeds = {one: gflops(one, place) for one in _measured(place)}
    shown = ", ".join(f"{dtype_name(one)} {speed:,.0f}" for one, speed in speeds.items())
    found = f"dtype {dtype} is {dtype_name(chosen)} on {_described(place)}; GFLOP/s: {shown}"
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    found += f" (beside other work: load {load:.1f} on {cores} cores)" if load > cores else ""
    exact = {one: speed for one, speed in speeds.items() if one != torch.int8}  # int8 moves margins: never advised
    best = max(exact, key=exact.__getitem__)
    warn = []
    if chosen in speeds and exact[best] > FASTER * speeds[chosen]:
        times = exact[best] / speeds[chosen]
        warn.append(f"{dtype_name(best)} is {times:.1f} times as fast here: set dtype {dtype_name(best)}")
    return verdict("dtype", found, warn=warn)


def gflops(dtype: torch.dtype, device: torch.device) -> float:
    """Billions of operations a second of one matrix product in a dtype: the best of what fits into the time."""
    if dtype == torch.int8:
        x, weight = (torch.ones(rows, WIDTH, dtype=dtype) for rows in (ROWS, OUTPUTS))
        call: Callable[[], object] = lambda: multiply_int8(x, weight)  # noqa: E731
    else:
        x, weight = (torch.ones(rows, WIDTH, dtype=dtype, device=device) for rows in (ROWS, OUTPUTS))
        call = lambda: torch.mm(x, weight.t())  # noqa: E731
    _timed(call, device)  # the first call sets up
    best, spent = float("inf"), 0.0
    while spent < MEASURED_S:
        seconds = _timed(call, device)
        best, spent = min(best, seconds), spent + seconds
    return 2 * ROWS * WIDTH * OUTPUTS / best / 1e9


def _timed(call: Callable[[], object], device: torch.device) -> float:
    began = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def _measured(device: torch.device) -> list[torch.dtype]:
    return [torch.float32, torch.bfloat16, *([torch.int8] if device.type == "cpu" else [])]


def _described(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    capabilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()  # not in older torch
    return f"a CPU with {', '.join(flag for flag in CPU_FLAGS if capabilities.get(flag)) or 'none of its extensions'}"
