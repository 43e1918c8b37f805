"""The measures once more, in plain Python from their definitions, sharing nothing with kalm_cache or ir_measures."""

from __future__ import annotations

from math import log2


def slow_ndcg(grades: dict[str, int], ranked: list[str], cutoff: int) -> float:
    gain = 0.0
    for rank, doc_id in enumerate(ranked[:cutoff], start=1):
        gain += max(grades.get(doc_id, 0), 0) / log2(rank + 1)
    best = 0.0
    for rank, grade in enumerate(sorted(grades.values(), reverse=True)[:cutoff], start=1):
        best += max(grade, 0) / log2(rank + 1)
    return gain / best if best else 0.0


def slow_recall(grades: dict[str, int], ranked: list[str], cutoff: int) -> float:
    relevant = [doc_id for doc_id, grade in grades.items() if grade >= 1]
    return sum(doc_id in ranked[:cutoff] for doc_id in relevant) / len(relevant) if relevant else 0.0


def slow_mrr(grades: dict[str, int], ranked: list[str], cutoff: int) -> float:
    for rank, doc_id in enumerate(ranked[:cutoff], start=1):
        if grades.get(doc_id, 0) >= 1:
            return 1 / rank
    return 0.0


def slow_map(grades: dict[str, int], ranked: list[str], cutoff: int) -> float:
    relevant = [doc_id for doc_id, grade in grades.items() if grade >= 1]
    precisions = []
    for rank, doc_id in enumerate(ranked[:cutoff], start=1):
        if doc_id in relevant:
            precisions.append((len(precisions) + 1) / rank)
    return sum(precisions) / len(relevant) if relevant else 0.0
