"""Candidates and their margins -> the results that an answer holds: order, texts, what of them is damaged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kalm_cache.errors import DamagedRecordError
from kalm_cache.first_stage import Candidates, z_scores
from kalm_cache.scoring.query_side import score_of
from kalm_cache.scoring.ranking import SearchResult, best_first, interpolated


@dataclass(frozen=True, slots=True)
class Found:
    """The first stage's candidates, best first, with their ids; `damaged` names those whose id cannot be read."""

    doc_ids: list[str]
    candidates: Candidates
    damaged: list[str]


def results_of(
    ids: Sequence[str],
    positions: Sequence[int],
    margins: Sequence[float],
    *,
    top_n: int | None,
    find_texts: Callable[[Sequence[str]], Sequence[str | DamagedRecordError | None]] | None,
    candidates: Candidates | None = None,
    first_stage_weight: float = 0.0,
) -> tuple[list[SearchResult], list[str]]:
    """Results, best first, and the ids among them whose text is damaged.

    Args:
        ids: the passages that were asked for.
        positions: where in `ids` the passage of each margin is.
        margins: of the passages that were scored.
        top_n: how many results; `None` = all.
        find_texts: fills `SearchResult.text`, as `PassageIndex.find_texts` does; `None` = leaves it empty.
        candidates: the first stage's, in the order of `ids`; `None` = the ids were given.
        first_stage_weight: of the candidates' scores in the order; 0 = the margins decide alone.
    """
    order = best_first(_ordering(margins, positions, candidates, first_stage_weight), top_n)
    places = [positions[i] for i in order]
    texts = [None] * len(order) if find_texts is None else find_texts([ids[place] for place in places])
    results = [
        SearchResult(
            doc_id=ids[place],
            score=score_of(margins[i]),
            margin=margins[i],
            rank=rank,
            first_stage_rank=None if candidates is None else place + 1,
            first_stage_score=None if candidates is None else float(candidates.scores[place]),
            text=text if isinstance(text, str) else None,
        )
        for rank, (i, place, text) in enumerate(zip(order, places, texts, strict=True), start=1)
    ]
    damaged = [ids[at] for at, text in zip(places, texts, strict=True) if isinstance(text, DamagedRecordError)]
    return results, damaged


def _ordering(
    margins: Sequence[float], positions: Sequence[int], candidates: Candidates | None, weight: float
) -> Sequence[float]:
    """What the candidates at `positions` are ordered by."""
    if candidates is None or not weight:
        return margins
    return interpolated(margins, z_scores(candidates.scores)[list(positions)].tolist(), weight)
