"""A text cache that is killed, cut off or refused opens, with whole records. `make torture` does it at every point."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest

from tests.torture.cache_points import (
    ANSWER,
    STARTS,
    Cached,
    cache_cuts,
    cut_cache,
    kill_cache,
    mix_cache,
    mixed_cuts,
    refuse_cache,
    undisturbed_cache,
)
from tests.torture.killing import Tally, kill_points
from tests.torture.pool import Pool
from tests.torture.refusing import refusals
from tests.torture.sampling import spread


@pytest.fixture(scope="module", params=STARTS)
def valid(request: pytest.FixtureRequest, pool: Pool) -> Iterator[Cached]:
    yield undisturbed_cache(pool.workers[0], pool.folder / "cache", request.param)
    shutil.rmtree(pool.folder / "cache")


def test_a_killed_cache_holds_what_it_held_at_some_moment_and_leaves_nothing_behind(pool: Pool, valid: Cached):
    tally = Tally()
    for points, check in (
        (kill_points(valid.calls), kill_cache),
        (cache_cuts(valid), cut_cache),
        (mixed_cuts(valid), mix_cache),
    ):
        some = spread(list(points), 3)[:2]  # the last one leaves what an undisturbed run does
        pool.each(some, lambda worker, folder, one, check=check: check(worker, folder, valid, one, tally))
    assert tally.problems == []
    assert tally.points == 6


def test_answers_go_on_where_the_disk_refuses_and_caching_is_off_with_one_warning(pool: Pool):
    tally, folder = Tally(), pool.folder / "refused-cache"
    valid = undisturbed_cache(pool.workers[0], folder, "new", ANSWER)
    some = spread(list(refusals(valid.calls)), 4)
    pool.each(some, lambda worker, folder, fault: refuse_cache(worker, folder, valid, fault, tally))
    shutil.rmtree(folder)
    assert tally.problems == []
    assert tally.points == 4
