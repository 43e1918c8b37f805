"""Tokens a second of a whole index job over those of its encoder alone: what reading, codec and store cost beside it.

    python -m benchmarks.checkpoints --shape nano --tokenizer kalm_cache/bundled/tiny --out DIR
    python -m benchmarks.index_job --model DIR [--corpus FILE] [--passages 1000] [--dtype auto] [--codec fp16] [--bm25]
        [--rounds 3]

In every round both do the same work, one after the other: the encoder computes the job's batches, whose tokens are made
before, and the job builds and publishes an index of the same passages in a new folder, from reading the corpus to the
manifest. 1 would say that all the rest is hidden behind the encoder. Prints one JSON line for the machine, one for each
round with the seconds and bytes of the job's stages, and a table of medians. The first round of each is not counted.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from benchmarks.encode import BUNDLED_CORPUS
from benchmarks.timing import emit, exit_code, machine, markdown, progress, short, significant
from indexer.build.batching import batch_by_tokens
from indexer.build.index_job import IndexReport, run_index_job
from indexer.build.plan import WINDOW
from indexer.corpus import CorpusLine, read_corpus
from indexer.models import Encoders, batch_tokens_of, load_encoders, on_all_gpus
from kalm_cache.model.precision import synchronise
from kalm_cache.model.prompts import Tokens
from kalm_cache.scoring.passage_side import PassageSide
from kalm_cache.settings import Settings, load_settings


@dataclass(frozen=True, slots=True)
class Round:
    """Seconds of the encoder alone, and what the job reports."""

    encoder_s: float
    job: IndexReport

    @property
    def ratio(self) -> float:
        """The job's tokens a second over the encoder's."""
        return self.encoder_s / self.job.seconds

    def to_json(self) -> dict[str, Any]:
        """One line."""
        tokens = self.job.tokens
        return {
            "benchmark": "index_job",
            "passages": self.job.passages,
            "tokens": tokens,
            "encoder_tokens_per_s": significant(tokens / self.encoder_s),
            "job_tokens_per_s": significant(tokens / self.job.seconds),
            "ratio": significant(self.ratio),
            "stage_seconds": self.job.stage_seconds,
            "stage_bytes": self.job.stage_bytes,
        }


def job_batches(lines: Sequence[CorpusLine], side: PassageSide, tokens: int) -> list[list[Tokens]]:
    """The batches of a job that stores none of these passages yet."""
    batches: list[list[Tokens]] = []
    for start in range(0, len(lines), WINDOW):
        window = side.tokenize([line.passage.text for line in lines[start : start + WINDOW]])
        batches += batch_by_tokens(window, length=lambda one: len(one.ids), budget_tokens=tokens, window=WINDOW)
    return batches


def measure(lines: Sequence[CorpusLine], settings: Settings, encoders: Encoders) -> Round:
    """One round: the encoder, then the job."""
    side = encoders.passage_side
    batches = job_batches(lines, side, batch_tokens_of(settings, side))
    started = time.perf_counter()
    for batch in batches:
        side.encode(batch)
    synchronise(side.device)
    encoder_s = time.perf_counter() - started
    with tempfile.TemporaryDirectory() as folder:
        job = run_index_job(
            *(iter(lines), Path(folder) / "index", settings, on_all_gpus(encoders, settings)),
            on_reject=lambda line: progress(f"rejected: {line}"),
            on_progress=lambda counts: None,
        )
    return Round(encoder_s, job)


def table(rounds: Sequence[Round]) -> str:
    """Medians: tokens a second, their ratio, and each stage's seconds and bytes."""
    jobs = [each.job for each in rounds]
    tokens = jobs[0].tokens
    rows = [
        ["encoder alone, tokens/s", f"{tokens / statistics.median(each.encoder_s for each in rounds):,.0f}", ""],
        ["index job, tokens/s", f"{tokens / statistics.median(job.seconds for job in jobs):,.0f}", ""],
        ["job ÷ encoder", short(statistics.median(each.ratio for each in rounds)), ""],
    ]
    for stage in jobs[0].stage_seconds:
        seconds = statistics.median(job.stage_seconds.get(stage, 0.0) for job in jobs)
        rows.append([f"{stage}, s, bytes", short(seconds), f"{jobs[0].stage_bytes.get(stage, 0):,}"])
    return f"\n{markdown(['', 'median', ''], rows)}"


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny", help="as kalm-cache takes it")
    parser.add_argument("--corpus", type=Path, default=BUNDLED_CORPUS, help="anything that kalm-cache index reads")
    parser.add_argument("--passages", type=int, default=1000, help="of the corpus, from its beginning")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--codec", default="fp16")
    parser.add_argument("--bm25", action="store_true", help="build BM25, too")
    parser.add_argument("--rounds", type=int, default=3)
    return parser.parse_args(arguments)


def run(args: argparse.Namespace) -> None:
    """Measure every round."""
    settings = load_settings(
        model=args.model, device=args.device, dtype=args.dtype, codec=args.codec, bm25=args.bm25, embedder="static"
    )
    encoders = load_encoders(settings)
    side = encoders.passage_side
    found = {"model": Path(args.model).name, "dtype": encoders.fingerprint.dtype, "codec": args.codec}
    emit({"benchmark": "index_job", **found, "batch_tokens": batch_tokens_of(settings, side)} | machine(side.device))
    lines = [line for line in islice(read_corpus(args.corpus), args.passages) if isinstance(line, CorpusLine)]
    rounds = []
    for number in range(args.rounds + 1):
        progress(f"round {number} of {args.rounds}" if number else "a round that is not counted")
        measured = measure(lines, settings, encoders)
        if number:
            rounds.append(measured)
            emit(measured.to_json())
    print(table(rounds))


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code of the project's errors."""
    args = parse_arguments(arguments)
    return exit_code(lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())
