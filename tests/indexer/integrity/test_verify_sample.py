"""Samples encoded again: what is measured, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from indexer.build.index_job import Encoders
from indexer.integrity.verify_sample import kendall, verify_sample
from kalm_cache.errors import UsageError
from kalm_cache.settings import Settings
from tests.indexes import TEXTS, build, settings_for


def scores(*values: float) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    return np.array(values, np.float64)


def test_kendalls_tau_counts_pairs_in_the_same_order_against_those_in_another():
    assert kendall(scores(1, 2, 3), scores(10, 20, 30)) == 1
    assert kendall(scores(1, 2, 3), scores(3, 2, 1)) == -1
    assert kendall(scores(1, 2, 3), scores(1, 3, 2)) == pytest.approx(1 / 3)
    assert kendall(scores(1, 1, 2), scores(1, 2, 3)) == pytest.approx(2 / np.sqrt(2 * 3))  # tau-b: a tie in one
    assert kendall(scores(1), scores(5)) == 1


def test_states_without_loss_do_not_drift(tmp_path: Path, mini_folder: Path, embedder_folder: Path):
    settings = settings_for(mini_folder, embedder_folder, codec="fp32")
    build(tmp_path / "index", settings, TEXTS)
    report = verify_sample(tmp_path / "index", 100, settings)
    assert (report.passages, report.queries) == (12, 8)
    assert report.margin_drift_max < 1e-3
    assert report.rank_agreement == 1
    assert report.state_error < 1e-5


def test_fewer_bits_drift_more(tmp_path: Path, mini_folder: Path, embedder_folder: Path):
    errors = []
    for codec in ("fp16", "int8", "int4", "int2"):
        settings = settings_for(mini_folder, embedder_folder, codec=codec)
        build(tmp_path / codec, settings, TEXTS)
        report = verify_sample(tmp_path / codec, 6, settings)
        assert (report.passages, report.queries) == (6, 6)
        errors.append(report.state_error)
    assert errors == sorted(errors)
    assert errors[0] < 1e-3 < errors[2]


def test_the_settings_at_hand_do_not_matter_those_of_the_index_do(
    tmp_path: Path, mini_folder: Path, embedder_folder: Path, settings: Settings, encoders: Encoders
):
    build(tmp_path / "index", settings_for(mini_folder, embedder_folder, codec="fp32", chunk_size=2), TEXTS)
    assert verify_sample(tmp_path / "index", 4, settings).margin_drift_max < 1e-3


def test_without_texts_there_is_nothing_to_encode(tmp_path: Path, mini_folder: Path, embedder_folder: Path):
    settings = settings_for(mini_folder, embedder_folder, store_text=False)
    build(tmp_path / "index", settings, TEXTS)
    with pytest.raises(UsageError, match="keeps none"):
        verify_sample(tmp_path / "index", 4, settings)
