"""Operations that are killed, or lose their power, lose nothing. `make torture` does it at every point."""

from __future__ import annotations

import shutil

import pytest

from tests.torture.killing import Tally, Undisturbed, cut_power, kill, kill_points, power_cuts, undisturbed
from tests.torture.pool import Pool
from tests.torture.sampling import spread
from tests.torture.scenarios import SCENARIOS

KILLS, CUTS = 6, 2  # of each scenario
# left out here, as others do much of the same
ALIKE = {
    "rebuild",
    "recode",
    "add to deltas",
    "delete from deltas",
    "fold",
    "fold after a kill",
    "gc",
    "gc after a killed gc's end",
}


def sweep(pool: Pool, valid: Undisturbed, kills: int, cuts: int) -> Tally:
    tally = Tally()
    points = spread(list(kill_points(valid.calls)), kills)
    pool.each(points, lambda worker, folder, fault: kill(worker, folder, valid, fault, tally))
    left = spread(list(power_cuts(valid)), cuts)
    pool.each(left, lambda worker, folder, cut: cut_power(worker, folder, valid, cut, tally))
    shutil.rmtree(pool.folder / valid.name)
    return tally


@pytest.mark.parametrize("name", [name for name in SCENARIOS if name not in ALIKE])
def test_a_killed_operation_leaves_the_old_index_or_the_new_one_and_goes_on(pool: Pool, name: str):
    tally = sweep(pool, undisturbed(pool.workers[0], name, pool.folder), KILLS, CUTS)
    assert tally.problems == []
    assert tally.points >= KILLS


def test_a_build_that_does_not_sync_is_found_out_by_power_cuts(pool: Pool):
    tally = sweep(pool, undisturbed(pool.workers[0], "build without syncing", pool.folder), kills=0, cuts=40)
    assert tally.problems


def test_a_rebuild_that_writes_over_files_is_found_out_by_kills(pool: Pool):
    valid = undisturbed(pool.workers[0], "rebuild in place", pool.folder)
    torn = [point for point in kill_points(valid.calls) if valid.calls[point.nth - 1].path == "CURRENT"]
    tally = Tally()
    pool.each(torn, lambda worker, folder, fault: kill(worker, folder, valid, fault, tally))
    shutil.rmtree(pool.folder / valid.name)
    assert tally.problems
