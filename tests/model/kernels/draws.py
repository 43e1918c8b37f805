"""Seeded random input for kernels, and how alike their results must be."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kalm_cache.model.kernels.activations import Accumulated, Activation, Product, Quantized


@dataclass(frozen=True)
class Draw:
    """Seeded random input for one kind of run."""

    run: str
    generator: torch.Generator

    @property
    def stream(self) -> torch.dtype:
        return torch.bfloat16 if self.run == "bfloat16" else torch.float32

    @property
    def quantized(self) -> bool:
        return self.run == "int8"

    def states(self, *shape: int) -> Tensor:
        return (torch.randn(shape, generator=self.generator) * 3).to(self.stream)

    def weight(self, width: int) -> Tensor:
        return 1 + 0.3 * torch.randn(width, generator=self.generator)

    def product(self, rows: int, columns: int) -> Product:
        if not self.quantized:
            return self.states(rows, columns)
        values = torch.randint(-50_000, 50_000, (rows, columns), generator=self.generator, dtype=torch.int32)
        scales = (torch.rand(size, generator=self.generator) * 0.02 for size in (rows, columns))
        return Accumulated(values, *scales)


def draws(run: str) -> Draw:
    return Draw(run, torch.Generator().manual_seed(0))


def assert_alike(ours: Activation, theirs: Activation) -> None:
    """Float32 to 1e-5, bfloat16 to one unit in the last place (rarely two), int8 to one step at equal scales."""
    if isinstance(ours, Quantized):
        assert isinstance(theirs, Quantized)
        torch.testing.assert_close(ours.scale, theirs.scale, rtol=1e-5, atol=1e-9)
        assert int((ours.values.int() - theirs.values.int()).abs().max()) <= 1
        return
    assert isinstance(theirs, Tensor)
    assert ours.dtype == theirs.dtype
    tolerance = 1e-5 if ours.dtype == torch.float32 else 2**-7
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance if ours.dtype == torch.float32 else 1e-3)


def random_spans(sequences: int, queries: int, keys: int, generator: torch.Generator) -> Tensor:
    """Two spans each, the first before the second; the second may be empty, the first not."""
    bounds = torch.randint(0, keys + 1, (sequences, queries, 4), generator=generator).sort(-1).values
    bounds[..., 0] = (bounds[..., 1] - 1).clamp(min=0)
    bounds[..., 1] = bounds[..., 0] + 1
    bounds[..., 2:] = bounds[..., 2:].clamp(min=bounds[..., 1:2])
    return bounds.to(torch.int32).contiguous()
