"""Building on Ray, measured: the real steps, and every row of the tables."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.benchmarks.conftest import Run


@pytest.mark.slow
def test_encoders_and_the_driver_are_measured(run_benchmark: Run) -> None:
    pytest.importorskip("ray")
    from benchmarks.scale_out import build, driver

    rows, table = run_benchmark(build.main, "--passages", "200", "--encoders", "1", "--shards", "2")
    assert rows[0]["rate"] > 0
    assert table.count("| 1 |") == 1
    rows, table = run_benchmark(driver.main, "--sizes", "300", "--shards", "2", "--encoders", "1")
    assert all(rows[0][phase]["peak_own_bytes"] > 0 for phase in driver.PHASES)
    assert 0 < rows[0]["receipts_bytes"] < rows[0]["manifest_bytes"] * 2
    assert "| 300 |" in table


def test_one_command_runs_every_part() -> None:
    from benchmarks.scale_out import __main__ as command

    modules = {file.stem for file in Path(command.__file__).parent.glob("*.py")}
    assert set(command.PARTS) == modules - {"__init__", "__main__", "slept"}
