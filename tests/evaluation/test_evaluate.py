from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import replace

import pytest
import scipy.stats

from kalm_cache.errors import UsageError
from kalm_cache.evaluation import BeirTask, EvaluationReport, evaluate
from kalm_cache.evaluation.evaluate import sample_queries
from kalm_cache.first_stage import Mode
from kalm_cache.index.passage_index import PassageIndex
from tests.evaluation.reference import slow_mrr, slow_ndcg, slow_recall


def slow_mean(slow: Callable[..., float], task: BeirTask, run: dict[str, list[str]], cutoff: int) -> float:
    values = [slow(grades, run[query_id], cutoff) for query_id, grades in task.qrels.items()]
    return sum(values) / len(values)


def found_by_first_stage(index: PassageIndex, task: BeirTask, depth: int, mode: Mode) -> dict[str, list[str]]:
    many = index.first_stage.search_many(list(task.queries.values()), depth, mode)
    return {
        query_id: index.store.doc_ids(found.ordinals.tolist())
        for query_id, found in zip(task.queries, many, strict=True)
    }


def sorted_by_margin(index: PassageIndex, task: BeirTask, k: int, chunk_size: int) -> dict[str, list[str]]:
    run = {}
    for query_id, ids in found_by_first_stage(index, task, k, "fused").items():
        margins = dict(zip(ids, index.margins(task.queries[query_id], ids, chunk_size=chunk_size), strict=True))
        run[query_id] = sorted(ids, key=lambda doc_id: -margins[doc_id])
    return run


def qualities(report: EvaluationReport) -> tuple[object, ...]:
    return report.chunk_size, report.first_stage, report.reranked


def judging_one(task: BeirTask, choose: Callable[[str], str]) -> BeirTask:
    return replace(task, qrels={query_id: {choose(query_id): 1} for query_id in task.queries})


@pytest.mark.parametrize("mode", ["dense", "bm25", "fused"])
def test_the_first_stage_is_measured_as_the_slow_reference_measures_it(
    mode: Mode, index: PassageIndex, task: BeirTask
) -> None:
    [report] = evaluate(index, task, k=3, first_stage=mode)
    run = found_by_first_stage(index, task, 100, mode)
    assert report.first_stage.mode == mode
    assert report.first_stage.ndcg_at_10 == pytest.approx(slow_mean(slow_ndcg, task, run, 10))
    assert report.first_stage.recall_at_100 == pytest.approx(slow_mean(slow_recall, task, run, 100))


def test_reranked_answers_are_measured_in_the_order_of_their_margins(index: PassageIndex, task: BeirTask) -> None:
    [report] = evaluate(index, task, k=15)
    run = sorted_by_margin(index, task, 15, index.chunk_size)
    assert report.reranked.ndcg_at_10 == pytest.approx(slow_mean(slow_ndcg, task, run, 10))
    assert report.reranked.mrr_at_10 == pytest.approx(slow_mean(slow_mrr, task, run, 10))


def test_judging_what_search_answers_first_gives_one(index: PassageIndex, task: BeirTask) -> None:
    def first_answer(query_id: str) -> str:
        return index.search(task.queries[query_id], k=20, top_n=1).results[0].doc_id

    [report] = evaluate(index, judging_one(task, first_answer), k=20)
    assert (report.reranked.ndcg_at_10, report.reranked.mrr_at_10) == (1, 1)


def test_judging_what_search_answers_eleventh_gives_zero(index: PassageIndex, task: BeirTask) -> None:
    def eleventh_answer(query_id: str) -> str:
        return index.search(task.queries[query_id], k=20, top_n=11).results[10].doc_id

    [report] = evaluate(index, judging_one(task, eleventh_answer), k=20)
    assert (report.reranked.ndcg_at_10, report.reranked.mrr_at_10) == (0, 0)


def test_recall_counts_a_hundred_candidates_however_few_are_reranked(index: PassageIndex, task: BeirTask) -> None:
    few, many = (evaluate(index, task, k=k, first_stage="dense")[0] for k in (1, 100))
    assert few.first_stage == many.first_stage
    assert many.first_stage.recall_at_100 == 1  # all 40 passages are among the 100


def test_each_chunk_size_is_reported_as_when_it_is_evaluated_alone(index: PassageIndex, task: BeirTask) -> None:
    together = evaluate(index, task, k=10, chunk_sizes=[2, 4, 16])
    alone = [evaluate(index, task, k=10, chunk_sizes=[size])[0] for size in (2, 4, 16)]
    assert [qualities(report) for report in together] == [qualities(report) for report in alone]
    assert len({report.reranked for report in together}) > 1  # pooling does change these answers
    run = sorted_by_margin(index, task, 10, 16)
    assert together[2].reranked.ndcg_at_10 == pytest.approx(slow_mean(slow_ndcg, task, run, 10))


def test_another_instruction_gives_other_answers(index: PassageIndex, task: BeirTask) -> None:
    [default] = evaluate(index, task, k=20)
    [other] = evaluate(index, task, k=20, instruction="Find bees, and nothing else.")
    assert default.first_stage == other.first_stage
    assert default.reranked != other.reranked


def test_a_sample_is_the_same_every_time_and_lies_inside_larger_ones(task: BeirTask) -> None:
    small, large = sample_queries(task, 3), sample_queries(task, 7)
    turned = BeirTask(task.name, task.split, dict(reversed(task.queries.items())), task.qrels)
    assert small == sample_queries(turned, 3)
    assert set(small.queries) < set(large.queries) < set(task.queries)
    assert small.qrels == {query_id: task.qrels[query_id] for query_id in small.queries}
    assert sample_queries(task, 12) is sample_queries(task, None) is task


