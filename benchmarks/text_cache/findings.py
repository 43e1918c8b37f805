"""What a replay measured → rows, goals and tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.serve.load import percentile
from benchmarks.text_cache.asking import Asked
from benchmarks.timing import Times, markdown, short, significant


def rows_of(answers: Mapping[str, Asked], beside: str) -> list[dict[str, Any]]:
    """A row for each system; `of_other` is its throughput over that of the one named `beside`."""
    return [
        {
            "system": name,
            "requests": len(asked.took_ms),
            "hit_rate": round(asked.hits / asked.documents, 3),
            "requests_per_s": significant(asked.requests_per_s),
            **{
                f"p{round(100 * share)}_ms": significant(percentile(sorted(asked.took_ms), share))
                for share in (0.5, 0.99)
            },
            "beside": beside,
            "of_other": significant(asked.requests_per_s / answers[beside].requests_per_s),
            **(
                {
                    "first_answers_s": [round(each, 1) for each in asked.first_answers_s],
                    "settled_s": [round(each, 1) for each in asked.settled_s],
                }
                if asked.settled_s
                else {}
            ),
        }
        for name, asked in answers.items()
    ]


def goals_of(
    rows: Sequence[dict[str, Any]], writer_rows: Sequence[dict[str, Any]], times: Mapping[str, Times]
) -> list[dict[str, Any]]:
    """Each goal: what it says, what was measured, and whether it holds."""
    named = {row["system"]: row for row in (*rows, *writer_rows)}
    p99 = named["writer at its limit"]["p99_ms"] / named["writer idle"]["p99_ms"]
    share = times["look-up"].median_ms / times["decoder"].median_ms
    measured = [
        ("throughput, warm / by id", named["warm"]["of_other"], "≥", 0.95),
        ("throughput, restarted / by id", named["restarted"]["of_other"], "≥", 0.95),
        ("looking 100 texts up / decoding 100 pairs", significant(share), "≤", 0.05),
        ("p99, writer at its limit / idle", significant(p99), "≤", 1.1),
    ]
    return [
        {
            "what": what,
            "measured": value,
            "goal": f"{sign} {goal}",
            "holds": value >= goal if sign == "≥" else value <= goal,
        }
        for what, value, sign, goal in measured
    ]


def tables(
    rows: Sequence[dict[str, Any]], writer_rows: Sequence[dict[str, Any]], goals: Sequence[dict[str, Any]]
) -> str:
    """Everything as Markdown."""
    header = ["what", "measured", "goal"]
    lines = [[goal["what"], goal["measured"], goal["goal"] + ("" if goal["holds"] else ", missed")] for goal in goals]
    return "\n\n".join([_table(rows), _table(writer_rows), markdown(header, lines)])


def _table(rows: Sequence[dict[str, Any]]) -> str:
    header = ["", "requests", "hit rate", "requests/s", "p50 ms", "p99 ms", f"of {rows[0]['beside']}"]
    names = ("requests_per_s", "p50_ms", "p99_ms", "of_other")
    lines = [
        [row["system"], row["requests"], f"{row['hit_rate']:.3f}", *(short(row[name]) for name in names)]
        for row in rows
    ]
    return markdown(header, lines)
