"""A calibration in the manifest: what keeps it, what drops it, and whose it must be."""

from __future__ import annotations

from pathlib import Path

import pytest

from indexer.build.index_job import Encoders
from indexer.change.add_delete import delete_passages
from indexer.change.gc import collect_garbage
from indexer.change.rollback import roll_back
from indexer.change.set_calibration import set_calibration
from indexer.change.set_decoder import set_decoder
from kalm_cache.calibration import FittedCalibration
from kalm_cache.errors import IndexMismatchError
from kalm_cache.generations.generation import open_current
from kalm_cache.settings import Settings
from tests.calibrated import calibration, curve
from tests.checkpoints import with_other_decoder
from tests.indexer.changes import add, reindex
from tests.indexer.jobs import passing
from tests.indexes import TEXTS


@pytest.fixture
def fitted(encoders: Encoders) -> FittedCalibration:
    return calibration(curve(4), curve(8, weight=None), decoder=encoders.decoder.digest)


def kept(index: Path) -> FittedCalibration | None:
    return open_current(index).manifest.calibration


def test_a_calibration_is_published_over_the_same_files(index: Path, fitted: FittedCalibration) -> None:
    before = open_current(index)
    assert set_calibration(index, fitted).name == "000002"
    after = open_current(index)
    assert after.manifest.calibration == fitted
    assert after.manifest.operation == "calibrate"
    states = "shards/00000/states.lmdb"
    assert (after.folder / states).stat().st_ino == (before.folder / states).stat().st_ino
    assert passing(index)
    roll_back(index)
    assert kept(index) is None


def test_changes_of_the_passages_keep_it(
    index: Path, settings: Settings, encoders: Encoders, fitted: FittedCalibration
) -> None:
    set_calibration(index, fitted)
    add(index, settings, encoders, {"new": "a new passage"})
    delete_passages(["d1"], index)
    assert kept(index) == fitted
    collect_garbage(index, 0)
    assert kept(index) == fitted
    reindex(index, settings, encoders, TEXTS)
    assert kept(index) == fitted


def test_another_decoder_drops_it(index: Path, fitted: FittedCalibration, mini_folder: Path, tmp_path: Path) -> None:
    set_calibration(index, fitted)
    set_decoder(index, str(with_other_decoder(mini_folder, tmp_path / "tuned")))
    assert kept(index) is None
    with pytest.raises(IndexMismatchError, match="run kalm-cache calibrate again"):
        set_calibration(index, fitted)
