"""Norms, rotations and gates with their gradients, each one pass over memory: compiled code on a processor.

Where there is no compiler, and on CUDA, the same in torch (`layers.py` asks `available`). The formulas are
T5Gemma2's: RMS norm scaled by 1 + weight, rotary embedding in the half-split layout, gelu_tanh(gate) · up.
"""

import ctypes
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kalm_cache.model.kernels.compile import compiled_library

SUFFIXES = {torch.float32: "f32", torch.bfloat16: "bf16"}
WIDEST = 1024  # fused.cpp keeps a row of this many numbers


def available(x: Tensor) -> bool:
    """Whether the compiled code takes such a tensor."""
    fits = x.device.type == "cpu" and x.dtype in SUFFIXES and x.shape[-1] <= WIDEST
    return fits and _library() is not None


def _library() -> ctypes.CDLL | None:
    return compiled_library(Path(__file__).with_name("fused.cpp"))


def _call(name: str, like: Tensor, *args: Tensor | int | float | None) -> None:
    converted = [
        ctypes.c_void_p(a.data_ptr())
        if isinstance(a, Tensor)
        else ctypes.c_float(a)
        if isinstance(a, float)
        else ctypes.c_int64(a)
        if isinstance(a, int)
        else ctypes.c_void_p(None)
        for a in args
    ]
    getattr(_library(), f"{name}_{SUFFIXES[like.dtype]}")(*converted)


class Norm(torch.autograd.Function):
    """`apply(x, weight, eps, residual)`: [residual +] x / rms(x) · (1 + weight); the weight is float32."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, residual: Tensor | None) -> Tensor:
        """(…, width) -> the same shape."""
        x, residual = x.contiguous(), None if residual is None else residual.contiguous()
        out, scale = torch.empty_like(x), torch.empty(x.shape[:-1])
        _call("norm_forward", x, x, weight, residual, eps, scale.numel(), x.shape[-1], out, scale)
        ctx.save_for_backward(x, weight, scale)
        ctx.added = residual is not None
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, Tensor | None]:  # type: ignore[override]
        """Gradients of x, weight and residual."""
        x, weight, scale = ctx.saved_tensors
        grad = grad.contiguous()
        into, of_weight = torch.empty_like(x), torch.zeros_like(weight)
        _call("norm_backward", x, grad, x, weight, scale, scale.numel(), x.shape[-1], into, of_weight)
        return into, of_weight, None, grad if ctx.added else None


class RotatedNorm(torch.autograd.Function):
    """`apply(x, weight, eps, cos, sin)`: norm of heads, then rotation by their token's angles.

    x (…, T, heads, E); cos, sin (T, E / 2) float32.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, cos: Tensor, sin: Tensor) -> Tensor:
        """The same shape as x."""
        x = x.contiguous()
        length, heads, width = x.shape[-3:]
        out, scale = torch.empty_like(x), torch.empty(x.shape[:-1])
        sizes = (scale.numel(), width, length, heads)
        _call("rotated_norm_forward", x, x, weight, cos, sin, eps, *sizes, out, scale)
        ctx.save_for_backward(x, weight, cos, sin, scale)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None, None]:  # type: ignore[override]
        """Gradients of x and weight."""
        x, weight, cos, sin, scale = ctx.saved_tensors
        grad = grad.contiguous()
        length, heads, width = x.shape[-3:]
        into, of_weight = torch.empty_like(x), torch.zeros_like(weight)
        sizes = (scale.numel(), width, length, heads)
        _call("rotated_norm_backward", x, grad, x, weight, cos, sin, scale, *sizes, into, of_weight)
        return into, of_weight, None, None, None


class GatedGelu(torch.autograd.Function):
    """`apply(gate, up)`: gelu_tanh(gate) · up."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        """The same shape as both."""
        gate, up = gate.contiguous(), up.contiguous()
        out = torch.empty_like(gate)
        _call("gated_gelu_forward", gate, gate, up, gate.numel(), out)
        ctx.save_for_backward(gate, up)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """Gradients of both."""
        gate, up = ctx.saved_tensors
        grad = grad.contiguous()
        of_gate, of_up = torch.empty_like(gate), torch.empty_like(up)
        _call("gated_gelu_backward", gate, grad, gate, up, gate.numel(), of_gate, of_up)
        return of_gate, of_up
