"""What the parts of an index answer -> one answer, as of the whole. Asks nobody."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from kalm_cache.first_stage import Candidates
from kalm_cache.scoring.pipeline import RankingRules, Shortlist, rank
from kalm_cache.scoring.ranking import Answer, SearchResult
from query_service.answering.context import BudgetPlan, Found, Search
from query_service.router import messages as m
from query_service.router.fleet import Part


def merged(
    candidates: Candidates,
    rows: Mapping[Part, Sequence[int]],
    ranked: Mapping[Part, m.Ranked],
    search: Search,
    rules: RankingRules,
) -> Found:
    """The margins of all parts in one order, as `rank` has it of a whole index; `rules` are of `RankingRules.at`."""
    names: list[str | None] = [None] * len(candidates)
    margins: dict[int, float] = {}
    answered = sorted(row for some in rows.values() for row in some)
    for part, some in rows.items():
        for row, doc_id, margin in zip(some, ranked[part].doc_ids, ranked[part].margins, strict=True):
            names[row] = doc_id
            if margin is not None:
                margins[row] = margin
    named = [row for row in answered if names[row] is not None]
    nameless = [f"number {candidates.ordinals[row]}" for row in answered if names[row] is None]
    shortlist = Shortlist(
        [str(names[row]) for row in named], Candidates(candidates.ordinals[named], candidates.scores[named])
    )
    positions = [place for place, row in enumerate(named) if row in margins]
    plan = _joint_plan([each.plan for each in ranked.values() if each.plan is not None])
    if plan is not None:  # a budget may have chosen a coarser ratio
        rules = replace(rules, chunk_size=plan.chunk_size)
    results, _ = rank(shortlist, positions, [margins[named[place]] for place in positions], rules)
    texts = {doc_id: text for answer in ranked.values() for doc_id, text in answer.texts.items()}
    damaged = {doc_id for answer in ranked.values() for doc_id in answer.damaged}
    scored = {shortlist.doc_ids[place] for place in positions}
    textless = [result.doc_id for result in results if result.doc_id in damaged]
    records = [doc_id for doc_id in shortlist.doc_ids if doc_id in damaged and doc_id not in scored]
    answer = Answer(
        search.prompt.query,
        any(each.query_truncated for each in ranked.values()),
        [_with_text(result, texts) for result in results],
        {},
        [*nameless, *records, *textless],
    )
    return Found(answer, plan)


def _with_text(result: SearchResult, texts: Mapping[str, str | None]) -> SearchResult:
    return replace(result, text=texts.get(result.doc_id))


def _joint_plan(plans: Sequence[BudgetPlan]) -> BudgetPlan | None:
    """What the parts did together: each has fitted its own candidates into the time, side by side with the others."""
    if not plans:
        return None
    return BudgetPlan(
        sum(plan.k for plan in plans),
        max(plan.chunk_size for plan in plans),
        max(plan.predicted_ms for plan in plans),
        any(plan.reduced for plan in plans),
    )