def test_a_sampled_report_says_so(index: PassageIndex, task: BeirTask, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        [report] = evaluate(index, task, k=5, max_queries=4)
    assert (report.queries, report.sampled_from) == (4, 12)
    assert "a sample of 4 of 12 queries" in caplog.text
    run = sorted_by_margin(index, task, 5, index.chunk_size)
    assert report.reranked.mrr_at_10 == pytest.approx(slow_mean(slow_mrr, sample_queries(task, 4), run, 10))


def test_bytes_per_passage_are_those_on_disk(index: PassageIndex, task: BeirTask) -> None:
    [report] = evaluate(index, task, k=1, max_queries=1)
    files = [path for path in index.generation.folder.rglob("*") if path.is_file() and path.name != "manifest.json"]
    assert report.bytes_per_passage == round(sum(path.stat().st_size for path in files) / 40, 1)


def test_the_report_as_json_has_its_fields_in_order(index: PassageIndex, task: BeirTask) -> None:
    [report] = evaluate(index, task, k=5, chunk_sizes=[4])
    found = json.loads(json.dumps(report.to_json()))
    leading = ["dataset", "split", "queries", "first_stage", "reranked", "chunk_size", "codec", "bytes_per_passage"]
    assert list(found)[:8] == leading
    assert list(found["first_stage"]) == ["mode", "ndcg@10", "recall@100"]
    assert list(found["reranked"]) == ["ndcg@10", "mrr@10", "map@100"]
    assert (found["dataset"], found["split"], found["queries"], found["k"]) == ("toy", "test", 12, 5)
    assert (found["chunk_size"], found["stored_chunk_size"], found["codec"]) == (4, 2, "fp16")
    assert found["first_stage"]["mode"] == "fused"
    assert (found["model"], found["generation"]) == (index.generation.manifest.model, "000001")
    assert found["ms_per_query"] == pytest.approx(1000 * found["seconds"] / 12, abs=0.1)


def test_progress_counts_queries_over_all_chunk_sizes(index: PassageIndex, task: BeirTask) -> None:
    seen: list[tuple[int, int]] = []
    evaluate(index, task, k=1, chunk_sizes=[2, 4], on_progress=lambda done, total: seen.append((done, total)))
    assert seen == [(done, 24) for done in range(1, 25)]


def test_a_query_that_finds_nothing_counts_as_zero(index: PassageIndex, task: BeirTask) -> None:
    queries = {"found": "bees", "nothing": "xylophone"}
    [only_found] = index.search("bees", k=1, first_stage="bm25").results
    qrels = {query_id: {only_found.doc_id: 1} for query_id in queries}
    [report] = evaluate(index, BeirTask("toy", "test", queries, qrels), k=1, first_stage="bm25")
    assert (report.first_stage.ndcg_at_10, report.reranked.ndcg_at_10, report.reranked.mrr_at_10) == (0.5, 0.5, 0.5)


def test_relevant_passages_that_the_index_does_not_hold_are_counted(index: PassageIndex, task: BeirTask) -> None:
    qrels = {query_id: {"d1": 1, "elsewhere": 1, "bad and elsewhere": 0} for query_id in task.queries}
    [report] = evaluate(index, replace(task, qrels=qrels), k=40, first_stage="dense")
    assert report.missing_passages == 1
    assert report.first_stage.recall_at_100 == 0.5


def test_an_index_of_another_corpus_is_refused(index: PassageIndex, task: BeirTask) -> None:
    with pytest.raises(UsageError, match="none of the 1 relevant passages of toy test; evaluate an index of that"):
        evaluate(index, judging_one(task, lambda query_id: "elsewhere"))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"k": 0}, "k is 0"),
        ({"max_queries": 0}, "max_queries is 0"),
        ({"chunk_sizes": [2, 3]}, "chunk size 3 was asked for, but the states are stored at 2"),
        ({"first_stage": "sparse"}, "mode is 'sparse'"),
    ],
)
def test_options_that_do_not_fit_are_refused_before_a_query_is_answered(
    options: dict, reason: str, index: PassageIndex, task: BeirTask
) -> None:
    with pytest.raises(UsageError, match=reason):
        evaluate(index, task, on_progress=lambda done, total: pytest.fail("answered"), **options)


def test_the_prefix_that_passages_share_is_measured_beside_the_exact_one(index: PassageIndex, task: BeirTask) -> None:
    exact, shared = evaluate(index, task, k=15, shared_prefix="mean")
    assert (exact.shared_prefix, exact.tau) == (None, None)
    assert qualities(exact) == qualities(evaluate(index, task, k=15)[0])
    assert shared.shared_prefix == "mean"
    with PassageIndex.open(index.generation.folder.parent.parent, device="cpu", shared_prefix="mean") as mean:
        run = sorted_by_margin(mean, task, 15, index.chunk_size)
        assert shared.reranked.ndcg_at_10 == pytest.approx(slow_mean(slow_ndcg, task, run, 10))
        taus = []
        for query_id, ids in run.items():
            margins = [side.margins(task.queries[query_id], ids) for side in (index, mean)]
            taus.append(scipy.stats.kendalltau(*margins, variant="b").statistic)  # without ties, a is b
    assert shared.tau == pytest.approx(sum(taus) / len(taus), abs=1e-3)
