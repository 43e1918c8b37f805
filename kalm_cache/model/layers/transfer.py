"""Tensors of a batch to the device, all in one copy: each copy of its own costs a launch, and where its memory is not
pinned the GPU waits for the CPU.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

ALIGNMENT = 16  # bytes: kernels load so many at once


def move_together(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """The same tensors on a device. Those that are there already stay as they are; on a CPU, that is all of them."""
    to_move = [tensor for tensor in tensors if tensor.device != device]
    if not to_move:
        return list(tensors)
    # pinned: the copy is queued, and the CPU goes on. The allocator of pinned memory keeps it until the copy is done
    packed = pack(to_move, pinned=device.type == "cuda")
    moved = iter(unpack(packed.to(device, non_blocking=True), to_move))
    return [tensor if tensor.device == device else next(moved) for tensor in tensors]


def pack(tensors: Sequence[Tensor], *, pinned: bool = False) -> Tensor:
    """The bytes of tensors, on the CPU: (n,) uint8."""
    packed = torch.empty(sum(map(_size, tensors)), dtype=torch.uint8, pin_memory=pinned)
    for tensor, place in zip(tensors, unpack(packed, tensors), strict=True):
        place.copy_(tensor)
    return packed


def unpack(packed: Tensor, templates: Sequence[Tensor]) -> list[Tensor]:
    """Packed bytes as tensors with the templates' dtypes and shapes; views."""
    parts = packed.split([_size(template) for template in templates])
    return [
        part[: template.nbytes].view(template.dtype).view(template.shape)
        for part, template in zip(parts, templates, strict=True)
    ]


def _size(tensor: Tensor) -> int:
    return -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT
