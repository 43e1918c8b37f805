"""A search among some rows of a FAISS index, inside FAISS: others are never scored, so that none is cut off after it.

The parameter of an index was measured for all passages. Among a share s of them the best lie in 1 / s as many clusters,
or as deep in a graph: so as much wider it is searched, and where that is all of it, exactly.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kalm_cache.first_stage.dense.faiss_types import DenseType, search_parameters

WIDER = 2.0  # clusters and links, beyond 1 / s
GRAPH_SHARE = 0.2  # of less than this a graph is not walked: all selected rows are scored
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
    share = np.count_nonzero(allowed) / len(allowed)
    if share < NEARLY_ALL:
        parameter = math.ceil(parameter * WIDER / share)
    if kind == "ivf":
        parameter = min(parameter, index.nlist)
    elif kind == "hnsw" and share < GRAPH_SHARE:
        kind, index = "flat", faiss.downcast_index(index.storage)
    scores, rows = index.search(vectors, depth, params=search_parameters(kind, parameter, selector))
    return scores, rows
