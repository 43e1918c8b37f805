"""Disks that are full, broken or read-only, missing locks and odd clocks: a clear error, and nothing lost."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest

from tests.torture.killing import Tally, Undisturbed, undisturbed
from tests.torture.pool import Pool
from tests.torture.refusing import JUMPS, NO_LOCKS, jump_clock, refusals, refuse, refuse_locks
from tests.torture.sampling import spread

REFUSALS = 8  # of each scenario
CHOSEN = ("build", "reindex", "add", "gc of deleted")


@pytest.fixture(scope="module", params=CHOSEN)
def valid(request: pytest.FixtureRequest, pool: Pool) -> Iterator[Undisturbed]:
    name = request.param
    yield undisturbed(pool.workers[0], name, pool.folder)
    shutil.rmtree(pool.folder / name)


def test_a_refusing_disk_is_named_and_loses_nothing(pool: Pool, valid: Undisturbed):
    tally = Tally()
    points = spread(list(refusals(valid.calls)), REFUSALS)
    pool.each(points, lambda worker, folder, fault: refuse(worker, folder, valid, fault, tally))
    assert tally.problems == []


def test_a_file_system_without_locks_is_refused(pool: Pool, valid: Undisturbed):
    tally = Tally()
    pool.each(NO_LOCKS, lambda worker, folder, error: refuse_locks(worker, folder, valid, error, tally))
    assert tally.problems == []


def test_a_clock_that_jumps_changes_nothing(pool: Pool, valid: Undisturbed):
    tally = Tally()
    pool.each(JUMPS, lambda worker, folder, seconds: jump_clock(worker, folder, valid, seconds, tally))
    assert tally.problems == []
