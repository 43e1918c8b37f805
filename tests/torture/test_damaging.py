"""Damaged files: verify names them, and no query gives another score or text without saying so."""

from __future__ import annotations

import shutil

from tests.torture.damaging import DamageTally, batches, damage, draw, whole_index
from tests.torture.killing import PREPARE, result_of
from tests.torture.pool import Pool

DAMAGES, SEED = 200, 1


def test_random_damage_is_named_or_harmless_and_no_answer_changes_silently(pool: Pool):
    start = pool.folder / "damaged"
    start.mkdir()
    result_of(pool.workers[0].run(PREPARE, name="gc of deleted", index=start))
    valid, tally = whole_index(pool.workers[0], start), DamageTally()
    some = list(batches(draw(start, DAMAGES, SEED)))
    pool.each(some, lambda worker, folder, batch: damage(worker, folder, start, valid, batch, tally))
    shutil.rmtree(start)
    assert tally.problems == []
    assert tally.points == DAMAGES
    assert tally.detected + tally.harmless == DAMAGES
