"""Files that somebody sent, mangled: every command ends in a line or in the right answer."""

from __future__ import annotations

import shutil

from tests.torture.killing import PREPARE, result_of
from tests.torture.pool import Pool
from tests.torture.strangers import StrangerTally, batches_of_seeds, receive

EXAMPLES, SEED = 25, 1


def test_mangled_files_end_in_one_line_or_in_the_right_answer(pool: Pool):
    start = pool.folder / "sent-start"
    start.mkdir()
    result_of(pool.workers[0].run(PREPARE, name="gc of deleted", index=start))
    tally = StrangerTally()
    pool.each(
        batches_of_seeds(SEED, EXAMPLES),
        lambda worker, folder, seeds: receive(worker, folder, start, pool.folder / "models", seeds, tally, whole=False),
    )
    shutil.rmtree(start)
    assert tally.problems == []
    assert tally.points == EXAMPLES
    assert sum(count for exit_code, count in tally.exits.items() if not exit_code.endswith(" 0")) > EXAMPLES // 2
