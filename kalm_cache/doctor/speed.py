"""How long a pair takes in each dtype: the decoder that would be served, for some seconds, all dtypes in turns."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

import torch

from kalm_cache.doctor.check import Report
from kalm_cache.doctor.index import model_name
from kalm_cache.errors import CheckpointError, UsageError
from kalm_cache.model.checkpoint import open_checkpoint
from kalm_cache.model.precision import dtype_name, resolve_device, resolve_dtype, synchronise
from kalm_cache.scoring.query_side import QuerySide, load_query_side
from kalm_cache.settings import Settings

FASTER = 1.1  # a dtype is advised from so many times the chosen dtype's speed on
DTYPES = (torch.float32, torch.bfloat16, torch.int8)


def check_speed(settings: Settings, index: Path | None, seconds: float) -> Report:
    """Milliseconds a pair in each dtype, and which to set. Pairs are of a bare prompt and 64 pooled states.

    Raises:
        UsageError: the device or the dtype is unknown.
    """
    device = resolve_device(settings.device)
    chosen = resolve_dtype(settings.dtype, device)
    try:
        sides, refused = _load(model_name(settings, index), device)
    except CheckpointError as exc:
        return Report(f"not measured: {exc}")
    times = measure(sides, seconds)
    shown = ", ".join(f"{dtype_name(dtype)} {ms:.3g}" for dtype, ms in times.items())
    advice = _advice(times, chosen)
    found = f"ms a pair: {shown}; dtype {settings.dtype} is {dtype_name(chosen)}{'' if advice else ', the one to use'}"
    return Report("; ".join([found, *refused]), warn=advice)


def measure(sides: Mapping[torch.dtype, QuerySide], seconds: float) -> dict[torch.dtype, float]:
    """The fastest batch of each dtype, in milliseconds a pair; dtypes take turns until the time is up, two at least."""
    best = dict.fromkeys(sides, float("inf"))
    end, turns = time.perf_counter() + seconds, 0
    while turns < 2 or time.perf_counter() < end:
        for dtype, side in sides.items():
            prompts, states = side.warm_up_pairs()
            synchronise(side.device)
            start = time.perf_counter()
            side.margins(prompts, states, len(prompts))
            synchronise(side.device)
            best[dtype] = min(best[dtype], 1e3 * (time.perf_counter() - start) / len(prompts))
        turns += 1
    return best


def _load(model: str, device: torch.device) -> tuple[dict[torch.dtype, QuerySide], list[str]]:
    """The decoder in each dtype that this machine computes, and why not in the others."""
    checkpoint, sides, refused = open_checkpoint(model, local_files_only=True), {}, []
    for dtype in DTYPES:
        try:
            dtype = resolve_dtype(dtype, device)
            sides[dtype] = load_query_side(checkpoint, device=device, dtype=dtype, query_max_length=512)
        except UsageError as exc:
            refused.append(str(exc))
    return sides, refused


def _advice(times: Mapping[torch.dtype, float], chosen: torch.dtype) -> list[str]:
    exact = {dtype: ms for dtype, ms in times.items() if dtype != torch.int8}
    best, advice = min(exact, key=exact.__getitem__), []
    if chosen in times and times[chosen] > FASTER * exact[best]:
        advice.append(
            f"{dtype_name(best)} is {times[chosen] / exact[best]:.1f} times as fast: set dtype {dtype_name(best)}"
        )
    int8 = times.get(torch.int8)
    if int8 is not None and chosen != torch.int8 and min(times[chosen], exact[best]) > FASTER * int8:
        advice.append(
            f"int8 is {exact[best] / int8:.1f} times as fast as {dtype_name(best)}, but moves margins: measure them on "
            "your own texts before you set it (docs/models.md)"
        )
    return advice
