"""Our measures against the slow reference on whole collections: one made here, and real ones where there are some.

KALM_CACHE_TEST_BEIR names a folder of BEIR folders; every one with test judgments is checked.
"""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from kalm_cache.evaluation import load_beir
from kalm_cache.evaluation.measures.metrics import MEASURES, Qrels, measure_queries
from tests.evaluation.reference import slow_map, slow_mrr, slow_ndcg, slow_recall

DATA = os.environ.get("KALM_CACHE_TEST_BEIR", "/nowhere")
FOLDERS = sorted(path for path in Path(DATA).glob("*") if (path / "qrels" / "test.tsv").is_file())
SLOW = {
    "ndcg@10": (slow_ndcg, 10),
    "mrr@10": (slow_mrr, 10),
    "map@100": (slow_map, 100),
    "recall@100": (slow_recall, 100),
}


def assert_equal_to_the_slow_reference(qrels: Qrels, seed: int) -> None:
    """On random runs that hold some judged passages of each query among others."""
    draw = random.Random(seed)
    run = {}
    for query_id, grades in qrels.items():
        others = [f"unjudged{n}" for n in range(draw.randint(0, 120))]
        ranked = draw.sample(sorted(grades), draw.randint(0, len(grades))) + others
        run[query_id] = draw.sample(ranked, len(ranked))
    for query_id, values in measure_queries(qrels, run, MEASURES).items():
        slow = {name: one(dict(qrels[query_id]), run[query_id], cutoff) for name, (one, cutoff) in SLOW.items()}
        assert values == pytest.approx(slow, abs=1e-6)


def test_measures_equal_the_slow_reference_on_graded_judgments() -> None:
    draw = random.Random(2)
    qrels = {f"q{n}": {f"d{m}": draw.randint(-1, 4) for m in range(draw.randint(1, 150))} for n in range(60)}
    assert_equal_to_the_slow_reference(qrels, seed=1)


@pytest.mark.skipif(not FOLDERS, reason="KALM_CACHE_TEST_BEIR names no folder of BEIR folders")
@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_measures_equal_the_slow_reference_on_the_judgments_of_a_real_collection(folder: Path) -> None:
    assert_equal_to_the_slow_reference(load_beir(folder).qrels, seed=3)
