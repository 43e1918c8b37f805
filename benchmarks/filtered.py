"""A filtered search against an exact one: recall@100 and milliseconds, by type and by the share that matches.

    python -m benchmarks.filtered --passages 1000000 --out filtered.json

Vectors are made: as many clusters of unit vectors as there are topics, so that near ones are not all over the place.
Which passages match is drawn, or hangs on their topic (`--correlated`), as languages and tenants do. Exact: the inner
products with the vectors that the index holds, all of them. Rows: how a search finds the best 100 of those that match
inside of the index (`inside`), and what is left of the best 100 of all when others are dropped after it (`after`).
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kalm_cache.first_stage import DenseIndex, Selection
from kalm_cache.first_stage.dense.faiss_types import DenseChoice

SHARES = (1.0, 0.5, 0.1, 0.01, 0.001)
DEPTH, SEED, BATCH = 100, 20_261_129, 8192
TOPICS, NOISE = 2000, 0.8


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print a line for each type and share, and write all of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--passages", type=int, default=1_000_000)
    parser.add_argument("--dimension", type=int, default=256)
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--types", default="flat,ivf,hnsw")
    parser.add_argument("--correlated", action="store_true", help="what matches hangs on the topic")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args(argv)
    rng = np.random.default_rng(SEED)
    topics = _unit(rng.standard_normal((TOPICS, args.dimension), np.float32))
    topic = rng.integers(0, TOPICS, args.passages)
    queries = _unit(topics[rng.integers(0, TOPICS, args.queries)] + _noise(rng, args.queries, args.dimension))
    rank = topic / TOPICS + rng.random(args.passages) * 1e-9 if args.correlated else rng.random(args.passages)
    results = []
    for kind in args.types.split(","):
        with tempfile.TemporaryDirectory() as folder:
            index = DenseIndex.build(_batches(topics, topic, args.dimension), args.dimension, Path(folder), kind)
            for share in SHARES:
                matching = np.flatnonzero(rank < np.quantile(rank, share) if share < 1 else rank >= 0)
                results.append(_measured(index, kind, share, matching.astype(np.int64), queries))
                print(json.dumps(results[-1]), flush=True)
    if args.out:
        arguments = vars(args) | {"out": str(args.out)}
        args.out.write_text(json.dumps({"arguments": arguments, "results": results}, indent=1) + "\n")
    return 0


def _measured(
    index: DenseIndex, kind: DenseChoice, share: float, matching: NDArray[np.int64], queries: NDArray[np.float32]
) -> dict[str, Any]:
    exact = _exact(index, matching, queries)
    started = time.perf_counter()
    view = index if share == 1 else index.selecting(Selection(matching))
    selecting_ms = (time.perf_counter() - started) * 1000
    found, taken = [], []
    for query in queries:
        started = time.perf_counter()
        found.append(view.search(query[None], DEPTH)[0].ordinals)
        taken.append((time.perf_counter() - started) * 1000)
    after = [np.intersect1d(index.search(query[None], DEPTH)[0].ordinals, matching) for query in queries]
    return {
        "type": kind,
        "share": share,
        "matching": len(matching),
        "recall_inside": round(_recall(found, exact), 4),
        "recall_after": round(_recall(after, exact), 4),
        "selecting_ms": round(selecting_ms, 2),
        "search_ms_median": round(float(np.median(taken)), 2),
        "search_ms_p95": round(float(np.quantile(taken, 0.95)), 2),
    }


def _exact(index: DenseIndex, matching: NDArray[np.int64], queries: NDArray[np.float32]) -> list[NDArray[np.int64]]:
    """The 100 nearest of those that match, by the vectors that the index holds."""
    best = [(np.empty(0, np.float32), np.empty(0, np.int64)) for _ in queries]
    for start in range(0, len(matching), BATCH):
        some = matching[start : start + BATCH]
        products = queries @ index.vectors(some).T  # (q, n)
        for place, (scores, ordinals) in enumerate(best):
            both, names = np.concatenate([scores, products[place]]), np.concatenate([ordinals, some])
            top = np.argsort(-both, kind="stable")[:DEPTH]
            best[place] = both[top], names[top]
    return [ordinals for _, ordinals in best]


def _recall(found: list[NDArray[np.int64]], exact: list[NDArray[np.int64]]) -> float:
    parts = [len(np.intersect1d(some, all_)) / len(all_) for some, all_ in zip(found, exact, strict=True)]
    return float(np.mean(parts))


def _batches(
    topics: NDArray[np.float32], topic: NDArray[np.int64], dimension: int
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    rng = np.random.default_rng(SEED + 1)
    for start in range(0, len(topic), BATCH):
        some = topic[start : start + BATCH]
        ordinals = np.arange(start, start + len(some), dtype=np.int64)
        yield ordinals, _unit(topics[some] + _noise(rng, len(some), dimension))


def _noise(rng: np.random.Generator, rows: int, dimension: int) -> NDArray[np.float32]:
    return NOISE * _unit(rng.standard_normal((rows, dimension), np.float32))


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


if __name__ == "__main__":
    sys.exit(main())
