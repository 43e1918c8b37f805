"""Ranked ids and judgments → measures, over the library ir_measures. Knows nothing of indexes or models.

ndcg@K    nDCG as trec_eval's ndcg_cut: gain = grade, discount = log2(rank + 1), divided by the same sum over all
          judged passages of the query in their best order, whether retrieved or not. Not the variant with 2^grade - 1.
recall@K  share of the query's relevant passages that are among the first K.
mrr@K     1 / rank of the first relevant passage, 0 when it is not among the first K (MS MARCO's evaluation).
map@K     mean over the relevant passages of the precision at their ranks, 0 for those not among the first K, as
          trec_eval's map_cut.

A passage is relevant from grade 1 on; unjudged passages and grades below 1 gain nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kalm_cache.errors import UsageError

Qrels = Mapping[str, Mapping[str, int]]  # query id -> passage id -> grade
Run = Mapping[str, Sequence[str]]  # query id -> passage ids, best first

MEASURES = ("ndcg@10", "mrr@10", "map@100", "recall@100")  # what reports hold
_FAMILIES = {"ndcg": "nDCG", "recall": "R", "mrr": "RR", "map": "AP"}  # our name -> that of ir_measures


def measure(qrels: Qrels, run: Run, measures: Sequence[str]) -> dict[str, float]:
    """The mean of each measure over all judged queries, those without any result or relevant passage included, as 0.

    Raises:
        UsageError: a measure is not one of `ndcg@K`, `recall@K`, `mrr@K`, `map@K`.
    """
    values = measure_queries(qrels, run, measures).values()
    return {name: math.fsum(query[name] for query in values) / len(values) for name in measures}


def measure_queries(qrels: Qrels, run: Run, measures: Sequence[str]) -> dict[str, dict[str, float]]:
    """Each measure for each judged query, in the order of `qrels`; queries of `run` without judgments are left out.

    Raises:
        UsageError: a measure is not one of `ndcg@K`, `recall@K`, `mrr@K`, `map@K`.
    """
    import ir_measures

    names = {_library_measure(name): name for name in measures}
    evaluator = ir_measures.evaluator(list(names), {query_id: dict(grades) for query_id, grades in qrels.items()})
    values: dict[str, dict[str, float]] = {query_id: {} for query_id in qrels}
    for metric in evaluator.iter_calc(_scored(qrels, run)):
        values[metric.query_id][names[metric.measure]] = float(metric.value)
    return values


def kendall_tau(ones: Sequence[float], others: Sequence[float]) -> float:
    """Kendall's τ-a: pairs of places that two lists order alike minus those ordered otherwise, over all; ties count 0.

    From 1, the same order, to −1, the reverse. Both lists have the same length, 2 or more.
    """
    pairs = len(ones) * (len(ones) - 1)
    signs = [np.sign(np.subtract.outer(values, values)) for values in (np.asarray(ones), np.asarray(others))]
    return float((signs[0] * signs[1]).sum() / pairs)


def _scored(qrels: Qrels, run: Run) -> dict[str, dict[str, float]]:
    """The run with falling scores for ranks: of equal scores, each provider of ir_measures has an order of its own."""
    judged = {query_id: ids for query_id, ids in run.items() if query_id in qrels}
    return {query_id: {doc_id: float(-rank) for rank, doc_id in enumerate(ids)} for query_id, ids in judged.items()}


def _library_measure(name: str) -> Any:
    import ir_measures

    family, _, cutoff = name.partition("@")
    if family not in _FAMILIES or not cutoff.isdecimal() or int(cutoff) < 1:
        raise UsageError(f"measure {name!r} is not known; expected {', '.join(f'{known}@K' for known in _FAMILIES)}")
    return getattr(ir_measures, _FAMILIES[family]) @ int(cutoff)
