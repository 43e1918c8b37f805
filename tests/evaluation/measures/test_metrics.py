from __future__ import annotations

import random

import pytest

from kalm_cache.errors import UsageError
from kalm_cache.evaluation.measures.metrics import kendall_tau, measure, measure_queries
from tests.evaluation.reference import slow_map, slow_mrr, slow_ndcg, slow_recall

SLOW = {
    "ndcg@10": (slow_ndcg, 10),
    "recall@100": (slow_recall, 100),
    "mrr@10": (slow_mrr, 10),
    "map@100": (slow_map, 100),
}


def one(name: str, grades: dict[str, int], ranked: list[str]) -> float:
    return measure({"q": grades}, {"q": ranked}, [name])[name]


def test_ndcg_of_graded_judgments_is_the_value_computed_by_hand() -> None:
    # ranks 1, 2, 3 divide by log2 of 2, 3, 4 = 1, 1.5849625, 2
    # found: 2 / 1 + 0 + 3 / 2 = 3.5; best: 3 / 1 + 2 / 1.5849625 + 1 / 2 = 4.7618595
    grades = {"excellent": 3, "good": 2, "related": 1}
    assert one("ndcg@10", grades, ["good", "unjudged", "excellent"]) == pytest.approx(3.5 / 4.7618595, abs=1e-7)


def test_ndcg_of_binary_judgments_is_the_value_computed_by_hand() -> None:
    # found: 1 / 1.5849625 + 1 / 2 = 1.1309298; best: 1 + 1 / 1.5849625 = 1.6309298
    grades = {"a": 1, "b": 1, "judged bad": 0}
    assert one("ndcg@10", grades, ["judged bad", "a", "b"]) == pytest.approx(1.1309298 / 1.6309298, abs=1e-7)


def test_ndcg_looks_no_further_than_its_cutoff_in_the_answer_and_in_the_best_order() -> None:
    others = [f"other{n}" for n in range(9)]
    assert one("ndcg@10", {"a": 1}, [*others, "a"]) == pytest.approx(1 / 3.4594316, abs=1e-7)  # log2(11)
    assert one("ndcg@10", {"a": 1}, [*others, "one more", "a"]) == 0
    twelve = {f"good{n}": 1 for n in range(12)}
    assert one("ndcg@10", twelve, list(twelve)[:10]) == pytest.approx(1)


def test_recall_is_the_share_of_relevant_passages_among_the_first_hundred() -> None:
    grades = {"a": 1, "b": 3, "c": 1, "d": 2, "judged bad": 0}
    others = [f"other{n}" for n in range(97)]
    assert one("recall@100", grades, ["a", "judged bad", *others, "b", "c"]) == 0.5  # c comes 101st


def test_reciprocal_rank_is_that_of_the_first_relevant_passage_among_ten() -> None:
    assert one("mrr@10", {"a": 1, "b": 1, "bad": 0}, ["bad", "unjudged", "b", "a"]) == pytest.approx(1 / 3)
    others = [f"other{n}" for n in range(10)]
    assert one("mrr@10", {"a": 1}, [*others[:9], "a"]) == pytest.approx(1 / 10)
    assert one("mrr@10", {"a": 1}, [*others, "a"]) == 0


def test_a_negative_grade_is_not_relevant() -> None:
    assert one("ndcg@10", {"spam": -2, "a": 1}, ["spam", "a"]) == pytest.approx(1 / 1.5849625, abs=1e-7)
    assert one("mrr@10", {"spam": -2, "a": 1}, ["spam", "a"]) == 0.5


@pytest.mark.parametrize("name", SLOW)
def test_a_measure_equals_the_slow_reference_on_random_runs(name: str) -> None:
    draw = random.Random(7)
    doc_ids = [f"d{n}" for n in range(300)]
    qrels = {
        f"q{n}": {doc_id: draw.randint(0, 3) for doc_id in draw.sample(doc_ids, draw.randint(1, 40))} for n in range(50)
    }
    run = {query_id: draw.sample(doc_ids, draw.randint(1, 200)) for query_id in qrels}
    slow, cutoff = SLOW[name]
    expected = {query_id: slow(qrels[query_id], run[query_id], cutoff) for query_id in qrels}
    found = measure_queries(qrels, run, [name])
    assert {query_id: values[name] for query_id, values in found.items()} == pytest.approx(expected)
    assert measure(qrels, run, [name])[name] == pytest.approx(sum(expected.values()) / 50)


@pytest.mark.parametrize("name", SLOW)
def test_judged_queries_without_results_count_as_zero(name: str) -> None:
    qrels = {"found": {"a": 1}, "empty": {"a": 1}, "absent": {"a": 1}, "nothing relevant": {"a": 0}}
    run = {"found": ["a"], "empty": [], "nothing relevant": ["a"]}
    per_query = measure_queries(qrels, run, [name])
    assert per_query == {"found": {name: 1}, "empty": {name: 0}, "absent": {name: 0}, "nothing relevant": {name: 0}}
    assert measure(qrels, run, [name]) == {name: 0.25}


def test_queries_without_judgments_are_left_out() -> None:
    assert measure({"q": {"a": 1}}, {"q": ["a"], "unjudged": ["b"]}, ["ndcg@10", "mrr@10"]) == {
        "ndcg@10": 1,
        "mrr@10": 1,
    }


@pytest.mark.parametrize("ranked", [["a", "b", "c"], ["c", "b", "a"], ["b", "c", "a"]])
def test_rank_is_the_place_in_the_list_whatever_the_ids(ranked: list[str]) -> None:
    for doc_id in "abc":
        assert one("mrr@10", {doc_id: 1}, ranked) == pytest.approx(1 / (1 + ranked.index(doc_id)))
        assert one("ndcg@10", {doc_id: 1}, ranked) == pytest.approx(slow_ndcg({doc_id: 1}, ranked, 10))


@pytest.mark.parametrize("name", ["p@10", "map", "ndcg", "ndcg@0", "ndcg@ten", "nDCG@10", ""])
def test_an_unknown_measure_is_refused_with_those_that_are_known(name: str) -> None:
    with pytest.raises(UsageError, match="ndcg@K, recall@K, mrr@K, map@K"):
        measure({"q": {"a": 1}}, {"q": ["a"]}, [name])


def test_kendalls_tau_of_lists_by_hand() -> None:
    assert kendall_tau([1, 2, 3], [5, 6, 7]) == 1
    assert kendall_tau([1, 2, 3], [7, 6, 5]) == -1
    assert kendall_tau([1, 2, 3], [5, 7, 6]) == pytest.approx(1 / 3)  # two pairs alike, one otherwise
    assert kendall_tau([1, 2, 3], [5, 5, 7]) == pytest.approx(2 / 3)  # a tie counts nothing
