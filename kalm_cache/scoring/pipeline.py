"""The rerank, for every caller: look up states → prepare → decode margins → results. Knows nothing of threads or HTTP.

The steps are functions over values; `rerank` puts them in order. Where a step runs is the driver's business:
`InlineDriver` runs each at once in the caller's thread (`PassageIndex`, evaluation), a service's request awaits reader
threads and a decoder that it shares with others. One coroutine serves both: under `InlineDriver` it never suspends, so
that `run_inline` needs no event loop.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, TypeVar

from torch import Tensor

from kalm_cache.calibration import FittedCalibration
from kalm_cache.calibration.fitted import fitted_weight, require_curve
from kalm_cache.errors import DamagedRecordError
from kalm_cache.first_stage import Candidates, Mode, z_scores
from kalm_cache.metadata import Value
from kalm_cache.model.kernels.prefix_kv import PrefixKV
from kalm_cache.model.prompts import Prompt, PromptTokens, Tokens
from kalm_cache.scoring.cached_passages import CachedPassages, LookUp, ReadyPassages
from kalm_cache.scoring.query_side import QuerySide, score_of
from kalm_cache.scoring.ranking import Answer, SearchResult, best_first, interpolate

_T = TypeVar("_T")
FindMetadata = Callable[[Sequence[str]], Sequence[Mapping[str, Value]]]
FindTexts = Callable[[Sequence[str]], Sequence[str | DamagedRecordError | None]]


@dataclass(frozen=True, slots=True)
class Shortlist:
    """The passages to rerank, best first.

    candidates: their first-stage scores, in this order; `None` = ids were given.
    damaged: names candidates whose id cannot be read, which are not in the list.
    first_stage: the mode that found them; `None` = ids were given, or it is not known.
    """

    doc_ids: Sequence[str]
    candidates: Candidates | None = None
    damaged: list[str] = field(default_factory=list)
    first_stage: Mode | None = None


@dataclass(frozen=True, slots=True)
class RankingRules:
    """How passages are ranked for a prompt.

    chunk_size: pooling ratio; `None` = that of the stored passages.
    top_n: how many results; `None` = all.
    first_stage_weight: of the first stage's z-scores in the order, see `interpolate`; 0 = the margins alone; `auto` =
        the one that `calibration` has for the chunk size.
    find_texts: fills `SearchResult.text`, as `PassageIndex.find_texts` does; `None` = leaves it empty.
    find_metadata: fills `SearchResult.metadata`, as `StoredMetadata.values` does; `None` = leaves it empty.
    shorten: leaves out a part of the look-up before it is decoded.
    calibration: gives results a probability, at the chunk sizes that it has.
    min_probability: results below it are left out; `None` = none.
    """

    chunk_size: int | None = None
    top_n: int | None = None
    first_stage_weight: float | Literal["auto"] = 0.0
    find_texts: FindTexts | None = None
    find_metadata: FindMetadata | None = None
    shorten: Callable[[PromptTokens, LookUp], LookUp] = lambda prompt, lookup: lookup
    calibration: FittedCalibration | None = None
    min_probability: float | None = None

    def at(self, chunk_size: int, shortlist: Shortlist) -> RankingRules:
        """The rules with a weight that is a number, at the chunk size that is decoded.

        Raises:
            UsageError: what is asked for takes a calibration at this chunk size, and there is none.
        """
        if self.min_probability is not None:
            require_curve(self.calibration, chunk_size, "min_probability")
        weight = self.first_stage_weight
        if weight == "auto":
            weight = fitted_weight(self.calibration, chunk_size, shortlist.first_stage)
        return replace(self, chunk_size=chunk_size, first_stage_weight=weight)

    @property
    def weight(self) -> float:
        """`first_stage_weight` of rules that `at` has made."""
        assert self.first_stage_weight != "auto"
        return self.first_stage_weight

    def probability(self, margin: float) -> float | None:
        """By the calibration at these rules' chunk size; `None` where there is none."""
        curve = None if self.calibration is None or self.chunk_size is None else self.calibration.find(self.chunk_size)
        return None if curve is None else curve.probability(margin)


class Driver(Protocol):
    """Runs the steps of a rerank, and adds up their milliseconds by stage."""

    def holding_states(self) -> AbstractAsyncContextManager[None]:
        """From the look-up to the margins: each rerank in here holds megabytes of states."""

    async def read(self, stage: str, step: Callable[[], _T]) -> _T:
        """Run a step that reads, searches or tokenises."""

    async def prepare(self, stored: CachedPassages, lookup: LookUp) -> ReadyPassages:
        """Run `stored.prepare(lookup)`, which may compute."""

    async def share(
        self, stored: CachedPassages, prompts: Sequence[PromptTokens], chunk_size: int
    ) -> list[PromptTokens]:
        """Run `stored.share(prompts, chunk_size)`, which may compute."""

    async def margins(
        self, side: QuerySide, prompts: Sequence[Tokens], passages: Sequence[Tensor | PrefixKV]
    ) -> list[float]:
        """As `QuerySide.margins`."""

    def finished(self) -> dict[str, float]:
        """Milliseconds by stage, and in `total`."""


