"""The first-stage part of `benchmarks.scale`: dense, BM25 and fused over synthetic passages.

Vectors (E = 256) are made in three layers, as plain Gaussian noise has no near neighbours that an approximate index
could find (recall@100 0.32 at 64 of 512 clusters, where real vectors have 0.97): 1,000 topics of Zipf sizes; around
each, noise as long as the topic's own vector; and in both, standard deviations that fall with the direction as
j ** -0.33. Queries are passages that are not in the index, with evenly spread noise of their own length added. With
100,000 in 512 clusters, recall@100 at 4, 8, 16, 32, 64 and 128 is 0.70 0.80 0.88 0.94 0.96 0.98; real passages and
queries under the static embedder have 0.71 0.83 0.90 0.94 0.97 0.98.

Texts are Zipf-distributed words, 40 a passage in the mean, of a vocabulary of half a million; queries are 5 words, with
frequencies spread evenly on a logarithmic scale.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.scale.steps import Column, Part, Step, latencies_ms, memory
from kalm_cache.first_stage import BM25Index, DenseIndex, FirstStage

WIDTH = 256
TOPICS = 1000
DECAY = 0.33
VOCABULARY = 500_000
BATCH = 10_000
QUERIES = 300
DEPTH = 100
QUERY_BATCH = 10**9  # the seed of the queries, which no batch of passages has

Float32 = NDArray[np.float32]


def vectors(batch: int, rows: int) -> Float32:
    """The batch's vectors (rows, E) of length 1; the same ones every time."""
    shape = np.random.default_rng(0)
    spread = np.arange(1, WIDTH + 1) ** -DECAY
    spread /= np.linalg.norm(spread)
    rotation = np.linalg.qr(shape.standard_normal((WIDTH, WIDTH)))[0]
    topics = _unit(shape.standard_normal((TOPICS, WIDTH)) * spread)
    sizes = 1 / np.arange(1, TOPICS + 1)
    drawn = np.random.default_rng([1, batch])
    chosen = drawn.choice(TOPICS, rows, p=sizes / sizes.sum())
    return _unit((topics[chosen] + drawn.standard_normal((rows, WIDTH)) * spread) @ rotation)


def query_vectors() -> Float32:
    """Vectors (QUERIES, E) of passages that are in no index, with noise of their own length."""
    noise = np.random.default_rng(2).standard_normal((QUERIES, WIDTH))
    return _unit(vectors(QUERY_BATCH, QUERIES) + _unit(noise))


def texts(batch: int, rows: int) -> list[str]:
    """The batch's texts; the same ones every time."""
    drawn = np.random.default_rng([3, batch])
    frequency = np.arange(1, VOCABULARY + 1) ** -1.05
    cumulated = np.cumsum(frequency / frequency.sum())
    lengths = np.clip(drawn.lognormal(np.log(35), 0.5, rows), 3, 400).astype(int)
    words = np.searchsorted(cumulated, drawn.random(lengths.sum()))
    return [" ".join(f"w{word:x}" for word in some) for some in np.split(words, np.cumsum(lengths)[:-1])]


def query_texts() -> list[str]:
    """QUERIES texts of 5 words."""
    words = np.exp(np.random.default_rng(4).random((QUERIES, 5)) * np.log(VOCABULARY)).astype(int)
    return [" ".join(f"w{word:x}" for word in some) for some in words]


class PreparedEmbedder:
    """Gives the prepared vector of each prepared query, so that an embedder's time is not in the search's."""

    dimension = WIDTH
    digest = "prepared"

    def __init__(self) -> None:
        self._vectors = dict(zip(query_texts(), query_vectors(), strict=True))

    def embed_queries(self, texts: Sequence[str]) -> Float32:
        """The prepared vectors (n, E)."""
        return np.stack([self._vectors[text] for text in texts])

    embed_passages = embed_queries


def build_dense(step: Step) -> dict[str, Any]:
    """`seconds` holds making the vectors too; `build_seconds` does not."""
    made = [0.0]
    started = time.perf_counter()

    def batches() -> Iterator[tuple[NDArray[np.int64], Float32]]:
        for batch, start, rows in _batches(step.passages):
            before = time.perf_counter()
            some = vectors(batch, rows)
            made[0] += time.perf_counter() - before
            yield np.arange(start, start + rows, dtype=np.int64), some

    index = DenseIndex.build(batches(), WIDTH, step.folder, step.dense_index)  # type: ignore[arg-type]
    seconds = time.perf_counter() - started - made[0]
    info = index.info
    return {
        "type": info.type,
        "parameter": info.parameter,
        "recall_at_100_said": info.recall_at_100,
        "bytes": _bytes(step.folder.glob("dense.*")),
        "build_seconds": round(seconds, 3),
        "passages_per_second": round(step.passages / seconds),
    }


