"""Results as PNG plots: a panel for each collection, and one for their mean. Extra `eval`."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from kalm_cache.errors import MissingExtraError
from kalm_cache.evaluation.reports.markdown import (
    PLOTS,
    chunk_sizes_of,
    codecs_of,
    mean_over,
    others_of,
    point_of,
    weights_of,
)
from kalm_cache.evaluation.reports.results import CollectionResult, SystemResult

MEASURE = "ndcg@10"
COLUMNS = 4
COLOURS = 10  # of matplotlib's cycle
COMMAND_CHARS = 150
Value = Callable[[SystemResult], float | None]
_X: dict[str, tuple[str, Value]] = {  # file name -> label and value of the horizontal axis
    "quality-ratio.png": ("pooling ratio r", lambda system: system.cost.chunk_size),
    "quality-bytes.png": ("bytes a passage (states' file)", lambda system: system.cost.bytes_per_passage),
    "quality-ms.png": ("ms a query (read and decode, median)", lambda system: system.rerank_ms),
}


def load_figure() -> Any:
    """Matplotlib's Figure, which needs no screen. Raises `MissingExtraError`."""
    try:
        from matplotlib.figure import Figure
    except ImportError as exc:
        raise MissingExtraError("matplotlib", "eval") from exc
    return Figure


def plot_all(results: Sequence[CollectionResult], folder: Path, command: str) -> None:
    """Write every plot of `PLOTS` into a folder; `command` stands below each and in the PNG's description.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    for name, (label, value) in _X.items():
        _plot_quality(results, folder / name, label, value, command)
    _plot_reliability(results, folder / "reliability.png", command)


def _plot_quality(results: Sequence[CollectionResult], path: Path, label: str, value: Value, command: str) -> None:
    panels: list[Sequence[CollectionResult]] = [[result] for result in results]
    panels += [results] if len(results) > 1 else []
    figure, axes = _panels(len(panels))
    for axis, panel in zip(axes, panels, strict=True):
        for n, (codec, weight) in enumerate(itertools.product(codecs_of(panel), weights_of(panel))):
            xs, ys = _line(panel, codec, weight, value)
            line = f"{codec}, weight {weight:g}" if weight else codec
            style = _LINES[n // COLOURS % len(_LINES)]  # colours come again after so many lines
            axis.plot(xs, ys, style, marker="o", markersize=3, label=line)
        for name in others_of(panel):
            _level(axis, panel, name)
        axis.set_xscale("log", base=2 if path.name == "quality-ratio.png" else 10)
        axis.set_title(f"{panel[0].name} {panel[0].split}" if len(panel) == 1 else "mean", fontsize=9)
        axis.set_xlabel(label, fontsize=8)
        axis.set_ylabel("nDCG@10", fontsize=8)
        axis.grid(alpha=0.3)
    _save(figure, axes, path, command)


def _line(
    panel: Sequence[CollectionResult], codec: str, weight: float, value: Value
) -> tuple[list[float], list[float]]:
    """Means over the panel's collections, of the ratios that all of them have."""

    def of_point(result: CollectionResult, chunk_size: int, get: Value) -> float | None:
        point = point_of(result, codec, chunk_size, weight)
        return None if point is None else get(point)

    xs, ys = [], []
    for chunk_size in chunk_sizes_of(panel):
        x = mean_over(panel, lambda result, r=chunk_size: of_point(result, r, value))  # type: ignore[misc]
        y = mean_over(panel, lambda result, r=chunk_size: of_point(result, r, lambda system: system.means[MEASURE]))  # type: ignore[misc]
        if x is not None and y is not None:
            xs.append(x)
            ys.append(y)
    return xs, ys


def _level(axis: Any, panel: Sequence[CollectionResult], name: str) -> None:
    """A horizontal line: a first stage or a bi-encoder has no ratio."""
    found = [system.means[MEASURE] for result in panel for system in result.systems if system.name == name]
    style, colour = _STYLES.get(name, ("-.", "C7"))
    axis.axhline(sum(found) / len(found), linestyle=style, color=colour, linewidth=1, label=name)


_LINES = ("-", "--", ":")
_STYLES = {"bm25": (":", "black"), "dense": ("--", "gray"), "fused": ("-", "gray"), "given": ("-", "black")}


def _plot_reliability(results: Sequence[CollectionResult], path: Path, command: str) -> None:
    codec = codecs_of(results)[0]
    figure, axes = _panels(len(results))
    for axis, result in zip(axes, results, strict=True):
        for chunk_size in chunk_sizes_of([result]):
            point = point_of(result, codec, chunk_size)
            if point is not None and point.calibration is not None:
                bins = point.calibration.bins
                xs, ys = [bin_.mean_score for bin_ in bins], [bin_.relevant for bin_ in bins]
                axis.plot(xs, ys, marker="o", markersize=3, label=f"r = {chunk_size}")
        axis.plot([0, 1], [0, 1], color="black", linewidth=0.5)
        axis.set_title(f"{result.name} {result.split}, {codec}", fontsize=9)
        axis.set_xlabel("P(yes), mean of bin", fontsize=8)
        axis.set_ylabel("share relevant", fontsize=8)
        axis.grid(alpha=0.3)
    _save(figure, axes, path, command)


def _panels(count: int) -> tuple[Any, list[Any]]:
    columns = min(count, COLUMNS)
    rows = -(-count // columns)
    figure = load_figure()(figsize=(max(4.2 * columns, 6), 3.4 * rows + 0.9), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis in axes[count:]:
        axis.set_axis_off()
    return figure, axes[:count]


def _save(figure: Any, axes: Sequence[Any], path: Path, command: str) -> None:
    lines = {line.get_label(): line for axis in axes for line in axis.get_lines()}
    named = {label: line for label, line in lines.items() if not label.startswith("_")}
    figure.legend(list(named.values()), list(named), loc="outside lower center", ncols=6, fontsize=8)
    shown = command if len(command) <= COMMAND_CHARS else command[: COMMAND_CHARS - 1] + "…"
    figure.suptitle(f"{PLOTS[path.name]}\n{shown}", fontsize=8, family="monospace")
    figure.savefig(path, dpi=110, metadata={"Software": None, "Description": command})
