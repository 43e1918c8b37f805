"""Which weight the first stage should have beside the margin, and what it is worth where it was not chosen.

    kalm-cache eval … --first-stage-weights 0.5,1,2 --out OUT
    python -m benchmarks.first_stage_weights OUT/report.json [--codec fp16]

For each pooling ratio: nDCG@10 as a mean over the collections at every weight, and with each collection's weight chosen
on all the others (leave one out). The gain is over the better of BM25 and the fused first stage on each collection.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kalm_cache.evaluation.reports.markdown import table

MEASURE = "ndcg@10"


def leave_one_out(values: NDArray[np.float64]) -> NDArray[np.int64]:
    """Each collection's weight, the best in the mean over the others: (collections, weights) -> (collections,)."""
    return (values.sum(0) - values).argmax(1)


def better_first_stage(collection: Mapping[str, Any]) -> float:
    """The better nDCG@10 of BM25 and the fused first stage."""
    return max(one["means"][MEASURE] for one in collection["systems"] if one["name"] in ("bm25", "fused"))


def measured(collection: Mapping[str, Any], codec: str) -> dict[tuple[int, float], float]:
    """nDCG@10 of a codec by pooling ratio and weight; weight 0 is the reranker alone."""
    return {
        (one["cost"]["chunk_size"], one["cost"]["first_stage_weight"]): one["means"][MEASURE]
        for one in collection["systems"]
        if one["kind"] in ("reranker", "interpolated") and one["cost"]["codec"] == codec
    }


def main() -> None:
    """Print a table over the ratios, and one over the collections."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", type=Path)
    parser.add_argument("--codec", default="fp16")
    args = parser.parse_args()
    collections = json.loads(args.report.read_text("utf-8"))["collections"]
    points = [measured(one, args.codec) for one in collections]
    if any(one.keys() != points[0].keys() for one in points):
        raise SystemExit("the collections were not measured at the same ratios and weights")
    ratios, weights = ([*dict.fromkeys(part)] for part in zip(*sorted(points[0]), strict=True))
    first = np.array([better_first_stage(one) for one in collections])
    chosen, rows = {}, []
    for ratio in ratios:
        values = np.array([[one[ratio, weight] for weight in weights] for one in points])
        chosen[ratio] = np.take_along_axis(values, leave_one_out(values)[:, None], 1)[:, 0]
        means = [f"{mean:.4f}" for mean in values.mean(0)]
        best = f"{weights[int(values.mean(0).argmax())]:g}"
        rows.append([str(ratio), *means, best, f"{chosen[ratio].mean():.4f}"])
        for found in (values[:, 0], chosen[ratio]):
            rows[-1].append(f"{(found - first).mean():+.4f}, below on {(found < first).sum()}")
    header = ["r", *(f"w = {weight:g}" for weight in weights), "best w", "left out", "gain, w = 0", "gain, left out"]
    print(f"{len(collections)} collections, {args.codec}; better of BM25 and fused: {first.mean():.4f}\n")
    print(table(header, rows), end="\n\n")
    names = [f"{one['name']} {one['split']}" for one in collections]
    columns = [[f"{value:.3f}" for value in column] for column in (first, *chosen.values())]
    print(table(["left out", "first stage", *(f"r = {r}" for r in ratios)], zip(names, *columns, strict=True)))


if __name__ == "__main__":
    main()
