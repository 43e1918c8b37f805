"""Systems: ways to rank a collection's queries, what each ranked, and what it cost. Measures no quality."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from kalm_cache.errors import DamagedRecordError, UsageError
from kalm_cache.evaluation.collections.beir import BeirTask
from kalm_cache.evaluation.collections.trec import Scored, ScoredRun
from kalm_cache.evaluation.points import OpenPoint
from kalm_cache.first_stage import Mode, load_embedder, z_scores
from kalm_cache.model.prompts import PromptTokens
from kalm_cache.scoring import pipeline
from kalm_cache.scoring.cached_passages import CachedPassages
from kalm_cache.scoring.pipeline import InlineDriver, RankingRules, Shortlist, run_inline
from kalm_cache.scoring.query_side import QuerySide
from kalm_cache.scoring.ranking import best_first, interpolate
from kalm_cache.scoring.shared_prefix import MeanPrefixes

if TYPE_CHECKING:
    from kalm_cache.index.passage_index import PassageIndex

Kind = Literal["first stage", "bi-encoder", "reranker", "interpolated"]
TEXTS_TOGETHER = 1024  # passages embedded together
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Cost:
    """What a system costs; `None` = it has no such thing, or it was not measured.

    Milliseconds are medians over the queries, asked one after the other: `search_ms` of a first stage; `read_ms` of
    finding and decoding the candidates' states, `decode_ms` of the reranker's decoder over them. `bytes_per_passage` is
    that of the states' file. A first stage's own files do not count. `seconds` are of all queries together.
    `first_stage_weight` is the first stage's in an interpolated order. `shared_prefix`: `mean` where prompts had one.
    """

    chunk_size: int | None = None
    codec: str | None = None
    bytes_per_passage: float | None = None
    search_ms: float | None = None
    read_ms: float | None = None
    decode_ms: float | None = None
    seconds: float = 0.0
    first_stage_weight: float = 0.0
    shared_prefix: str | None = None

    @property
    def rerank_ms(self) -> float | None:
        """Reading and decoding, `None` for what is no reranker."""
        return None if self.read_ms is None or self.decode_ms is None else self.read_ms + self.decode_ms


@dataclass(frozen=True, slots=True)
class System:
    """One way to rank. Scores are a reranker's margins, a bi-encoder's cosines, or what `interpolate` makes of them."""

    name: str
    kind: Kind
    run: ScoredRun
    cost: Cost


def search(index: PassageIndex, task: BeirTask, depth: int, mode: Mode, *, drop_own_id: bool = False) -> System:
    """A first stage of the index: each query's `depth` best passages. Raises as `FirstStage.search` does."""
    run, times = {}, []
    for query_id, query in task.queries.items():
        started = time.perf_counter()
        found = index.find(query, depth + drop_own_id, mode)
        times.append(_ms_since(started))
        assert found.candidates is not None, "the first stage scores what it finds"
        pairs = zip(found.doc_ids, found.candidates.scores.tolist(), strict=True)
        ranked = [Scored(doc_id, score) for doc_id, score in pairs]
        run[query_id] = (without_own(query_id, ranked) if drop_own_id else ranked)[:depth]
    return System(mode, "first stage", run, _search_cost(times))


def search_dense(
    index: PassageIndex, task: BeirTask, depth: int, embedder_name: str, name: str, *, drop_own_id: bool = False
) -> System:
    """Exact dense search with another embedder than the index's own, over all of its passages.

    Raises:
        UsageError: the index keeps no texts.
    """
    embedder = load_embedder(embedder_name, device=str(index.query_side.device))
    doc_ids, vectors = [], []
    for some in _windows([doc_id for _, doc_id in index.store.ordinals()]):
        vectors.append(embedder.embed_passages(_texts(index, some)))
        doc_ids += some
    matrix = np.concatenate(vectors)
    run, times = {}, []
    for query_id, query in task.queries.items():
        started = time.perf_counter()
        scores = (embedder.embed_queries([query]) @ matrix.T)[0]
        best = np.argsort(-scores, kind="stable")[: depth + drop_own_id].tolist()
        times.append(_ms_since(started))
        ranked = [Scored(doc_ids[i], float(scores[i])) for i in best]
        run[query_id] = (without_own(query_id, ranked) if drop_own_id else ranked)[:depth]
    return System(name, "first stage", run, _search_cost(times))


