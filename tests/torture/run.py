"""Everything that is torture, with its counts: `make torture`, or a part of it.

    python -m tests.torture.run [--part kills cuts refusals cache damages strangers commands swaps]
        [--scenario NAME …] [--cache-kills 50] [--damages 10000] [--strangers 1000] [--command-kills 200]
        [--swaps 1000] [--every 1] [--workers 2] [--seed 0] [--json FILE]

Prints a line for each sweep, every problem, and at the end all counts as JSON. Exit code 1 when anything was lost.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.torture.cache_run import torture_cache
from tests.torture.command_refusals import refuse_commands
from tests.torture.damaging import DamageTally, batches, damage, draw, whole_index
from tests.torture.killing import (
    PREPARE,
    Tally,
    Undisturbed,
    cut_power,
    kill,
    kill_points,
    power_cuts,
    result_of,
    undisturbed,
)
from tests.torture.pool import Pool, open_pool
from tests.torture.random_kills import KillTally, kill_at_random
from tests.torture.refusing import JUMPS, NO_LOCKS, jump_clock, race, refusals, refuse, refuse_locks
from tests.torture.sampling import spread
from tests.torture.scenarios import SCENARIOS
from tests.torture.strangers import StrangerTally, batches_of_seeds, receive
from tests.torture.swapping import swap

PARTS = ("kills", "cuts", "refusals", "cache", "damages", "strangers", "commands", "swaps")
AT_EVERY_CALL = ("build", "reindex", "add", "delete", "gc", "gc of deleted", "rollback")
OTHERS_EVERY = 3  # of the other scenarios, which do much of the same
REFUSALS_EACH = 100  # of a scenario; all of them are some thousand
RACES = 5
DAMAGED = ("gc of deleted", "rollback")  # an index of deltas, and one that one can roll back


class Run:
    """One run of everything, and its counts so far."""

    def __init__(self, pool: Pool, options: argparse.Namespace) -> None:
        self.pool, self.options = pool, options
        self.counts: dict[str, Any] = {
            "kill_points": 0,
            "power_cuts": 0,
            "refusals": 0,
            "damages": 0,
            "command_kills": 0,
        }
        self.problems: list[str] = []

    def go(self) -> None:
        """Every part that was asked for."""
        for name in (
            (self.options.scenario or SCENARIOS) if set(self.options.part) - {"swaps", "strangers", "cache"} else ()
        ):
            self._scenario(undisturbed(self.pool.workers[0], name, self.pool.folder))
            shutil.rmtree(self.pool.folder / name)
        if "cache" in self.options.part:
            torture_cache(self.pool, self.options.every, self.options.cache_kills, self.options.seed, self._report)
        if "damages" in self.options.part:
            for name in DAMAGED:
                self._damages(name, self.options.damages // len(DAMAGED))
        if "strangers" in self.options.part:
            self._strangers()
        if "commands" in self.options.part:
            self._commands()
        if "swaps" in self.options.part:
            self._swaps()

    def _scenario(self, valid: Undisturbed) -> None:
        every = self.options.every * (1 if valid.name in AT_EVERY_CALL else OTHERS_EVERY)
        if "kills" in self.options.part:
            points = list(kill_points(valid.calls))[::every]
            tally = self._sweep("kill_points", valid, points, kill)
            self._add("passages_encoded_twice", tally.encoded_twice)
        if "cuts" in self.options.part:
            self._sweep("power_cuts", valid, list(power_cuts(valid))[::every], cut_power)
        if "refusals" in self.options.part:
            points = list(refusals(valid.calls))
            self._sweep("refusals", valid, spread(points, REFUSALS_EACH // self.options.every), refuse)
            self._sweep("lock_refusals", valid, NO_LOCKS, refuse_locks)
            self._sweep("clock_jumps", valid, JUMPS, jump_clock)
            self._races(valid)

    def _sweep(self, what: str, valid: Undisturbed, points: Iterable[Any], check: Any) -> Tally:
        tally, started, points = Tally(), time.monotonic(), list(points)
        self.pool.each(points, lambda worker, folder, point: check(worker, folder, valid, point, tally))
        self._report(what, valid.name, tally.points, tally.problems, time.monotonic() - started, dict(tally.kinds))
        return tally

    def _races(self, valid: Undisturbed) -> None:
        if len(self.pool.workers) < 2:
            return
        tally, started = Tally(), time.monotonic()
        for _ in range(RACES):
            folder = self.pool.folder / "race"
            folder.mkdir()
            race(self.pool.workers[0], self.pool.workers[1], folder, valid, tally)
            shutil.rmtree(folder)
        self._report("races", valid.name, tally.points, tally.problems, time.monotonic() - started, dict(tally.kinds))

    def _damages(self, name: str, count: int) -> None:
        start = self.pool.folder / "damaged"
        start.mkdir()
        result_of(self.pool.workers[0].run(PREPARE, name=name, index=start))
        valid = whole_index(self.pool.workers[0], start)
        tally, started = DamageTally(), time.monotonic()
        drawn = draw(start, count, self.options.seed)
        self.pool.each(
            list(batches(drawn)), lambda worker, folder, some: damage(worker, folder, start, valid, some, tally)
        )
        shutil.rmtree(start)
        for what in ("detected", "harmless", "deaths"):
            self._add(f"damages_{what}", getattr(tally, what))
        for what in ("files", "kinds", "queries"):
            for key, times in getattr(tally, what).items():
                counted = self.counts.setdefault(f"damaged_{what}", {})
                counted[key] = counted.get(key, 0) + times
        self._report(
            "damages", f"before {name}", tally.points, tally.problems, time.monotonic() - started, dict(tally.queries)
        )

    def _strangers(self) -> None:
        start, models = self.pool.folder / "sent-start", self.pool.folder / "models"
        start.mkdir()
        result_of(self.pool.workers[0].run(PREPARE, name=DAMAGED[0], index=start))
        tally, started = StrangerTally(), time.monotonic()
        self.pool.each(
            batches_of_seeds(self.options.seed, self.options.strangers),
            lambda worker, folder, seeds: receive(worker, folder, start, models, seeds, tally, whole=True),
        )
        shutil.rmtree(start)
        self.counts["strangers_files"] = dict(tally.files)
        kinds = dict(sorted(tally.exits.items()))
        self._report("strangers", "five commands each", tally.points, tally.problems, time.monotonic() - started, kinds)

    def _commands(self) -> None:
        tally, started, workers = KillTally(), time.monotonic(), len(self.pool.workers)
        seeds = [self.options.seed + i for i in range(workers)]
        models, kills = self.pool.folder / "models", -(-self.options.command_kills // workers)
        self.pool.each(seeds, lambda worker, folder, seed: kill_at_random(worker, folder, models, kills, seed, tally))
        self._report(
            "command_kills", "kalm-cache", tally.kills, tally.problems, time.monotonic() - started, dict(tally.commands)
        )
        refused, started = Tally(), time.monotonic()
        refuse_commands(self.pool, refused)
        self._report("command_refusals", "kalm-cache", refused.points, refused.problems, time.monotonic() - started, {})

    def _swaps(self) -> None:
        folder, models, started = self.pool.folder / "swaps", self.pool.folder / "models", time.monotonic()
        folder.mkdir()
        tally = swap(folder, models / "model", models / "embedder", self.options.swaps)
        for what in ("answers", "published"):
            self._add(f"swaps_{what}", getattr(tally, what))
        kinds = dict(tally.generations.most_common(4))
        self._report(
            "swaps", f"{tally.answers} answers", tally.swaps, tally.problems, time.monotonic() - started, kinds
        )

    def _report(
        self, what: str, name: str, points: int, problems: list[str], seconds: float, kinds: dict[str, int]
    ) -> None:
        self._add(what, points)
        self.problems += problems
        print(
            f"{what:<16} {name:<32} {points:>6} points {seconds:>7.1f} s  {len(problems)} problems  {kinds}", flush=True
        )
        for problem in problems[:20]:
            print(f"    {problem}", flush=True)

    def _add(self, what: str, count: int) -> None:
        self.counts[what] = self.counts.get(what, 0) + count


def main() -> None:
    """Run what the command line asks for."""
    options = _options()
    started = time.monotonic()
    with open_pool(options.workers) as pool:
        run = Run(pool, options)
        run.go()
    counts = run.counts | {"lost": len(run.problems), "seconds": round(time.monotonic() - started, 1)}
    if options.json:
        options.json.write_text(json.dumps(counts | {"problems": run.problems}, indent=2) + "\n")
    print(json.dumps(counts))
    print("nothing was lost" if not run.problems else f"{len(run.problems)} problems")
    sys.exit(bool(run.problems))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.torture.run", description=__doc__)
    parser.add_argument("--part", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--scenario", nargs="*", choices=sorted(SCENARIOS), default=[])
    parser.add_argument("--cache-kills", type=int, default=50)
    parser.add_argument("--damages", type=int, default=10_000)
    parser.add_argument("--strangers", type=int, default=1000)
    parser.add_argument("--command-kills", type=int, default=200)
    parser.add_argument("--swaps", type=int, default=1000)
    parser.add_argument("--every", type=int, default=1, help="take every nth point of a sweep only")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, default=None)
    return parser.parse_args()


if __name__ == "__main__":
    main()
