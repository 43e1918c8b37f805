"""Scores of pairs → the numbers, arrays and tensors that `CrossEncoder.predict` returns. Knows no backend."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

from kalm_cache.adapters.candidates import ScoredCandidate
from kalm_cache.errors import UsageError

Activation = Callable[..., Any]


def activated(scored: Sequence[ScoredCandidate], activation: Activation | None, device: Any) -> Any:
    """Each pair's score: P(yes) as a list of floats, or what an activation makes of margins, a tensor (N,).

    Args:
        scored: pairs in their order.
        activation: gets the margins (N, 1), float32; `None` and `torch.nn.Sigmoid()` are P(yes), in float64.
        device: of the tensor that it gets; `None` = the CPU.

    Raises:
        UsageError: it gives something else than one score a pair.
    """
    if activation is None or _is_sigmoid(activation):
        return [pair.score for pair in scored]
    if not callable(activation):
        raise UsageError(f"activation_fn is {activation!r}; expected a function of a tensor of margins")
    import torch

    with torch.inference_mode():
        margins = torch.tensor([[pair.margin] for pair in scored], dtype=torch.float32, device=device)
        scores = activation(margins.reshape(-1, 1))
    scores = scores.squeeze(-1) if scores.ndim > 1 else scores
    if scores.shape != (len(scored),):
        raise UsageError(
            f"activation_fn makes {tuple(scores.shape)} of {len(scored)} margins; expected one score a pair"
        )
    return scores.float()


def converted(scores: Any, numpy: bool, tensor: bool, device: Any) -> Any:
    """Scores as a float32 tensor, else an array, else a list of tensors without dimensions, on `device`."""
    if numpy and not tensor:
        from numpy import asarray, float32

        return asarray(scores if isinstance(scores, list) else scores.cpu().numpy(), dtype=float32)
    import torch

    values = torch.tensor(scores, dtype=torch.float32, device=device) if isinstance(scores, list) else scores
    return values if tensor else list(values)


def _is_sigmoid(activation: Activation) -> bool:
    torch = sys.modules.get("torch")  # who gives one of its classes has imported it
    return torch is not None and type(activation) is torch.nn.Sigmoid
