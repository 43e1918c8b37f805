"""Fitting to judged queries of a small index, whose judgments follow a known curve."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from kalm_cache import PassageIndex
from kalm_cache.calibration import sigmoid
from kalm_cache.errors import UsageError
from kalm_cache.evaluation.collections.beir import BeirTask
from kalm_cache.evaluation.fit_calibration import WEIGHTS, FitPlan, Judged, fit_calibration
from kalm_cache.model.prompts import DEFAULT_INSTRUCTION, DEFAULT_SYSTEM_INSTRUCTION
from tests.indexes import TEXTS, build, settings_for
from tests.texts import long_text

QUESTIONS = {f"q{i}": long_text(6, seed=500 + i) for i in range(30)}
PLAN = FitPlan(DEFAULT_INSTRUCTION, DEFAULT_SYSTEM_INSTRUCTION, (4, 8), k=len(TEXTS))


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory, mini_folder: Path, embedder_folder: Path) -> Iterator[PassageIndex]:
    folder = tmp_path_factory.mktemp("judged") / "index"
    build(folder, settings_for(mini_folder, embedder_folder), TEXTS)
    with PassageIndex.open(folder, device="cpu", dtype="float32") as opened:
        yield opened


@pytest.fixture(scope="module")
def qrels(index: PassageIndex) -> dict[str, dict[str, int]]:
    """Relevant with the probability sigmoid(4 · (margin − the middle one)) at chunk size 4."""
    chance, ids = random.Random(0), list(TEXTS)
    margins = {query_id: index.margins(text, ids) for query_id, text in QUESTIONS.items()}
    middle = sorted(margin for each in margins.values() for margin in each)[len(QUESTIONS) * len(ids) // 2]
    return {
        query_id: {
            doc_id: int(chance.random() < sigmoid(4 * (margin - middle)))
            for doc_id, margin in zip(ids, each, strict=True)
        }
        for query_id, each in margins.items()
    }


def judged(qrels: dict[str, dict[str, int]], *, searched: bool) -> Judged:
    return Judged(BeirTask("judged", "test", QUESTIONS, qrels), searched, "j" * 64)


def test_the_error_on_queries_left_out_is_smaller_than_that_of_the_score(
    index: PassageIndex, qrels: dict[str, dict[str, int]]
) -> None:
    fitted = fit_calibration(index, judged(qrels, searched=True), PLAN)
    calibration, (measure, _) = fitted.calibration, fitted.measures
    assert [curve.chunk_size for curve in calibration.curves] == [4, 8]
    assert (calibration.decoder, calibration.first_stage, calibration.queries) == (index.decoder.digest, "fused", 30)
    assert calibration.pairs == sum(len(index.find(text, PLAN.k).doc_ids) for text in QUESTIONS.values())
    assert measure.ece < measure.ece_before
    assert calibration.curves[0].temperature == pytest.approx(0.25, rel=0.5)
    assert {curve.first_stage_weight for curve in calibration.curves} <= set(WEIGHTS)
    assert [one.precision for one in calibration.curves[0].thresholds][:1] == [0.5]


def test_judged_pairs_are_scored_without_a_search_and_have_no_weight(
    index: PassageIndex, qrels: dict[str, dict[str, int]]
) -> None:
    some = {query_id: dict(list(grades.items())[:6]) for query_id, grades in qrels.items()}
    steps: list[tuple[int, int]] = []
    fitted = fit_calibration(index, judged(some, searched=False), PLAN, lambda done, total: steps.append((done, total)))
    assert (fitted.calibration.pairs, fitted.calibration.first_stage) == (30 * 6, "")
    assert [curve.first_stage_weight for curve in fitted.calibration.curves] == [None, None]
    assert fitted.measures[0].ndcg is None
    assert steps[-1] == (30, 30)


def test_the_weight_with_the_best_ranking_is_chosen(index: PassageIndex) -> None:
    relevant = {
        query_id: index.search(text, k=len(TEXTS), top_n=4, first_stage_weight=0.5).results
        for query_id, text in QUESTIONS.items()
    }
    grades = {query_id: {one.doc_id: 1 for one in found} for query_id, found in relevant.items()}
    fitted = fit_calibration(index, judged(grades, searched=True), PLAN)
    assert fitted.calibration.curves[0].first_stage_weight == 0.5
    assert fitted.measures[0].ndcg == pytest.approx(1.0)
    assert fitted.measures[0].ndcg_margin < 1.0


def test_fewer_judgments_than_a_curve_takes_are_refused(index: PassageIndex, qrels: dict[str, dict[str, int]]) -> None:
    task = BeirTask("few", "test", {"q0": QUESTIONS["q0"]}, {"q0": qrels["q0"]})
    with pytest.raises(UsageError, match="give more judgments"):
        fit_calibration(index, Judged(task, True, ""), PLAN)
