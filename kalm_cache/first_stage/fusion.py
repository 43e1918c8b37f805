"""Several ranked lists → one. Knows nothing of where the lists come from."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from kalm_cache.first_stage.candidates import Candidates, best_first


def z_score_fusion(runs: Sequence[Candidates], k: int) -> Candidates:
    """The `k` documents with the highest mean over runs of their z-score, (score − mean) / standard deviation.

    A run counts a document that it does not hold as its last one. Empty runs do not count; equal means are ordered by
    smaller number. Source: Montague and Aslam, "Relevance Score Normalization for Metasearch", CIKM 2001 ("ZMUV"), with
    CombSUM. Unlike reciprocal ranks it keeps how far apart scores are, and unlike fixed weights it suits any embedder.
    """
    runs = [run for run in runs if len(run)]
    scores = [z_scores(run.scores) for run in runs]
    terms: defaultdict[int, list[float]] = defaultdict(list)
    for run, standard in zip(runs, scores, strict=True):
        for ordinal, score in zip(run.ordinals.tolist(), (standard - standard.min()).tolist(), strict=True):
            terms[ordinal].append(score)
    lowest = math.fsum(float(standard.min()) for standard in scores)  # what all runs give a document that none holds
    ordinals = np.fromiter(terms, np.int64, len(terms))
    # fsum: plain sums depend on the order of the runs in the last bit, and would break exact ties
    sums = np.fromiter((math.fsum([lowest, *above]) for above in terms.values()), np.float64, len(terms))
    return best_first(ordinals, sums / max(1, len(runs)), k)


def z_scores(scores: NDArray[np.float32]) -> NDArray[np.float64]:
    """(score − mean) / standard deviation of one list; zeros where all are alike."""
    deviations: NDArray[np.float64] = scores.astype(np.float64) - float(scores.mean(dtype=np.float64))
    spread = math.sqrt(np.square(deviations).mean())
    return deviations / spread if spread > 0 else deviations
