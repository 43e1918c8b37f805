from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kalm_cache.first_stage.dense.spool import VectorSpool


def test_rows_and_batches_come_back_as_they_went_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kalm_cache.first_stage.dense.spool.BATCH_ROWS", 4)
    vectors = np.arange(30, dtype=np.float32).reshape(10, 3)
    with VectorSpool(tmp_path, 3) as spool:
        spool.append(np.array([7, 5, 2**40]), vectors[:3])
        spool.append(np.arange(0), vectors[:0])
        spool.append(np.arange(100, 107), vectors[3:])
        assert len(spool) == 10
        assert spool.ordinals.tolist() == [7, 5, 2**40, *range(100, 107)]
        assert [len(batch) for batch in spool.batches()] == [4, 4, 2]
        assert np.array_equal(np.concatenate(list(spool.batches())), vectors)
        for rows in ([], [0], [9], [3, 4], [0, 3, 4, 7, 8, 9]):
            assert np.array_equal(spool.rows(np.array(rows, np.int64)), vectors[rows])


def test_nothing_has_a_name_on_disk_so_a_killed_build_leaves_nothing(tmp_path: Path) -> None:
    with VectorSpool(tmp_path, 2) as spool:
        spool.append(np.arange(5), np.ones((5, 2), np.float32))
        assert list(tmp_path.iterdir()) == []
