"""Which FAISS index for how many passages, and how each is made and searched.

| type | vectors | search | passages |
|---|---|---|---|
| flat | float32 | exact, all of them | `auto` up to 100,000 |
| ivf | 8 bits a dimension | the `nprobe` nearest of `nlist` clusters | `auto` above |
| hnsw | 8 bits a dimension | a walk in a graph, `efSearch` wide | when asked for |

Measured on one core of a Xeon with AVX-512, with 360,535 real passages and sentences and 1,372 real queries, E = 256
(static embedder). Flat: 27 ms a query, so 7.5 ms at 100,000, which is little beside reranking. IVF: built in 20 s,
recall@100 0.970 (0.971 was estimated) in 1.4 ms. HNSW: built in 74 s, 0.981 (0.972) in 1.6 ms, and takes 131 bytes a
passage more; so `auto` leaves it. 8 bits cost 0.8% of recall. Product quantisation is not offered: it would save 0.2 KB
of a passage, whose states take 1.4 to 11 KB, and cost recall.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

from kalm_cache.errors import UsageError

DenseType = Literal["flat", "hnsw", "ivf"]
DenseChoice = Literal["auto", "flat", "hnsw", "ivf"]

FLAT_LIMIT = 100_000
SEED = 20_240_501
KMEANS_ROUNDS = 10
ROWS_PER_CLUSTER = 48  # to train on; FAISS warns below 39. At 4,096 clusters and E = 256 they take 200 MB
MAX_CLUSTERS = 4096
HNSW_LINKS = 16
HNSW_EF_CONSTRUCTION = 80


class Vectors(Protocol):
    """Rows of float32, sampled and counted: a `VectorSpool`, or those of several shards."""

    dimension: int

    def __len__(self) -> int:
        """How many rows there are."""

    def rows(self, rows: NDArray[np.int64], /) -> NDArray[np.float32]:
        """Some rows (m,) by position, ascending -> (m, E)."""

    def batches(self) -> Iterator[NDArray[np.float32]]:
        """All rows in order, some at a time."""


def choose_type(choice: str, passages: int) -> DenseType:
    """The type asked for, or the one for so many passages.

    Raises:
        UsageError: there is no such type.
    """
    if choice not in get_args(DenseChoice):
        raise UsageError(f"dense index type is {choice!r}, expected one of {', '.join(get_args(DenseChoice))}")
    if choice == "auto":
        return "flat" if passages <= FLAT_LIMIT else "ivf"
    return "flat" if passages == 0 else choice  # type: ignore[return-value]  # nothing to train the others on


def clusters_for(passages: int) -> int:
    """nlist: the power of two nearest to twice the square root, e.g. 512 for 100,000 and 2,048 for a million."""
    return max(1, min(MAX_CLUSTERS, 1 << round(math.log2(2 * passages**0.5)), passages // ROWS_PER_CLUSTER))


def trained_index(kind: DenseType, vectors: Vectors) -> Any:
    """A FAISS index without a vector, trained on a sample of these, which takes a while unless it is flat."""
    import faiss

    return _TRAINED[kind](vectors) if kind != "flat" else faiss.IndexFlatIP(vectors.dimension)


def fill_index(trained: Any, ordinals: NDArray[np.int64], batches: Iterable[NDArray[np.float32]]) -> Any:
    """A FAISS `IndexIDMap` over vectors, which are added batch by batch to a trained index without one.

    What it holds in memory: 4 E bytes a passage if flat, else E.
    """
    import faiss

    index = faiss.IndexIDMap(trained)  # not IDMap2, whose second map takes 50 bytes a passage and is built at opening
    start = 0
    for vectors in batches:
        index.add_with_ids(vectors, ordinals[start : start + len(vectors)])
        start += len(vectors)
    return index


def parameter_ladder(kind: DenseType, passages: int) -> list[int]:
    """Values of the search parameter, cheapest first, each about half as dear again as the one before."""
    if kind == "flat":
        return []
    first, last = (4, clusters_for(passages)) if kind == "ivf" else (128, 2048)
    steps = [first * 2**i * part // 2 for i in range(12) for part in (2, 3)]
    return [*(step for step in steps if step < last), last]


def search_parameters(kind: DenseType, value: int, selector: Any = None) -> Any:
    """FAISS search parameters. One for each call: `IndexIDMap` changes the selector in them while it searches."""
    import faiss

    library: Any = faiss  # its stubs know neither the keywords nor HNSW's class
    if kind == "ivf":
        return library.SearchParametersIVF(nprobe=value, sel=selector)
    if kind == "hnsw":
        return library.SearchParametersHNSW(efSearch=value, sel=selector)
    return library.SearchParameters(sel=selector)


def faiss_extension() -> str:
    """The file of FAISS's extension module: one of several, by the processor's instructions."""
    import faiss  # noqa: F401 (what is looked for is imported by it)

    return next(str(module.__file__) for name, module in sys.modules.items() if name.startswith("faiss._swigfaiss"))


@contextmanager
def faiss_threads(threads: int) -> Iterator[None]:
    """Let FAISS use so many threads inside.

    OpenMP keeps this for each calling thread, so it is set every time; and torch, where it was imported before faiss,
    shares this OpenMP and would keep the limit, so it is set back.
    """
    import faiss

    others = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(threads)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(others)


def _trained_ivf(spool: Vectors) -> Any:
    import faiss

    clusters = clusters_for(len(spool))
    coarse = faiss.IndexFlatIP(spool.dimension)
    bits = faiss.ScalarQuantizer.QT_8bit
    index = faiss.IndexIVFScalarQuantizer(coarse, spool.dimension, clusters, bits, faiss.METRIC_INNER_PRODUCT)
    index.cp.seed, index.cp.niter, index.cp.spherical = SEED, KMEANS_ROUNDS, True
    index.cp.min_points_per_centroid = 1  # else FAISS warns on stderr for small indexes
    index.train(spool.rows(sample_rows(len(spool), clusters * ROWS_PER_CLUSTER)))
    return index


def _trained_hnsw(spool: Vectors) -> Any:
    import faiss

    bits: Any = faiss.ScalarQuantizer.QT_8bit
    index = faiss.IndexHNSWSQ(spool.dimension, bits, HNSW_LINKS, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = HNSW_EF_CONSTRUCTION
    index.train(spool.rows(sample_rows(len(spool), 100_000)))
    return index


def sample_rows(rows: int, sample: int) -> NDArray[np.int64]:
    """`sample` of `rows` positions, ascending, the same ones every time."""
    chosen = np.random.default_rng(SEED).choice(rows, min(rows, sample), replace=False)
    return np.sort(chosen).astype(np.int64)


_TRAINED = {"ivf": _trained_ivf, "hnsw": _trained_hnsw}
FAISS_CLASSES: dict[DenseType, str] = {"flat": "IndexFlatIP", "ivf": "IndexIVFScalarQuantizer", "hnsw": "IndexHNSWSQ"}
