"""Answers as tables for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from kalm_cache.index.passage_index import Answer

SNIPPET_CHARS = 200  # the terminal's width cuts it further


def ranking_table(answer: Answer, marked: frozenset[str] = frozenset()) -> Table:
    """Rank before → after, score, id, snippet. `marked` ids are known to be relevant, and get a ✓."""
    table = Table(title=Text(answer.query, style="bold"), title_justify="left", box=None, pad_edge=False, expand=True)
    calibrated = any(result.probability is not None for result in answer.results)
    for name in ("before", "", "after", "P(yes)", "margin", *(["probability"] if calibrated else [])):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("id", overflow="fold")  # never cut
    fields = list(dict.fromkeys(name for result in answer.results for name in result.metadata or {}))
    for name in fields:
        table.add_column(Text(name), overflow="fold")
    table.add_column("passage", no_wrap=True, overflow="ellipsis", ratio=1)
    for result in answer.results:
        before = result.first_stage_rank
        table.add_row(
            "" if before is None else str(before),
            _arrow(before, result.rank),
            str(result.rank),
            f"{result.score:.3f}",
            f"{result.margin:+.2f}",
            *([f"{result.probability:.3f}"] if result.probability is not None else []),
            Text(result.doc_id + (" ✓" if result.doc_id in marked else "")),
            *(Text(_cell((result.metadata or {}).get(name))) for name in fields),
            Text(_snippet(result.text)),
        )
    return table


def timings_line(answer: Answer) -> Text:
    """The milliseconds of each stage, in one line."""
    parts = [f"{stage} {milliseconds:.1f}" for stage, milliseconds in answer.timings_ms.items()]
    cut = "; the query was cut at query_max_length" if answer.query_truncated else ""
    return Text(f"ms: {' · '.join(parts)}{cut}", style="dim")


def _arrow(before: int | None, after: int) -> str:
    if before is None:
        return ""
    return "↑" if after < before else "↓" if after > before else "="


def _cell(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(_cell, value))
    return "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _snippet(text: str | None) -> str:
    flat = " ".join((text or "").split())
    return flat if len(flat) <= SNIPPET_CHARS else flat[: SNIPPET_CHARS - 1] + "…"
