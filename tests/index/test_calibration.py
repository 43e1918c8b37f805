"""Searches of a calibrated index: probabilities, the least of them, and the first stage's weight."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from indexer.change.set_calibration import set_calibration
from kalm_cache import PassageIndex
from kalm_cache.errors import UsageError
from kalm_cache.generations.generation import open_current
from tests.calibrated import calibration, curve
from tests.checkpoints import with_other_decoder
from tests.index.asked import QUERIES

FITTED = curve(4, temperature=2.0, offset=0.5, weight=3.0)


@pytest.fixture
def calibrated(copied: Path) -> Iterator[PassageIndex]:
    decoder = open_current(copied).manifest.decoder
    assert decoder is not None
    set_calibration(copied, calibration(FITTED, curve(8, weight=0.0), decoder=decoder.digest))
    with PassageIndex.open(copied, device="cpu") as index:
        yield index


def test_every_result_has_the_probability_of_its_margin_at_its_chunk_size(calibrated: PassageIndex) -> None:
    searched = calibrated.search(QUERIES[0], top_n=None).results
    assert searched[0].probability == pytest.approx(FITTED.probability(searched[0].margin))
    assert [one.probability for one in searched] == sorted((one.probability for one in searched), reverse=True)
    (one,) = calibrated.rerank(QUERIES[0], ["d1"], chunk_size=8).results
    assert one.probability == pytest.approx(curve(8).probability(one.margin))
    assert calibrated.rerank(QUERIES[0], ["d1"], chunk_size=16).results[0].probability is None


def test_results_below_the_least_probability_are_left_out_before_the_first_are_taken(
    calibrated: PassageIndex,
) -> None:
    all_of_them = calibrated.search(QUERIES[0], top_n=None).results
    least = all_of_them[4].probability
    kept = calibrated.search(QUERIES[0], top_n=None, min_probability=least).results
    assert [one.doc_id for one in kept] == [one.doc_id for one in all_of_them[:5]]
    first = calibrated.search(QUERIES[0], top_n=2, first_stage_weight=50.0, min_probability=least).results
    by_weight = calibrated.search(QUERIES[0], top_n=None, first_stage_weight=50.0).results
    assert [one.doc_id for one in first] == [one.doc_id for one in by_weight if one.probability >= least][:2]
    ids = [one.doc_id for one in all_of_them]
    assert len(calibrated.rerank(QUERIES[0], ids, min_probability=least).results) == 5


def test_auto_is_the_weight_that_was_fitted_for_the_chunk_size(calibrated: PassageIndex) -> None:
    def order(weight: object, chunk_size: int) -> list[str]:
        found = calibrated.search(QUERIES[0], top_n=None, first_stage_weight=weight, chunk_size=chunk_size)
        return [one.doc_id for one in found.results]

    assert order("auto", 4) == order(3.0, 4) != order(0.0, 4)
    assert order("auto", 8) == order(0.0, 8)


def test_what_takes_a_calibration_is_refused_without_one(calibrated: PassageIndex, index: PassageIndex) -> None:
    with pytest.raises(UsageError, match=r"min_probability: .* at chunk size 16 \(at: 4, 8\)"):
        calibrated.search(QUERIES[0], chunk_size=16, min_probability=0.5)
    with pytest.raises(UsageError, match="fitted for the first stage fused, and bm25 was asked for"):
        calibrated.search(QUERIES[0], first_stage="bm25", first_stage_weight="auto")
    with pytest.raises(UsageError, match='first_stage_weight "auto"'):
        index.search(QUERIES[0], first_stage_weight="auto")
    with pytest.raises(UsageError, match="min_probability"):
        index.rerank(QUERIES[0], ["d1"], min_probability=0.5)
    assert index.search(QUERIES[0]).results[0].probability is None


@pytest.mark.parametrize("least", [-0.1, 1.1, True, "0.5"])
def test_a_least_probability_that_is_none_is_refused(calibrated: PassageIndex, least: object) -> None:
    with pytest.raises(UsageError, match=r"min_probability is .*expected a number from 0 to 1"):
        calibrated.search(QUERIES[0], min_probability=least)


def test_another_decoder_on_trial_has_no_probabilities(
    calibrated: PassageIndex, mini_folder: Path, tmp_path: Path
) -> None:
    tuned = with_other_decoder(mini_folder, tmp_path / "tuned")
    with PassageIndex.open(calibrated.generation.folder.parent.parent, device="cpu", decoder=str(tuned)) as trial:
        assert trial.calibration is None
