"""All torture of the text cache: kills, cuts and refusals of two starts, and two writers of which one is killed."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from typing import Any

from tests.torture.cache_points import (
    ANSWER,
    STARTS,
    USE,
    Cached,
    cache_cuts,
    cut_cache,
    kill_cache,
    kill_writers,
    mix_cache,
    mixed_cuts,
    refuse_cache,
    undisturbed_cache,
)
from tests.torture.killing import Tally, kill_points
from tests.torture.pool import Pool
from tests.torture.refusing import refusals
from tests.torture.sampling import spread

REFUSALS_EACH = 300  # of a start and a step
Report = Callable[[str, str, int, list[str], float, dict[str, int]], None]


def torture_cache(pool: Pool, every: int, kills: int, seed: int, report: Report) -> None:
    """Everything; `every` nth point of the sweeps. `report` gets what, name, points, problems, seconds and kinds."""
    for name in STARTS:
        valid = undisturbed_cache(pool.workers[0], pool.folder / "cache", name)
        sweep(pool, "cache_kills", valid, list(kill_points(valid.calls))[::every], kill_cache, report)
        sweep(pool, "cache_cuts", valid, list(cache_cuts(valid))[::every], cut_cache, report)
        sweep(pool, "cache_mixed_cuts", valid, list(mixed_cuts(valid))[::every], mix_cache, report)
        shutil.rmtree(pool.folder / "cache")
        for step in (ANSWER, USE):
            valid = undisturbed_cache(pool.workers[0], pool.folder / "cache", name, step)
            points = spread(list(refusals(valid.calls)), REFUSALS_EACH // every)
            sweep(pool, "cache_refusals", valid, points, refuse_cache, report)
            shutil.rmtree(pool.folder / "cache")
    tally, started, folder = Tally(), time.monotonic(), pool.folder / "writers"
    folder.mkdir()
    kill_writers(pool.workers[0], folder, kills, seed, tally)
    shutil.rmtree(folder)
    report("cache_writers", "one of two killed", tally.points, tally.problems, time.monotonic() - started, {})


def sweep(pool: Pool, what: str, valid: Cached, points: Sequence[Any], check: Any, report: Report) -> None:
    """Check every point."""
    tally, started = Tally(), time.monotonic()
    pool.each(points, lambda worker, folder, point: check(worker, folder, valid, point, tally))
    report(what, valid.name, tally.points, tally.problems, time.monotonic() - started, dict(tally.kinds))
