"""`POST /score`: pairs in the order given, as `pairs` or as two columns."""

from __future__ import annotations

import time
from uuid import uuid4

from kalm_cache.passage import OnMissing, PassageTemplate
from query_service.answering.context import AnswerContext
from query_service.answering.errors import EmptyError
from query_service.answering.passages import AnyPassage, StoredPassage
from query_service.answering.scores import Score
from query_service.api.envelope import curve_of, margin_of, meta_of, probability_of, usage_of, value_of
from query_service.api.request_values import check_count, passage_of, prompt_of, scoring_options, unused_fields
from query_service.api.requests import ScorePair, ScoreRequest
from query_service.api.responses import PairResult, PairsResponse, ScoreData, ScoreResponse


async def answer_score(request: ScoreRequest, context: AnswerContext) -> PairsResponse | ScoreResponse:
    """The score of each pair, in the dialect that the pairs came in. Missing passages that are skipped have none.

    Raises:
        TooManyError: more pairs than the service takes.
        EmptyError: two columns without a line.
        EncoderOffError, UnknownIdError, UsageError: as `score_pairs`.
        DamagedRecordError: a damaged passage.
    """
    if request.pairs is not None:
        return await _answer_pairs(request, request.pairs, context)
    return await _answer_columns(request, context)


async def _answer_columns(request: ScoreRequest, context: AnswerContext) -> ScoreResponse:
    queries, documents = request.columns()
    if not documents:
        raise EmptyError(request.right_column)
    if len(queries) == 1:
        queries = queries * len(documents)
    check_count(len(documents), "documents", context)
    prompts = [prompt_of(query, request.instruction, context.settings) for query in queries]
    template = context.model.passage_template
    passages = [passage_of(document, template, f"documents.{i}") for i, document in enumerate(documents)]
    context.notes.unused_fields = unused_fields(request, documents, template)
    scores = await context.score_pairs(prompts, passages, scoring_options(request, on_missing="encode"))
    curve = curve_of(request, context)
    scores.require_undamaged()
    return ScoreResponse(
        id=f"score-{uuid4().hex}",
        created=int(time.time()),
        model=context.notes.model_name,
        data=[
            ScoreData(
                index=i,
                score=value_of(score, request),
                margin=margin_of(score, request),
                probability=probability_of(score, curve),
            )
            for i, score in scores.by_position.items()
        ],
        usage=usage_of(scores),
        meta=meta_of(scores, context),
    )


async def _answer_pairs(request: ScoreRequest, pairs: list[ScorePair], context: AnswerContext) -> PairsResponse:
    check_count(len(pairs), "pairs", context)
    prompts = [prompt_of(pair.query, request.instruction, context.settings) for pair in pairs]
    default: OnMissing = "error" if any(pair.document is None for pair in pairs) else "encode"
    options = scoring_options(request, on_missing=default)
    template = context.model.passage_template
    passages = [_passage(pair, template, f"pairs.{i}.document") for i, pair in enumerate(pairs)]
    documents = [pair.document for pair in pairs if pair.document is not None]
    context.notes.unused_fields = unused_fields(request, documents, template)
    scores = await context.score_pairs(prompts, passages, options)
    scores.require_undamaged()
    curve = curve_of(request, context)
    results = [
        _pair_result(i, pairs[i], passages[i], score, request).model_copy(
            update={"probability": probability_of(score, curve)}
        )
        for i, score in scores.by_position.items()
    ]
    return PairsResponse(
        model=context.notes.model_name, results=results, usage=usage_of(scores), meta=meta_of(scores, context)
    )


def _passage(pair: ScorePair, template: PassageTemplate, name: str) -> AnyPassage:
    if pair.document is not None:
        return passage_of(pair.document, template, name)
    return StoredPassage(str(pair.doc_id))


def _pair_result(index: int, pair: ScorePair, passage: AnyPassage, score: Score, request: ScoreRequest) -> PairResult:
    return PairResult(
        index=index,
        label=pair.id if pair.label is None else pair.label,
        id=pair.id,
        doc_id=passage.doc_id if isinstance(passage, StoredPassage) else None,
        score=value_of(score, request),
        margin=margin_of(score, request),
    )