async def rerank(
    driver: Driver, stored: CachedPassages, prompt: Prompt, shortlist: Shortlist, options: RankingRules
) -> Answer:
    """Rank stored passages for a prompt; equal margins keep the order of `shortlist`.

    Raises:
        UnknownIdError: ids that are not stored.
        UsageError: a chunk size that is no multiple of the stored one, or without the calibration that is needed.
        NonFiniteLogitsError: the model overflowed.
    """

    def look_up() -> tuple[PromptTokens, LookUp, RankingRules]:
        tokens = stored.query_side.tokenize(prompt)
        lookup = options.shorten(tokens, stored.look_up(shortlist.doc_ids, [tokens], options.chunk_size))
        return tokens, lookup, options.at(lookup.chunk_size, shortlist)

    async with driver.holding_states():
        tokens, lookup, rules = await driver.read("read", look_up)
        read = await driver.prepare(stored, lookup)
        [decoded] = await driver.share(stored, [tokens], lookup.chunk_size)
        states = [passage.states for passage in read.passages]
        margins = await driver.margins(stored.query_side, [decoded] * len(states), states)
    results, textless = await driver.read("read", lambda: rank(shortlist, read.positions, margins, rules))
    damaged = dict.fromkeys([*shortlist.damaged, *(record.doc_id for record in read.damaged), *textless])
    return Answer(prompt.query, tokens.truncated, results, driver.finished(), list(damaged))


def rank(
    shortlist: Shortlist, positions: Sequence[int], margins: Sequence[float], options: RankingRules
) -> tuple[list[SearchResult], list[str]]:
    """Results, best first, and the ids among them whose text is damaged.

    `positions` says where in `shortlist` the passage of each margin is; `options` are of `RankingRules.at`.
    """
    candidates, weight = shortlist.candidates, options.weight
    probabilities = [options.probability(margin) for margin in margins]
    order = best_first(_ordering(margins, positions, candidates, weight), None)
    order = [i for i in order if _is_probable(probabilities[i], options.min_probability)][: options.top_n]
    places = [positions[i] for i in order]
    doc_ids = [shortlist.doc_ids[place] for place in places]
    texts = [None] * len(order) if options.find_texts is None else options.find_texts(doc_ids)
    metadata = [None] * len(order) if options.find_metadata is None else options.find_metadata(doc_ids)
    results = [
        SearchResult(
            doc_id=shortlist.doc_ids[place],
            score=score_of(margins[i]),
            margin=margins[i],
            rank=number,
            first_stage_rank=None if candidates is None else place + 1,
            first_stage_score=None if candidates is None else float(candidates.scores[place]),
            text=text if isinstance(text, str) else None,
            probability=probabilities[i],
            metadata=values,
        )
        for number, (i, place, text, values) in enumerate(zip(order, places, texts, metadata, strict=True), start=1)
    ]
    return results, [id_ for id_, text in zip(doc_ids, texts, strict=True) if isinstance(text, DamagedRecordError)]


def _is_probable(probability: float | None, least: float | None) -> bool:
    return least is None or (probability is not None and probability >= least)


def _ordering(
    margins: Sequence[float], positions: Sequence[int], candidates: Candidates | None, weight: float
) -> Sequence[float]:
    """The values that the passages at `positions` are ordered by."""
    if candidates is None or not weight:
        return margins
    # of all candidates' scores, before those without a margin are left out: a damaged record moves no other's z-score
    return interpolate(margins, z_scores(candidates.scores)[list(positions)].tolist(), weight)


@dataclass(slots=True)
class InlineDriver:
    """Runs every step at once, in the caller's thread, which holds the states of one rerank at a time."""

    timings_ms: dict[str, float] = field(default_factory=dict)
    started: float = field(default_factory=time.perf_counter)

    def holding_states(self) -> AbstractAsyncContextManager[None]:
        """No bound."""
        return nullcontext()

    async def read(self, stage: str, step: Callable[[], _T]) -> _T:
        """Run a step, timed."""
        started = time.perf_counter()
        result = step()
        self.timings_ms[stage] = self.timings_ms.get(stage, 0.0) + (time.perf_counter() - started) * 1000
        return result

    async def prepare(self, stored: CachedPassages, lookup: LookUp) -> ReadyPassages:
        """Prefill, timed as decoding."""
        return await self.read("decode", lambda: stored.prepare(lookup))

    async def share(
        self, stored: CachedPassages, prompts: Sequence[PromptTokens], chunk_size: int
    ) -> list[PromptTokens]:
        """Share, timed as decoding."""
        return await self.read("decode", lambda: stored.share(prompts, chunk_size))

    async def margins(
        self, side: QuerySide, prompts: Sequence[Tokens], passages: Sequence[Tensor | PrefixKV]
    ) -> list[float]:
        """Decode, timed."""
        return await self.read("decode", lambda: side.margins(prompts, passages, side.batch_pairs))

    def finished(self) -> dict[str, float]:
        """The timings, with `total` since the driver was made."""
        return self.timings_ms | {"total": (time.perf_counter() - self.started) * 1000}


def run_inline(coroutine: Coroutine[Any, Any, _T]) -> _T:
    """The result of a coroutine whose driver is an `InlineDriver`: it runs to its end without suspending."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        result: _T = end.value
        return result
    coroutine.close()
    raise RuntimeError("the coroutine waits for something; only an InlineDriver's runs without an event loop")
