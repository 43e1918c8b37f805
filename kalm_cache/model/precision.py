"""Device and precision of a run, from the settings and what the machine has. Knows nothing of models."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from kalm_cache.errors import UsageError

DTYPES = {
    "float32": torch.float32,
    "fp32": torch.float32,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
    "float16": torch.float16,
    "fp16": torch.float16,
    "int8": torch.int8,
}
CPU_FLAGS = ("amx_bf16", "amx_int8", "avx512_bf16", "avx512_vnni", "avx_vnni", "avx2")  # what decides between dtypes


def resolve_device(device: str | torch.device | None) -> torch.device:
    """`None` or `auto`: CUDA when there is one, else the CPU.

    Raises:
        UsageError: torch does not know the device, does not see it here, or it is neither a CPU nor CUDA.
    """
    if device is None or str(device) == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    resolved = named_device(device)
    if resolved.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"device {device!r} was asked for, but torch sees no CUDA here; use auto or cpu")
    if resolved.type == "cuda" and (resolved.index or 0) >= torch.cuda.device_count():
        last = torch.cuda.device_count() - 1
        raise UsageError(f"device {device!r} was asked for, but the last one that torch sees here is cuda:{last}")
    if resolved.type not in ("cpu", "cuda"):
        raise UsageError(f"device {device!r} is neither a CPU nor CUDA, and nothing else is supported; use auto or cpu")
    return resolved


def named_device(device: str | torch.device) -> torch.device:
    """The device of that name, whether or not it is here. Raises `UsageError` for one that torch does not know."""
    try:
        return torch.device(device)
    except RuntimeError as exc:
        raise UsageError(f"device {device!r} is not one that torch knows: use auto, cpu, cuda or cuda:N") from exc


def resolve_dtype(dtype: str | torch.dtype | None, device: torch.device) -> torch.dtype:
    """What to compute in. `None` or `auto`: bfloat16 where the device multiplies it natively, else float32.

    Raises:
        UsageError: a name that is not known, or int8 on a device other than a CPU.
    """
    if dtype is None or dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" or has_native_bfloat16() else torch.float32
    resolved = dtype if isinstance(dtype, torch.dtype) else DTYPES.get(dtype)
    if resolved is None or resolved not in DTYPES.values():
        raise UsageError(f"dtype {dtype!r} is not known: use auto, {', '.join(DTYPES)}")
    if resolved == torch.int8 and device.type != "cpu":
        raise UsageError(
            f"dtype int8 is for CPUs, the device is {device}: give --device cpu, as an index that was built in int8 "
            "takes nothing else, or for a new one another dtype"
        )
    return resolved


def has_native_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 in hardware (AMX, AVX-512 BF16); elsewhere float32 is the faster one."""
    capabilities = cpu_capabilities()
    return bool(capabilities.get("amx_bf16", False) or capabilities.get("avx512_bf16", False))


@functools.cache
def lacks_bfloat16() -> bool:
    """Whether torch multiplies bfloat16 number by number on this CPU: several times slower than float32.

    oneDNN has bfloat16 from AVX-512 on, whether or not the processor multiplies it.
    """
    return not (torch._C._has_mkldnn and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def widen(x: Tensor) -> Tensor:
    """What products of `x` are computed in: float32 for bfloat16 on a CPU that lacks it, else `x` itself."""
    return x.float() if x.dtype == torch.bfloat16 and x.device.type == "cpu" and lacks_bfloat16() else x


def cpu_capabilities() -> dict[str, object]:
    """What torch knows of this CPU, by name: flags, sizes, `architecture`. Empty with a torch that does not tell."""
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return capabilities


def describe_device(device: torch.device) -> str:
    """The GPU's name, or what of a CPU decides between dtypes."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    capabilities = cpu_capabilities()
    return f"a CPU with {', '.join(flag for flag in CPU_FLAGS if capabilities.get(flag)) or 'none of its extensions'}"


def synchronise(device: torch.device) -> None:
    """Wait until the device has computed all that it was asked for: before a clock is read."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def dtype_name(dtype: torch.dtype) -> str:
    """The dtype's long name without `torch.`, as manifests and messages show it."""
    return str(dtype).removeprefix("torch.")


def stream_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of states during a run: the run's, but float32 in an int8 run, where only products are int8."""
    return torch.float32 if dtype == torch.int8 else dtype
