"""Before and after, on queries that decided nothing: nDCG@10 by chunk size, a paired test, the shift of margins."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean
from typing import Any

from kalm_cache.evaluation.measures.significance import compare, holm_adjusted
from kalm_cache.finetuning.passages import Passages
from kalm_cache.finetuning.results.held_out import HeldOutQuery, ndcg_of
from kalm_cache.scoring.batching import DECODE_BATCH
from kalm_cache.scoring.query_side import QuerySide

SIGNIFICANT = 0.05


@dataclass(frozen=True, slots=True)
class Point:
    """One chunk size: mean nDCG@10 before and after, and how sure the difference is.

    Attributes:
        chunk_size: pooling ratio.
        before: mean nDCG@10 of the decoder that was fine-tuned.
        after: that of the one that came of it.
        low: of the 95 % confidence interval of the mean difference.
        high: of it.
        p: two-sided, of the paired randomisation test, corrected by Holm over the chunk sizes.
        better: queries that are ranked better; `worse`: those that are ranked worse.
        relevant_margins: mean margin of relevant candidates before and after; `None` = there are none.
        other_margins: of the other candidates.
    """

    chunk_size: int
    before: float
    after: float
    low: float
    high: float
    p: float
    better: int
    worse: int
    relevant_margins: tuple[float, float] | None
    other_margins: tuple[float, float] | None


@dataclass(frozen=True, slots=True)
class Comparison:
    """The report: `queries` that were compared, with `candidates` of the first stage for each."""

    queries: int
    candidates: int
    points: list[Point]

    @property
    def difference(self) -> float:
        """Mean over the chunk sizes of what nDCG@10 has gained."""
        return fmean(point.after - point.before for point in self.points)

    @property
    def is_worse(self) -> bool:
        """Whether the mean over the chunk sizes fell: then the old decoder had better stay."""
        return self.difference < 0

    def to_json(self) -> dict[str, Any]:
        """All fields, with the verdict."""
        return asdict(self) | {"difference": self.difference, "is_worse": self.is_worse}

    def lines(self) -> list[str]:
        """The report in words."""
        out = [f"{self.queries} held-out queries, {self.candidates} candidates each, nDCG@10 before → after:"]
        for point in self.points:
            sure = "" if point.p < SIGNIFICANT else ", not significant"
            out.append(
                f"  r = {point.chunk_size}: {point.before:.4f} → {point.after:.4f} ({point.after - point.before:+.4f}, "
                f"95% {point.low:+.4f} to {point.high:+.4f}, p = {point.p:.3f}{sure}; {point.better} better, "
                f"{point.worse} worse); mean margin of relevant passages {_shift(point.relevant_margins)}, of others "
                f"{_shift(point.other_margins)}"
            )
        verdict = "this is WORSE than before" if self.is_worse else "this is better than before"
        if self.difference == 0:
            verdict = "nothing has changed"
        return [*out, f"mean over chunk sizes {self.difference:+.4f}: {verdict}"]


def compare_decoders(
    before: QuerySide,
    after: QuerySide,
    passages: Passages,
    queries: Sequence[HeldOutQuery],
    chunk_sizes: Sequence[int],
    candidates: int,
    advance: Callable[[int], None],
) -> Comparison:
    """Rank the candidates of each query by both decoders at each chunk size; `advance` counts queries × chunk sizes.

    Raises:
        MissingExtraError: scipy is not installed.
    """
    points = [_point(before, after, passages, queries, chunk_size, advance) for chunk_size in chunk_sizes]
    adjusted = holm_adjusted([point.p for point in points])
    corrected = [replace(point, p=float(p)) for point, p in zip(points, adjusted, strict=True)]
    return Comparison(len(queries), candidates, corrected)


def _point(
    before: QuerySide,
    after: QuerySide,
    passages: Passages,
    queries: Sequence[HeldOutQuery],
    chunk_size: int,
    advance: Callable[[int], None],
) -> Point:
    margins: tuple[list[list[float]], list[list[float]]] = ([], [])
    relevant: tuple[list[float], list[float]] = ([], [])
    others: tuple[list[float], list[float]] = ([], [])
    for query in queries:
        states = passages.states(query.candidates, chunk_size)
        for place, side in enumerate((before, after)):
            prompt = side.tokenize(query.prompt.prompt)  # with the prefix that is this decoder's own
            margins[place].append(side.margins([prompt] * len(states), states, DECODE_BATCH))
            for margin, is_relevant in zip(margins[place][-1], query.is_relevant(), strict=True):
                (relevant if is_relevant else others)[place].append(margin)
        advance(1)
    values = ndcg_of(queries, margins[0]), ndcg_of(queries, margins[1])
    tested = compare({"after": values[1]}, "before", values[0])["after"]
    return Point(
        chunk_size,
        fmean(values[0]),
        fmean(values[1]),
        tested.low,
        tested.high,
        tested.p_randomisation,
        tested.better,
        tested.worse,
        _means(relevant),
        _means(others),
    )


def _means(margins: tuple[list[float], list[float]]) -> tuple[float, float] | None:
    return (fmean(margins[0]), fmean(margins[1])) if margins[0] else None


def _shift(margins: tuple[float, float] | None) -> str:
    return "–" if margins is None else f"{margins[0]:+.2f} → {margins[1]:+.2f}"
