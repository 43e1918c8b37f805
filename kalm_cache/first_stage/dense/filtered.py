"""A search among some rows of a FAISS index, inside FAISS: others are never scored, so that none is cut off after it.

The parameter of an index was measured for all passages. Among a share s of them the best lie in 1 / s as many clusters,
or as deep in a graph: so as much wider it is searched, and where a walk would score more than there is, exactly.
`python -m benchmarks.filtered` measures it.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kalm_cache.first_stage.dense.faiss_types import HNSW_LINKS, DenseType, search_parameters

WIDER = {"ivf": 2.0, "hnsw": 3.0}  # beyond 1 / s: recall@100 of 0.99, where the parameter alone has 0.97
NEIGHBOURS = 2 * HNSW_LINKS  # that a walk in a graph scores at each of its steps
NEARLY_ALL = 0.9  # deletions leave more than this, and change no parameter


def filtered_search(
    kind: DenseType,
    index: Any,
    vectors: NDArray[np.float32],
    depth: int,
    parameter: int,
    allowed: NDArray[np.bool_],
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Scores and rows (q, depth) of the largest inner products among the rows that are allowed; -1: no more found.

    Args:
        kind: of the index.
        index: FAISS's, without its map of ordinals.
        vectors: (q, E), the queries.
        depth: how many are wanted.
        parameter: that suits a search among all rows.
        allowed: (n,), which rows count.
    """
    import faiss

    library: Any = faiss
    selector = library.IDSelectorBitmap(np.packbits(allowed, bitorder="little"))
    count = int(np.count_nonzero(allowed))
    if kind != "flat" and count < NEARLY_ALL * len(allowed):
        parameter = math.ceil(parameter * WIDER[kind] * len(allowed) / max(count, 1))
    if kind == "ivf":
        parameter = min(parameter, index.nlist)
    elif kind == "hnsw" and count < parameter * NEIGHBOURS:
        kind, index = "flat", faiss.downcast_index(index.storage)  # no more to score than in a walk, and exact
    scores, rows = index.search(vectors, depth, params=search_parameters(kind, parameter, selector))
    return scores, rows