def build_bm25(step: Step) -> dict[str, Any]:
    """As `build_dense`."""
    made = [0.0]
    started = time.perf_counter()

    def documents() -> Iterator[tuple[int, str]]:
        for batch, start, rows in _batches(step.passages):
            before = time.perf_counter()
            some = texts(batch, rows)
            made[0] += time.perf_counter() - before
            yield from enumerate(some, start)

    BM25Index.build(documents(), step.folder)
    seconds = time.perf_counter() - started - made[0]
    return {
        "bytes": _bytes((step.folder / "bm25").iterdir()),
        "build_seconds": round(seconds, 3),
        "passages_per_second": round(step.passages / seconds),
    }


def search(step: Step) -> dict[str, Any]:
    """Opening, and single queries one after the other, warm."""
    embedder = PreparedEmbedder()
    import faiss  # noqa: F401 (its import is not opening's)

    started = time.perf_counter()
    stage = FirstStage.open(step.folder, embedder)
    row: dict[str, Any] = {"open_ms": round(1e3 * (time.perf_counter() - started), 3)}
    queries = query_texts()
    for mode in stage.modes:
        row[mode] = latencies_ms(QUERIES, lambda i, mode=mode: stage.search(queries[i], DEPTH, mode))  # type: ignore[misc]
    gone = np.random.default_rng(5).choice(step.passages, step.passages // 100, replace=False)
    left = stage.excluding(np.sort(gone))
    row["fused_1%_deleted"] = latencies_ms(QUERIES, lambda i: left.search(queries[i], DEPTH, "fused"))
    return row


def compare(step: Step) -> dict[str, Any]:
    """Recall@100 of queries that the index was not tuned with, against exact search over the same vectors."""
    from kalm_cache.first_stage.dense.recall import exact_neighbours, recall

    queries = query_vectors()
    batches = (vectors(batch, rows) for batch, _, rows in _batches(step.passages))
    exact = exact_neighbours(queries, batches, DEPTH)
    found = np.stack([one.ordinals for one in DenseIndex.open(step.folder).search(queries, DEPTH)])
    return {"recall_at_100": round(recall(found, exact), 4)}


def _batches(passages: int) -> Iterator[tuple[int, int, int]]:
    """Batch, its first passage, its rows."""
    for batch, start in enumerate(range(0, passages, BATCH)):
        yield batch, start, min(BATCH, passages - start)


def _unit(rows: NDArray[Any]) -> Float32:
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)


def _bytes(paths: Any) -> int:
    return sum(path.stat().st_size for path in paths if isinstance(path, Path))


def _rate(step: str) -> Column:
    return Column("passages/s", lambda rows: f"{rows[step]['passages_per_second']:,}")


def _bytes_each(step: str) -> Column:
    return Column("bytes each", lambda rows: f"{rows[step]['bytes'] / rows[step]['passages']:,.0f}")


def _latency(mode: str) -> Column:
    return Column(mode, lambda rows: "{p50_ms:.1f} / {p99_ms:.1f}".format(**rows["search"][mode]))


_TYPE = Column("type", lambda rows: f"{rows['build_dense']['type']} {rows['build_dense']['parameter'] or ''}".strip())
PART = Part(
    "first_stage",
    {"build_dense": build_dense, "build_bm25": build_bm25, "search": search, "compare": compare},
    {
        "Dense index: build": (_TYPE, _rate("build_dense"), memory("build_dense"), _bytes_each("build_dense")),
        "BM25: build": (_rate("build_bm25"), memory("build_bm25"), _bytes_each("build_bm25")),
        "Search, 100 candidates, p50 / p99 in ms": (
            Column("open, ms", lambda rows: f"{rows['search']['open_ms']:.1f}"),
            memory("search"),
            *(_latency(mode) for mode in ("dense", "bm25", "fused", "fused_1%_deleted")),
            Column("recall@100 said", lambda rows: f"{rows['build_dense']['recall_at_100_said']:.3f}"),
            Column("recall@100", lambda rows: f"{rows['compare']['recall_at_100']:.3f}"),
        ),
    },
)
