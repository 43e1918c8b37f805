"""(query, document) pairs of any queries → their scores, in the order of the pairs. Knows no library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kalm_cache.adapters.candidates import Candidate, ScoredCandidate, StoredScores, texts_to_encode
from kalm_cache.adapters.scorer import RerankerSource, Scorer
from kalm_cache.arguments import check_fields, check_pairs
from kalm_cache.errors import DamagedRecordError, UsageError
from kalm_cache.passage import ID_NAMES, TEXT_NAMES, first_present


def score_pairs(
    scorer: Scorer, pairs: Sequence[Any], instruction: str | None, options: Mapping[str, Any]
) -> list[ScoredCandidate]:
    """Each pair's score. A reranker gets all pairs in one call, a service and an index those of a query.

    Args:
        scorer: what scores.
        pairs: as `KaLMCrossEncoder.predict` takes them.
        instruction: what queries ask for; `None` = the backend's own.
        options: of `KaLMReranker.predict`, for a reranker alone.

    Raises:
        UsageError: what is no pair of a query and a document, named by its position.
        DamagedRecordError: a stored passage is damaged.
    """
    checked = check_pairs(pairs)
    queries = [query for query, _ in checked]
    candidates = [_candidate(document, f"pairs[{i}][1]") for i, (_, document) in enumerate(checked)]
    source = scorer.source()
    if not isinstance(source, RerankerSource):
        return _by_query(scorer, queries, candidates, instruction)
    texts = texts_to_encode(candidates, StoredScores({}), "encode")
    scores = source.score_pairs([(queries[i], text) for i, text in texts.items()], instruction, options)
    return [ScoredCandidate(i, score.score, score.margin, "encoded") for i, score in enumerate(scores)]


def _by_query(
    scorer: Scorer, queries: Sequence[str], candidates: Sequence[Candidate], instruction: str | None
) -> list[ScoredCandidate]:
    positions: dict[str, list[int]] = {}
    for i, query in enumerate(queries):
        positions.setdefault(query, []).append(i)
    scored: dict[int, ScoredCandidate] = {}
    for query, of_query in positions.items():
        for candidate in scorer.score(query, [candidates[i] for i in of_query], instruction):
            scored[of_query[candidate.index]] = candidate
    lost = [i for i in range(len(queries)) if i not in scored]
    if lost:
        raise DamagedRecordError(f"pair {lost[0]} has no score: its stored passage is damaged; run kalm-cache verify")
    return [scored[i] for i in range(len(queries))]


def _candidate(document: Any, name: str) -> Candidate:
    fields = check_fields(document, name)
    if isinstance(fields, str):
        return Candidate(None, fields)
    id_name, text_name = first_present(("doc_id", *ID_NAMES), fields), first_present(TEXT_NAMES, fields)
    if id_name is None and text_name is None:
        raise UsageError(f"{name} has neither an id nor a text; expected a text or {{'doc_id', 'text'}}")
    rest = {field: value for field, value in fields.items() if field not in ID_NAMES}
    return Candidate(None if id_name is None else fields[id_name], None if text_name is None else rest)
