"""A run's log as a picture: the loss of each step, and the held-out nDCG@10 in between."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from kalm_cache.evaluation.reports.plots import load_figure

SMOOTHED = 10  # steps whose mean loss is drawn


def plot_log(lines: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw the lines of `log.jsonl` into a PNG file. Raises `MissingExtraError` where matplotlib is not installed."""
    losses = [(line["step"], line["loss"]) for line in lines if "loss" in line]
    watched = [(line["step"], line["ndcg@10"]) for line in lines if "ndcg@10" in line]
    figure = load_figure()(figsize=(7, 4), layout="constrained")
    axis = figure.subplots()
    axis.plot([step for step, _ in losses], [loss for _, loss in losses], color="0.8", linewidth=0.8)
    axis.plot([step for step, _ in losses], smoothed([loss for _, loss in losses]), color="C0")
    axis.set(xlabel="step", ylabel=f"loss (dark: mean of {SMOOTHED} steps)")
    other = axis.twinx()
    other.plot([step for step, _ in watched], [value for _, value in watched], color="C1", marker="o")
    other.set_ylabel("nDCG@10 of the watched queries (dots)")
    figure.savefig(path, dpi=120)


def smoothed(losses: Sequence[float]) -> list[float]:
    """The mean of each loss and those before it, `SMOOTHED` at most."""
    return [fmean(losses[max(0, end - SMOOTHED) : end]) for end in range(1, len(losses) + 1)]
