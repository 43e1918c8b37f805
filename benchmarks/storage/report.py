"""What `benchmarks.storage` measured, as Markdown tables and as a plot. Measures nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.timing import markdown, short
from kalm_cache.errors import MissingExtraError

COLBERT_BYTES_PER_TOKEN = {"ColBERTv2, 2 bits": 36, "ColBERTv2, 1 bit": 20}
GROUP = ("model", "checkpoint", "collection", "split", "queries", "k", "pairs_only")
GOAL_CODEC, GOAL_NDCG, GOAL_KENDALL = "int4", 0.002, 0.98
Row = dict[str, Any]


def load_figure() -> Any:
    """matplotlib's `Figure`, which needs no display. Raises `MissingExtraError`."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as exc:
        raise MissingExtraError("matplotlib", "bench") from exc
    return Figure


def groups_of(rows: list[Row]) -> list[list[Row]]:
    """Rows of one model, collection and sample together, in the order they came."""
    groups: dict[tuple[object, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in GROUP), []).append(row)
    return list(groups.values())


def markdown_report(rows: list[Row]) -> str:
    """For each group a table, ColBERTv2's bytes for the same passages, and whether the goal is met."""
    parts = []
    for group in groups_of(rows):
        parts += [
            f"### {': '.join(_title(group[0]))}",
            _table(sorted(group, key=_by_ratio)),
            _colbert(group[0]),
            *_goals(group),
        ]
    return "\n\n".join(parts) + "\n"


def plot(rows: list[Row], path: Path) -> None:
    """nDCG@10 and Kendall's tau against file bytes per passage: a column for each group, a line for each chunk size."""
    groups = groups_of(rows)
    colours = {ratio: f"C{i}" for i, ratio in enumerate(sorted({row["r"] for row in rows}))}
    figure = load_figure()(figsize=(5.2 * len(groups), 8), layout="constrained")
    axes = figure.subplots(2, len(groups), squeeze=False)
    for column, group in enumerate(groups):
        for axis, name, label in zip(axes[:, column], ("ndcg@10", "kendall"), ("nDCG@10", "Kendall τ"), strict=True):
            if name in group[0]:
                _draw(axis, group, name, label, colours)
            else:
                axis.set_axis_off()
        (axes[0, column] if "ndcg@10" in group[0] else axes[1, column]).set_title(
            "\n".join(_title(group[0])), fontsize=9
        )
    lines = {line.get_label(): line for axis in axes.flat for line in axis.get_lines()}  # each ratio and peer once
    figure.legend(list(lines.values()), list(lines), loc="outside lower center", ncols=3, fontsize=8)
    figure.savefig(path, dpi=130, metadata={"Software": None})


def _title(row: Row) -> tuple[str, str]:
    sample = f"{row['queries']} queries × {row['k']} candidates"
    return f"{row['model']} on {row['collection']} {row['split']}", sample


def _by_ratio(row: Row) -> tuple[int, float]:
    return row["r"], -row["payload_bytes_per_passage"]


def _table(rows: list[Row]) -> str:
    judged = "ndcg@10" in rows[0]
    header = ["codec", "r", "payload B/passage", "file B/passage", "payload B/token", "B of 128 tokens"]
    header += ["encode MB/s", "decode MB/s", "state error", "margin error", "largest", "Kendall", "top 10 kept"]
    header += ["nDCG@10", "change ± s.e.", "recall@10"] if judged else []
    return markdown(header, [_cells(row) + (_judged_cells(row) if judged else []) for row in rows])


def _cells(row: Row) -> list[object]:
    usual = row["payload_bytes_of_128_tokens"]
    return [
        row["codec"],
        row["r"],
        f"{row['payload_bytes_per_passage']:,.0f}",
        f"{row['file_bytes_per_passage']:,.0f}",
        f"{row['payload_bytes_per_token']:.1f}",
        "" if usual is None else f"{usual:,}",
        short(row["encode_mb_s"]),
        short(row["decode_mb_s"]),
        f"{row['relative_error']:.4f}",
        f"{row['drift_mean']:.4f}",
        f"{row['drift_max']:.3f}",
        f"{row['kendall']:.4f}",
        f"{row['top10']:.3f}",
    ]


def _judged_cells(row: Row) -> list[object]:
    return [f"{row['ndcg@10']:.4f}", _change(row), f"{row['recall@10']:.4f}"]


def _colbert(row: Row) -> str:
    tokens = row["tokens_per_passage"]
    each = (f"{name} {size} B/token = {size * tokens:,.0f} B" for name, size in COLBERT_BYTES_PER_TOKEN.items())
    return f"{row['passages']} passages, {tokens:.0f} tokens each on average, width {row['width']}. {'; '.join(each)}."


def _goals(rows: list[Row]) -> list[str]:
    """A sentence for each chunk size of the goal's codec."""
    lines = [_goal(row) for row in sorted(rows, key=_by_ratio) if row["codec"].split()[0] == GOAL_CODEC]
    return ["\n".join(lines)] if lines else []


def _goal(row: Row) -> str:
    kendall = f"Kendall {row['kendall']:.4f} ({_met(row['kendall'] >= GOAL_KENDALL)}: ≥ {GOAL_KENDALL})"
    if "ndcg_change" not in row:
        return f"- {row['codec']}, r = {row['r']}: {kendall}"
    met = _met(abs(row["ndcg_change"]) <= GOAL_NDCG)
    return f"- {row['codec']}, r = {row['r']}: nDCG@10 {_change(row)} ({met}: within {GOAL_NDCG} of fp32), {kendall}"


def _change(row: Row) -> str:
    error = "" if row["ndcg_change_se"] is None else f" ± {row['ndcg_change_se']:.4f}"
    return f"{row['ndcg_change']:+.4f}{error}"


def _met(met: bool) -> str:
    return "met" if met else "missed"


def _draw(axis: Any, rows: list[Row], name: str, label: str, colours: dict[int, str]) -> None:
    for ratio in sorted({row["r"] for row in rows}):
        line = sorted((row for row in rows if row["r"] == ratio), key=lambda row: float(row["file_bytes_per_passage"]))
        xs, ys = [row["file_bytes_per_passage"] for row in line], [row[name] for row in line]
        axis.plot(xs, ys, marker="o", markersize=4, color=colours[ratio], label=f"r = {ratio}")
        for row in line:
            place = (row["file_bytes_per_passage"], row[name])
            axis.annotate(row["codec"], place, (0, 5), textcoords="offset points", fontsize=6, ha="center")
    tokens = rows[0]["tokens_per_passage"]
    for (peer, size), style in zip(COLBERT_BYTES_PER_TOKEN.items(), ("--", ":"), strict=True):
        axis.axvline(size * tokens, color="gray", linestyle=style, label=f"{peer}: {size} B/token")
    axis.set_xscale("log")
    axis.set_xlabel("file bytes per passage")
    axis.set_ylabel(label)
    axis.grid(alpha=0.3)
