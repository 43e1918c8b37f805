"""Additions of one passage each, thousands of them: what an index costs after 10, 100, 1,000 and 10,000.

    python -m benchmarks.adds [--adds 10000] [--unfolded 100] [--base 100] [--model tiny] [--folder DIR]

Every addition is `indexer.change.add_delete.add_passages`, which `kalm-cache add` calls, in one process on one thread,
with the models loaded once. `--unfolded`: so many additions to a second index for which nothing is folded, to compare
with. `descriptors` are those that an open index holds, counted in /proc; `open`, `first stage` (100 candidates) and
`search` (10 of them reranked) are medians, the models and the first search aside; `add` is the median of the additions
since the line before. Prints a Markdown table, after JSON with --json.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

import indexer.change.fold
from benchmarks.timing import emit, markdown, progress, short
from indexer.build.index_job import run_index_job
from indexer.change.add_delete import add_passages
from indexer.corpus import CorpusLine, RejectedLine
from indexer.models import Encoders, load_encoders
from kalm_cache import PassageIndex
from kalm_cache.generations.generation import open_current, published_names
from kalm_cache.passage import Passage
from kalm_cache.process.system import raise_open_files_limit
from kalm_cache.settings import Settings, load_settings

QUERY = "which ferry carries number 17 to the island"
REPEATS = 9
SUBJECTS = ("ferry", "bee", "glacier", "violin", "harbour", "comet", "orchard", "bridge")


@dataclass(frozen=True, slots=True)
class Cost:
    """What an index costs after so many additions."""

    folding: bool
    adds: int
    segments: int
    generations: int
    descriptors: int
    files: int
    mib: float
    open_ms: float
    first_stage_ms: float
    search_ms: float
    add_ms: float


def grow(
    folder: Path, adds: int, base: int, settings: Settings, encoders: Encoders, *, folding: bool
) -> Iterator[Cost]:
    """Build an index of `base` passages, and add so many, one by one; yields what it costs at each power of ten."""
    index = folder / ("folded" if folding else "unfolded")
    lines = [line(number) for number in range(-base, 0)]
    run_index_job(lines, index, settings, encoders, on_reject=_refuse, on_progress=lambda counts: None)
    with PassageIndex.open(index, device="cpu") as first:
        taken_ms: list[float] = []
        for number in range(adds):
            started = time.perf_counter()
            add_passages([line(number)], index, settings, encoders, on_reject=_refuse, on_progress=lambda counts: None)
            taken_ms.append((time.perf_counter() - started) * 1000)
            if number + 1 in (10, 100, 1_000, 10_000, adds):
                progress(f"{number + 1:,} additions, folding {'on' if folding else 'off'}")
                yield cost(index, first, number + 1, statistics.median(taken_ms), folding=folding)
                taken_ms.clear()


def line(number: int) -> CorpusLine | RejectedLine:
    """A passage of its own."""
    subject = SUBJECTS[number % len(SUBJECTS)]
    text = f"The {subject} number {number} is kept in house {number * 7 % 1013}, and its {subject} keeper counts it."
    return CorpusLine(Passage(f"passage-{number}", text), f"benchmark:{number}")


def cost(index: Path, opened: PassageIndex, adds: int, add_ms: float, *, folding: bool) -> Cost:
    """Measure an index as it is now, with the models of one that is open."""
    before = _descriptors()
    with PassageIndex.open(index, device="cpu", reuse_from=opened) as now:
        descriptors = _descriptors() - before
        now.search(QUERY, k=10)
        search_ms = _median_ms(lambda: now.search(QUERY, k=10))
        first_stage_ms = _median_ms(lambda: now.find(QUERY, 100))
    return Cost(
        folding=folding,
        adds=adds,
        segments=len(open_current(index).manifest.segments),
        generations=len(published_names(index)),
        descriptors=descriptors,
        files=len(list(index.rglob("*"))),
        mib=round(_bytes_of(index) / (1 << 20), 1),
        open_ms=_median_ms(lambda: PassageIndex.open(index, device="cpu", reuse_from=opened).close()),
        first_stage_ms=first_stage_ms,
        search_ms=search_ms,
        add_ms=add_ms,
    )


def _descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def _bytes_of(index: Path) -> int:
    stats = [path.stat() for path in index.rglob("*") if path.is_file()]
    return sum({stat.st_ino: stat.st_blocks * 512 for stat in stats}.values())


def _median_ms(work: Callable[[], object]) -> float:
    taken = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        work()
        taken.append((time.perf_counter() - started) * 1000)
    return statistics.median(taken)


def _refuse(rejected: RejectedLine) -> None:
    raise AssertionError(rejected)


def main() -> None:
    """Measures an index that folds, and one that does not."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adds", type=int, default=10_000)
    parser.add_argument("--unfolded", type=int, default=100)
    parser.add_argument("--base", type=int, default=100, help="passages before the first addition")
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--folder", type=Path, default=None, help="where the indexes are made; a temporary one")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    raise_open_files_limit()
    torch.set_num_threads(1)
    settings = load_settings(model=args.model, device="cpu")
    encoders, costs = load_encoders(settings), []
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        limit = indexer.change.fold.FOLD_BYTES
        for folding, adds in ((False, args.unfolded), (True, args.adds)):
            indexer.change.fold.FOLD_BYTES = limit if folding else 0
            if adds:
                costs += list(grow(Path(folder), adds, args.base, settings, encoders, folding=folding))
    if args.json:
        for one in costs:
            emit(asdict(one))
    header = ["folding", *("additions", "segments", "generations", "descriptors", "names on disk", "MiB on disk")]
    rows = [
        [
            *("on" if one.folding else "off", f"{one.adds:,}", one.segments, one.generations, one.descriptors),
            *(f"{one.files:,}", one.mib, *map(short, (one.open_ms, one.first_stage_ms, one.search_ms, one.add_ms))),
        ]
        for one in costs
    ]
    print(markdown([*header, "open ms", "first stage ms", "search ms", "add ms"], rows))


if __name__ == "__main__":
    main()
