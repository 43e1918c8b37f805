from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.scale import __main__ as scale
from benchmarks.scale import first_stage as scale_first_stage
from benchmarks.scale import store as scale_store
from benchmarks.scale.steps import latencies_ms, run_step
from indexer.integrity.verify import verify_index
from tests.benchmarks.conftest import Run


@pytest.mark.slow
def test_every_step_runs_and_the_tables_hold_every_size(run_benchmark: Run, tmp_path: Path) -> None:
    rows, tables = run_benchmark(scale.main, "--parts", "first_stage", "--sizes", "200,300", "--folder", tmp_path)
    steps = [(row["passages"], row["step"]) for row in rows if "step" in row]
    assert steps == [(size, step) for size in (200, 300) for step in scale_first_stage.PART.steps]
    assert all(row["peak_own_bytes"] > 0 for row in rows if "step" in row)
    assert tables.count("| 200 |") == tables.count("| 300 |") == len(scale_first_stage.PART.tables)


@pytest.mark.slow
def test_the_store_is_built_by_the_index_job_and_read_back(run_benchmark: Run, tmp_path: Path) -> None:
    rows, tables = run_benchmark(scale.main, "--parts", "store", "--sizes", "300", "--folder", tmp_path)
    built, looked_up = (row for row in rows if "step" in row)
    assert (built["step"], looked_up["step"]) == ("build", "look_up")
    assert built["payload_bytes"] == 300 * 4 * 160 * 2  # fp16
    assert verify_index(tmp_path / "store" / "300").ok
    assert looked_up["open_ms"] > 0
    assert tables.count("| 300 |") == len(scale_store.PART.tables)


def test_ids_are_distinct_and_in_no_order() -> None:
    ids = [scale_store.doc_id_of(ordinal) for ordinal in range(5000)]
    assert len(set(ids)) == 5000
    assert ids != sorted(ids)


def test_synthetic_passages_are_the_same_every_time_and_differ_by_batch() -> None:
    assert np.array_equal(scale_first_stage.vectors(3, 50), scale_first_stage.vectors(3, 50))
    assert not np.array_equal(scale_first_stage.vectors(3, 50), scale_first_stage.vectors(4, 50))
    np.testing.assert_allclose(np.linalg.norm(scale_first_stage.query_vectors(), axis=1), 1, rtol=1e-5)
    texts = scale_first_stage.texts(3, 50)
    assert texts == scale_first_stage.texts(3, 50)
    assert len(texts) == 50
    assert all(len(text.split()) >= 3 for text in texts)


def test_percentiles_are_of_the_calls_after_the_warm_up() -> None:
    calls: list[int] = []
    assert set(latencies_ms(20, calls.append)) == {"p50_ms", "p95_ms", "p99_ms"}
    assert calls == [0, 1, *range(20)]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_memory_that_a_step_held_only_in_its_midst_is_counted() -> None:
    def step(_: object) -> dict[str, object]:
        import time

        held = np.ones(100 * (1 << 20), np.uint8)
        time.sleep(0.2)
        return {"held": held.nbytes}

    row = run_step(step, None)  # type: ignore[arg-type]
    assert row["peak_own_bytes"] >= row["held"]