def bi_encode(index: PassageIndex, task: BeirTask, candidates: ScoredRun, embedder_name: str, name: str) -> System:
    """The same candidates in the order of the embedder's cosine with the query.

    Raises:
        UsageError: the index keeps no texts.
    """
    embedder = load_embedder(embedder_name, device=str(index.query_side.device))
    vectors: dict[str, NDArray[np.float32]] = {}
    for some in _windows(distinct_ids(candidates.values())):
        vectors.update(zip(some, embedder.embed_passages(_texts(index, some)), strict=True))
    run: dict[str, list[Scored]] = {}
    for query_id, ranked in candidates.items():
        (query,) = embedder.embed_queries([task.queries[query_id]])
        cosines = [float(query @ vectors[hit.doc_id]) for hit in ranked]
        run[query_id] = [Scored(ranked[i].doc_id, cosines[i]) for i in best_first(cosines, None)]
    return System(name, "bi-encoder", run, Cost())


def rerank(
    query_side: QuerySide,
    point: OpenPoint,
    name: str,
    prompts: Mapping[str, PromptTokens],
    candidates: ScoredRun,
    on_query: Callable[[], None],
    sample: Sequence[str] | None = None,
) -> System:
    """The candidates in the order of their margins over a point's states; damaged passages are left out and logged.

    Args:
        query_side: the decoder.
        point: what the states are read from.
        name: of the system.
        prompts: by query id.
        candidates: by query id; equal margins keep their order.
        on_query: called after each query.
        sample: passages of the point, the mean of whose prefixes all prompts share; `None` = each passage its own.
    """
    means = None if sample is None else MeanPrefixes(point.reader, query_side, sample, _log_damage)
    stored = CachedPassages(name, point.reader, query_side, point.chunk_size, _log_damage, means=means)
    run, timings = {}, []
    for query_id, ranked in candidates.items():
        prompt, shortlist = prompts[query_id].prompt, Shortlist([hit.doc_id for hit in ranked])
        answer = run_inline(pipeline.rerank(InlineDriver(), stored, prompt, shortlist, RankingRules()))
        timings.append(answer.timings_ms)
        run[query_id] = [Scored(result.doc_id, result.margin) for result in answer.results]
        on_query()
    cost = Cost(
        chunk_size=point.chunk_size,
        codec=point.codec,
        bytes_per_passage=point.bytes_per_passage,
        read_ms=median(timing["read"] for timing in timings),
        decode_ms=median(timing["decode"] for timing in timings),
        seconds=sum(timing["read"] + timing["decode"] for timing in timings) / 1000,
        shared_prefix=None if sample is None else "mean",
    )
    return System(name, "reranker", run, cost)


def _log_damage(problems: Sequence[str]) -> None:
    for problem in problems:
        logger.error("a ranking does without a passage: %s", problem)


def interpolate_run(point: System, candidates: ScoredRun, weight: float) -> System:
    """A reranker's ranking by interpolated scores, see `ranking.interpolate`. Computes no margin.

    Args:
        point: the reranker's.
        candidates: the first stage's, with its scores: those that the reranker was given.
        weight: the first stage's.
    """
    run: dict[str, list[Scored]] = {}
    for query_id, ranked in candidates.items():
        scores = z_scores(np.array([hit.score for hit in ranked], np.float32))
        of_id = {hit.doc_id: score for hit, score in zip(ranked, scores.tolist(), strict=True)}
        margins = {hit.doc_id: hit.score for hit in point.run[query_id]}
        found = [hit.doc_id for hit in ranked if hit.doc_id in margins]  # in the candidates' order, as a search has it
        values = interpolate([margins[i] for i in found], [of_id[i] for i in found], weight)
        run[query_id] = [Scored(found[i], values[i]) for i in best_first(values, None)]
    return System(f"{point.name} w={weight:g}", "interpolated", run, replace(point.cost, first_stage_weight=weight))


def without_own(query_id: str, ranked: Sequence[Scored]) -> list[Scored]:
    """A ranking without the passage that is the query itself."""
    return [hit for hit in ranked if hit.doc_id != query_id]


def distinct_ids(rankings: Iterable[Sequence[Scored]]) -> list[str]:
    """The ids of some rankings, each once."""
    return list(dict.fromkeys(hit.doc_id for ranked in rankings for hit in ranked))


def _search_cost(times_ms: Sequence[float]) -> Cost:
    return Cost(search_ms=median(times_ms), seconds=sum(times_ms) / 1000)


def _windows(doc_ids: Sequence[str]) -> Iterator[list[str]]:
    for start in range(0, len(doc_ids), TEXTS_TOGETHER):
        yield list(doc_ids[start : start + TEXTS_TOGETHER])


def _texts(index: PassageIndex, doc_ids: Sequence[str]) -> list[str]:
    texts: list[str] = []
    for doc_id, text in zip(doc_ids, index.find_texts(doc_ids), strict=True):
        if isinstance(text, DamagedRecordError):
            raise text
        if text is None:
            raise UsageError(f"the index keeps no text of {doc_id!r}, which an embedder needs; index with store_text")
        texts.append(text)
    return texts


def _ms_since(started: float) -> float:
    return 1000 * (time.perf_counter() - started)
