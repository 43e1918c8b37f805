"""What changing an index costs beside building it: reindex with a part changed, add, delete, recode, gc.

    python -m benchmarks.reindex [--corpus CORPUS] [--changed 0.01] [--passages N] [--folder DIR] [--model tiny]
        [--codec fp16] [--chunk-size 4] [--threads N]

CORPUS is what `kalm-cache index` takes; the bundled demo's by default. Builds an index of it in an empty folder, and
then, each time from that state, does one thing to it. Seconds are those of the job, its models being loaded. Prints one
JSON line for each measurement and then one Markdown table; progress goes to stderr.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.timing import emit, exit_code, markdown
from indexer.build.counts import BuildCounts
from indexer.build.index_job import load_encoders, run_index_job
from indexer.change.add_delete import add_passages, delete_passages
from indexer.change.gc import collect_garbage
from indexer.change.reindex import run_reindex
from indexer.change.rollback import roll_back
from indexer.corpus import CorpusLine, RejectedLine, read_corpus
from kalm_cache.passage import Passage
from kalm_cache.settings import Settings, load_settings

DEMO = Path(__file__).parent.parent / "kalm_cache" / "bundled" / "demo" / "corpus.jsonl.zst"
Lines = list[CorpusLine | RejectedLine]
Row = dict[str, Any]


class Seconds(NamedTuple):
    """By the clock on the wall, and of this process alone, which other processes do not lengthen."""

    wall: float
    cpu: float


class Bench:
    """One corpus, one set of models, and an index of it that every measurement starts from."""

    def __init__(self, args: argparse.Namespace, folder: Path) -> None:
        self.settings = load_settings(model=args.model, codec=args.codec, chunk_size=args.chunk_size, device="cpu")
        self.encoders = load_encoders(self.settings)
        accepted = (line for line in read_corpus(args.corpus) if isinstance(line, CorpusLine))
        self.lines: Lines = list(islice(accepted, args.passages))
        self.step = max(1, round(1 / args.changed))
        self.built, self.index = folder / "built", folder / "index"

    def rows(self) -> Iterable[Row]:
        """Every measurement."""
        seconds, report = self._timed(lambda: self._build(self.built))
        full = seconds
        yield _row("full build", seconds, full, report) | self._of_all()
        for name, act in self._acts().items():
            shutil.rmtree(self.index, ignore_errors=True)
            shutil.copytree(self.built, self.index)
            if name in ("rollback", "gc, deleted purged"):
                delete_passages(self._some_ids(), self.index)
            seconds, report = self._timed(act)
            yield _row(name, seconds, full, report) | self._of_all()

    def _acts(self) -> dict[str, Callable[[], Any]]:
        percent, edited = f"{100 / self.step:g}%", self._edited()
        int4 = self.settings.model_copy(update={"codec": "int4"})
        return {
            f"reindex, {percent} edited": lambda: self._reindex(edited),
            "reindex, nothing changed": lambda: self._reindex(self.lines),
            "reindex, recoded to int4": lambda: self._reindex(self.lines, int4),
            f"add, {percent} edited": lambda: self._add(edited[:: self.step]),
            f"delete {percent}": lambda: delete_passages(self._some_ids(), self.index),
            "rollback": lambda: roll_back(self.index),
            "gc, deleted purged": lambda: collect_garbage(self.index),
        }

    def _build(self, folder: Path) -> Any:
        options: Any = {"on_reject": _ignore, "on_progress": _show}
        return run_index_job(self.lines, folder, self.settings, self.encoders, **options)

    def _reindex(self, lines: Lines, settings: Settings | None = None) -> Any:
        encoders = self.encoders if settings is None else load_encoders(settings)
        options: Any = {"on_reject": _ignore, "on_progress": _show}
        return run_reindex(lines, self.index, settings or self.settings, encoders, **options)

    def _add(self, lines: Lines) -> Any:
        options: Any = {"on_reject": _ignore, "on_progress": _show}
        return add_passages(lines, self.index, self.settings, self.encoders, **options)

    def _edited(self) -> Lines:
        """The corpus with every `step`th text changed by a word, so that as much has to be encoded as was."""
        return [_edit(line) if i % self.step == 0 else line for i, line in enumerate(self.lines)]

    def _some_ids(self) -> list[str]:
        return [line.passage.doc_id for line in self.lines[:: self.step] if isinstance(line, CorpusLine)]

    def _timed(self, act: Callable[[], Any]) -> tuple[Seconds, Any]:
        started = Seconds(time.perf_counter(), time.process_time())
        report = act()
        return Seconds(time.perf_counter() - started.wall, time.process_time() - started.cpu), report

    def _of_all(self) -> Row:
        return {"corpus_passages": len(self.lines), "codec": self.settings.codec}


def _row(name: str, seconds: Seconds, full: Seconds, report: Any) -> Row:
    said = {key: value for key, value in asdict(report).items() if isinstance(value, int | float | str)}
    return {
        "operation": name,
        "seconds": round(seconds.wall, 4),
        "cpu_seconds": round(seconds.cpu, 4),
        "speedup": round(full.wall / seconds.wall, 1),
        "cpu_speedup": round(full.cpu / seconds.cpu, 1),
        "report": said,
    }


def _edit(line: CorpusLine | RejectedLine) -> CorpusLine | RejectedLine:
    assert isinstance(line, CorpusLine)
    return CorpusLine(Passage(line.passage.doc_id, f"{line.passage.text} edited"), line.location)


def table(rows: list[Row]) -> str:
    """Markdown."""
    columns = ["seconds", "cpu_seconds", "speedup", "cpu_speedup"]
    lines = [[row["operation"], *(f"{row[name]:,.3f}".rstrip("0").rstrip(".") for name in columns)] for row in rows]
    return markdown(["operation", *(name.replace("_", " ") for name in columns)], lines)


def _ignore(line: RejectedLine) -> None:
    """A line that cannot be used is not part of what is measured."""


def _show(progress: BuildCounts) -> None:
    print(f"\r{progress.done} passages", end="", file=sys.stderr)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", default=str(DEMO))
    parser.add_argument("--changed", type=float, default=0.01, help="the part of the texts that is edited or deleted")
    parser.add_argument("--passages", type=int, help="only the first so many of the corpus")
    parser.add_argument("--folder", type=Path, help="where the indexes go, an empty folder; a temporary one by default")
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--codec", default="fp16")
    parser.add_argument("--chunk-size", type=int, default=4)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    return parser.parse_args()


def run(args: argparse.Namespace) -> None:
    """Measure, and print what was found."""
    torch.set_num_threads(args.threads)
    rows = []
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        for row in Bench(args, Path(folder)).rows():
            print(file=sys.stderr)
            emit(row)
            rows.append(row)
    print(f"\n{table(rows)}")


def main() -> int:
    """Exit code: 0, or that of the error."""
    return exit_code(lambda: run(parse_arguments()))


if __name__ == "__main__":
    sys.exit(main())
