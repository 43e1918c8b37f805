"""Ways of fusing BM25 and dense lists: nDCG@10 and recall@100 on BEIR collections.

    python -m benchmarks.fusion --beir DIR [DIR ...] [--split test] [--embedder static] [--max-queries 300]

Lists of 100 by the index's own BM25 and by exact inner product; every collection counts the same in the means.
`standard` is what the index does; `reciprocal rank` is Cormack et al., SIGIR 2009; `min-max` is a convex combination of
scores scaled to 0 … 1 (Bruch et al., TOIS 2023) with the dense list's share. Prints a Markdown table, after JSON with
--json.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from benchmarks.timing import emit, markdown
from indexer.corpus import CorpusLine, read_corpus
from kalm_cache.evaluation import load_beir
from kalm_cache.evaluation.measures.metrics import measure
from kalm_cache.first_stage import BM25Index, Candidates, load_embedder, z_score_fusion
from kalm_cache.first_stage.candidates import top_candidates

DEPTH = 100
MEASURES = ("ndcg@10", "recall@100")
Fusion = Callable[[Candidates, Candidates], Candidates]


def summed(parts: Sequence[dict[int, float]]) -> Candidates:
    """Documents by the sum of what each list gives them; a list without them gives 0."""
    ordinals = sorted(set().union(*parts))
    scores = [sum(part.get(n, 0.0) for part in parts) for n in ordinals]
    return top_candidates(np.array(ordinals, np.int64), np.array(scores), DEPTH)


def reciprocal_rank(constant: int) -> Fusion:
    """Sums of 1 / (constant + rank)."""

    def fuse(bm25: Candidates, dense: Candidates) -> Candidates:
        parts = [{n: 1 / (constant + r) for r, n in enumerate(run.ordinals.tolist(), 1)} for run in (bm25, dense)]
        return summed(parts)

    return fuse


def min_max(share: float) -> Fusion:
    """(1 − share) · BM25 + share · dense, each list scaled to 0 … 1."""

    def fuse(bm25: Candidates, dense: Candidates) -> Candidates:
        parts = []
        for run, weight in ((bm25, 1 - share), (dense, share)):
            span = float(np.ptp(run.scores)) if len(run) else 0.0
            scaled = (run.scores - run.scores.min()) / span if span > 0 else np.zeros(len(run))
            parts.append(dict(zip(run.ordinals.tolist(), (weight * scaled).tolist(), strict=True)))
        return summed(parts)

    return fuse


FUSIONS: dict[str, Fusion] = {
    "bm25": lambda bm25, dense: bm25,
    "dense": lambda bm25, dense: dense,
    "reciprocal rank, 60": reciprocal_rank(60),
    "reciprocal rank, 10": reciprocal_rank(10),
    **{f"min-max, dense {share}": min_max(share) for share in (0.2, 0.3, 0.4, 0.5, 0.6)},
    "standard": lambda bm25, dense: z_score_fusion((dense, bm25), DEPTH),
}


def measure_collection(beir: Path, split: str, embedder_name: str, max_queries: int) -> dict[str, dict[str, float]]:
    """The measures of every fusion on one collection."""
    task, embedder = load_beir(beir, split), load_embedder(embedder_name)
    passages = [line.passage for line in read_corpus(beir) if isinstance(line, CorpusLine)]
    texts = [passage.text for passage in passages]
    chosen = sorted(task.qrels)
    if len(chosen) > max_queries:
        chosen = sorted(np.random.default_rng(0).choice(chosen, max_queries, replace=False).tolist())
    queries = [task.queries[query_id] for query_id in chosen]
    cosines = embedder.embed_queries(queries) @ embedder.embed_passages(texts).T  # (Q, N)
    ordinals = np.arange(len(texts))
    with tempfile.TemporaryDirectory() as folder:
        lexical = BM25Index.build(enumerate(texts), Path(folder)).search(queries, DEPTH)
    runs: dict[str, dict[str, list[str]]] = {name: {} for name in FUSIONS}
    for query_id, bm25, row in zip(chosen, lexical, cosines, strict=True):
        dense = top_candidates(ordinals, row, DEPTH)
        for name, fuse in FUSIONS.items():
            runs[name][query_id] = [passages[n].doc_id for n in fuse(bm25, dense).ordinals.tolist()]
    judged = {query_id: task.qrels[query_id] for query_id in chosen}
    return {name: measure(judged, run, MEASURES) for name, run in runs.items()}


def main() -> None:
    """Measures every collection."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--beir", type=Path, nargs="+", required=True)
    parser.add_argument("--split", default="test")
    parser.add_argument("--embedder", default="static")
    parser.add_argument("--max-queries", type=int, default=300)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    found = {path.name: measure_collection(path, args.split, args.embedder, args.max_queries) for path in args.beir}
    if args.json:
        emit(found)
    rows = [
        [name, *(f"{np.mean([values[name][measured] for values in found.values()]):.4f}" for measured in MEASURES)]
        for name in FUSIONS
    ]
    print(markdown(["fusion", "nDCG@10", "recall@100"], rows))


if __name__ == "__main__":
    main()
