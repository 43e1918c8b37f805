"""Several ranked lists → one. Knows nothing of where the lists come from."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from kalm_cache.first_stage.candidates import Candidates, top_candidates


def fuse(lists: Sequence[Candidates], k: int) -> Candidates:
    """The `k` best of one list as they are, or of several by `z_score_fusion`."""
    return top_candidates(lists[0].ordinals, lists[0].scores, k) if len(lists) == 1 else z_score_fusion(lists, k)


def z_score_fusion(runs: Sequence[Candidates], k: int) -> Candidates:
    """The `k` documents with the highest mean over runs of their z-score, (score − mean) / standard deviation.

    A document that a run does not hold gets the lowest z-score of that run. Empty runs do not count. Equal means come
    by ordinal. Source: Montague and Aslam, "Relevance Score Normalization for Metasearch", CIKM 2001 ("ZMUV"), with
    CombSUM. Unlike reciprocal ranks it keeps how far apart scores are, and unlike fixed weights it suits any embedder.
    """
    runs = [run for run in runs if len(run)]
    scores = [z_scores(run.scores) for run in runs]
    lowest = math.fsum(float(z.min()) for z in scores)  # the sum for a document that no run holds
    above: defaultdict[int, list[float]] = defaultdict(list)  # what each run that holds a document adds to that
    for run, z in zip(runs, scores, strict=True):
        for ordinal, score in zip(run.ordinals.tolist(), (z - z.min()).tolist(), strict=True):
            above[ordinal].append(score)
    ordinals = np.fromiter(above, np.int64, len(above))
    # fsum: plain sums depend on the order of the runs in the last bit, and would break exact ties
    sums = np.fromiter((math.fsum([lowest, *terms]) for terms in above.values()), np.float64, len(above))
    return top_candidates(ordinals, sums / max(1, len(runs)), k)


def z_scores(scores: NDArray[np.float32]) -> NDArray[np.float64]:
    """(score − mean) / standard deviation of one list; zeros where all are equal, nothing of an empty one."""
    if not len(scores):
        return np.empty(0)
    deviations: NDArray[np.float64] = scores.astype(np.float64) - float(scores.mean(dtype=np.float64))
    spread = math.sqrt(np.square(deviations).mean())
    return deviations / spread if spread > 0 else deviations
