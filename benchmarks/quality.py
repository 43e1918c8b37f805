"""nDCG@10 on real collections: BM25, dense, both fused, and the fused candidates reranked at each chunk size.

    python -m benchmarks.quality --beir DIR [DIR ...] --index-root DIR [--chunk-sizes 1,4,16] [--k 50]
        [--max-queries N] [--split test] [--model tiny] [--embedder static] [--codec fp16]

Each collection is indexed once, at chunk size 1, in INDEX_ROOT/<name>; an index of equal settings is used again as it
is. Prints one JSON line for each measurement and then one Markdown table; progress goes to stderr.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from indexer.corpus import RejectedLine, read_corpus
from indexer.job import Encoders, is_built, load_encoders, run_index_job
from indexer.shard import Progress
from kalm_cache.errors import KalmCacheError
from kalm_cache.evaluation import BeirTask, evaluate, load_beir
from kalm_cache.evaluation.evaluate import RECALL_DEPTH, first_stage_run, sample_queries
from kalm_cache.evaluation.metrics import measure
from kalm_cache.first_stage import Mode
from kalm_cache.index import PassageIndex
from kalm_cache.settings import Settings, load_settings

FIRST_STAGES: tuple[Mode, ...] = ("bm25", "dense", "fused")
STORED_CHUNK_SIZE = 1  # every other ratio is pooled from it


def ensure_index(corpus: Path, index: Path, settings: Settings, encoders: Encoders) -> None:
    """Index the collection, unless there is an index of equal settings."""
    if is_built(index, encoders.fingerprint):
        return
    run_index_job(
        read_corpus(corpus), index, settings, encoders, on_reject=_show_reject, on_progress=_show_index_progress
    )
    print(file=sys.stderr)


def measure_collection(
    index: PassageIndex, task: BeirTask, chunk_sizes: list[int], k: int, max_queries: int | None
) -> list[dict[str, Any]]:
    """One row for each first stage, and one for each chunk size of the reranker over the fused one."""
    sample = sample_queries(task, max_queries)
    rows = [_first_stage_row(index, sample, mode) for mode in FIRST_STAGES]
    reports = evaluate(
        index,
        task,
        k=k,
        first_stage="fused",
        chunk_sizes=chunk_sizes,
        max_queries=max_queries,
        on_progress=_show_query_progress,
    )
    print(file=sys.stderr)
    return rows + [{"method": f"r={report.chunk_size}"} | report.to_json() for report in reports]


def table(rows: list[dict[str, Any]]) -> str:
    """A Markdown table of nDCG@10: one line for each collection, one column for each method."""
    methods = list(dict.fromkeys(row["method"] for row in rows))
    lines = [["collection", "queries", *methods], ["---", *["---:"] * (len(methods) + 1)]]
    for name in dict.fromkeys(row["dataset"] for row in rows):
        of_this = {row["method"]: row for row in rows if row["dataset"] == name}
        queries = next(iter(of_this.values()))["queries"]
        lines.append([name, str(queries), *(f"{_ndcg(of_this[method]):.4f}" for method in methods)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _ndcg(row: dict[str, Any]) -> float:
    return float(row["reranked"]["ndcg@10"] if "reranked" in row else row["ndcg@10"])


def _first_stage_row(index: PassageIndex, task: BeirTask, mode: Mode) -> dict[str, Any]:
    run = first_stage_run(index, task, RECALL_DEPTH, mode)
    means = measure(task.qrels, run, ("ndcg@10", "recall@100"))
    rounded = {name: round(mean, 4) for name, mean in means.items()}
    return {"method": mode, "dataset": task.name, "split": task.split, "queries": len(task.queries)} | rounded


def _show_reject(line: RejectedLine) -> None:
    print(f"{line.location}: {line.reason}", file=sys.stderr)


def _show_index_progress(progress: Progress) -> None:
    print(f"\rindexed {progress.done} passages", end="", file=sys.stderr)


def _show_query_progress(done: int, total: int) -> None:
    print(f"\rreranked {done} of {total}", end="", file=sys.stderr)


def parse_arguments() -> argparse.Namespace:
    """The command line; options of the index are left at None where not given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--beir", type=Path, nargs="+", required=True, help="folders laid out as BEIR does")
    parser.add_argument("--index-root", type=Path, required=True, help="where the indexes are, or will be")
    parser.add_argument("--chunk-sizes", type=lambda text: [int(part) for part in text.split(",")], default=[1, 4, 16])
    parser.add_argument("--k", type=int, default=50, help="candidates that are reranked")
    parser.add_argument("--max-queries", type=int, help="a seeded sample of so many queries")
    parser.add_argument("--split", default="test")
    for option in ("model", "embedder", "codec", "device", "dtype"):
        parser.add_argument(f"--{option}", help="as kalm-cache index has it")
    parser.add_argument("--max-length", type=int, help="tokens of a passage that count")
    return parser.parse_args()


def run(args: argparse.Namespace) -> None:
    """Index and measure each collection, and print what was found."""
    chosen = {name: getattr(args, name) for name in ("model", "embedder", "codec", "device", "dtype", "max_length")}
    settings = load_settings(chunk_size=STORED_CHUNK_SIZE, **chosen)
    tasks = [load_beir(folder, args.split) for folder in args.beir]  # first: a typing error should not cost an index
    encoders = load_encoders(settings)
    rows: list[dict[str, Any]] = []
    for folder, task in zip(args.beir, tasks, strict=True):
        location = args.index_root / task.name
        ensure_index(folder, location, settings, encoders)
        with PassageIndex.open(location, model=settings.model, device=settings.device, dtype=settings.dtype) as index:
            found = measure_collection(index, task, args.chunk_sizes, args.k, args.max_queries)
        for row in found:
            print(json.dumps(row), flush=True)
        rows += found
    print(f"\n{table(rows)}")


def main() -> int:
    """Exit code: 0, or that of the error."""
    try:
        run(parse_arguments())
    except KalmCacheError as exc:
        print(f"error: {exc}", file=sys.stderr)
        return exc.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
