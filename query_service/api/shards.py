"""`/shard/…`: what a router asks a service of shards. Knows nothing of routers.

A question is answered by the generation that it names, or not at all. The client is a router of the same version:
paths, fields and values may change with any version.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import numpy as np
from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from kalm_cache.errors import DamagedRecordError, UsageError
from kalm_cache.first_stage import Candidates
from kalm_cache.scoring.pipeline import RankingRules, Shortlist
from query_service.answering.context import Described, Explanation
from query_service.answering.model_card import ModelCard
from query_service.answering.passages import AnyPassage, RawPassage, StoredPassage
from query_service.engine.index_context import IndexContext
from query_service.engine.live import LiveIndex
from query_service.engine.service import Service
from query_service.middleware.request_log import note_answer
from query_service.router import messages as m

_Asked = TypeVar("_Asked", bound=m.Question)
_Answered = TypeVar("_Answered")


def shard_routes(service: Service) -> list[Route]:
    """A route for every question, of a service that has shards of an index."""

    def route(
        exchange: m.Exchange[_Asked, _Answered], answer: Callable[[_Asked, IndexContext], Awaitable[_Answered]]
    ) -> Route:
        async def endpoint(request: Request) -> Response:
            question = _read(exchange, await request.body())
            async with service.begin(question.timeout_ms, question.generation, question.bound) as context:
                answered = await answer(question, IndexContext(context))
                note_answer(question.generation, context.finished())
                return _json(exchange.answer.dump_json(answered))

        return Route(exchange.path, endpoint, methods=["POST"])

    async def status(_: Request) -> Response:
        return _json(m.STATUS.dump_json(_status(service)))

    return [
        Route(m.STATUS_PATH, status, methods=["GET"]),
        route(m.FIND, _find),
        route(m.RANK, _rank),
        route(m.SCORE, _score),
        route(m.LOCATE, _locate),
        route(m.TEXTS, _find_texts),
        route(m.DESCRIBE, _describe),
        route(m.EXPLAIN, _explain),
    ]


def _read(exchange: m.Exchange[_Asked, Any], body: bytes) -> _Asked:
    try:
        return exchange.question.validate_json(body)
    except ValidationError as exc:
        raise UsageError(
            f"this is no question that a router of this version asks: {exc.error_count()} fields are wrong"
        ) from exc


def _json(content: bytes) -> Response:
    return Response(content, media_type="application/json")


def _status(service: Service) -> m.Status:
    facts, live = service.facts(), service.live
    assert isinstance(live, LiveIndex)
    sharding = live.served.require_index().generation.manifest.sharding
    numbers = service.settings.served_shards
    assert sharding is not None and numbers is not None
    return m.Status(
        numbers=list(numbers),
        count=sharding.count,
        buckets=sharding.buckets,
        generations=live.generations,
        passages=live.served.passages,
        damaged_reads=facts.damaged_reads,
        first_stage=[mode for mode in ("dense", "bm25", "fused") if mode in facts.first_stage],
        encodes_documents=facts.encodes_documents,
        model=ModelCard(**{name: getattr(facts.model, name) for name in ModelCard.__dataclass_fields__}),
        ready=service.ready,
    )


async def _find(question: m.Find, context: IndexContext) -> m.Lists:
    index = context.request.index
    mode = question.mode or index.first_stage.modes[-1]
    checked = None if question.filter is None else index.metadata.parse(question.filter)
    lists = await context.request.read(
        "first_stage", lambda: index.find_lists(question.query, question.k, mode, checked)
    )
    rankings = [m.Ranking(found.ordinals.tolist(), found.scores.tolist()) for found in lists]
    return m.Lists(mode, rankings, context.notes.finished())


async def _rank(question: m.Rank, context: IndexContext) -> m.Ranked:
    await _check_instruction(question.prompt.instruction, context)
    index, ordinals = context.request.index, np.array(question.ordinals, np.int64)
    scores = np.zeros(len(ordinals), np.float32)  # a router has them, and needs no z-scores of a part
    shortlist = await context.request.read("read", lambda: index.name(Candidates(ordinals, scores)))
    assert shortlist.candidates is not None
    rules = RankingRules(question.chunk_size)
    found = await context.rank(question.prompt, Shortlist(shortlist.doc_ids), rules, question.budget_ms)
    named = dict(zip(shortlist.candidates.ordinals.tolist(), shortlist.doc_ids, strict=True))
    doc_ids = [named.get(ordinal) for ordinal in question.ordinals]
    margins = {result.doc_id: result.margin for result in found.answer.results}
    bonus = dict(zip(doc_ids, question.bonus or [0.0] * len(doc_ids), strict=True))
    best = sorted(margins, key=lambda doc_id: -(margins[doc_id] + bonus[doc_id]))[: question.texts]
    texts = await context.request.read("read", lambda: index.find_texts(best)) if best else []
    textless = [doc_id for doc_id, text in zip(best, texts, strict=True) if isinstance(text, DamagedRecordError)]
    return m.Ranked(
        doc_ids,
        [None if doc_id is None else margins.get(doc_id) for doc_id in doc_ids],
        {doc_id: text if isinstance(text, str) else None for doc_id, text in zip(best, texts, strict=True)},
        [*found.answer.damaged, *textless],
        found.answer.query_truncated,
        found.plan,
        context.notes.counts,
        context.notes.finished(),
    )


async def _score(question: m.ScorePairs, context: IndexContext) -> m.PairScores:
    for instruction in {prompt.instruction for prompt in question.prompts}:
        await _check_instruction(instruction, context)
    prompts = [question.prompts[pair.prompt] for pair in question.pairs]
    scores = await context.score_pairs(prompts, [_passage(pair) for pair in question.pairs], question.options)
    return m.PairScores(
        scores.scores,
        scores.prompt_tokens,
        scores.passage_tokens,
        scores.query_truncated,
        [(record.doc_id, record.problem) for record in scores.damaged],
        scores.missing,
        context.notes.counts,
        context.notes.finished(),
    )


async def _locate(question: m.Locate, context: IndexContext) -> m.Located:
    store = context.request.index.store
    contents = [bytes.fromhex(content) for content in question.contents]
    found = await context.request.read("read", lambda: store.find_contents(contents))
    return m.Located([doc_id is not None for doc_id in found])


async def _find_texts(question: m.FindTexts, context: IndexContext) -> m.Texts:
    return m.Texts(await context.find_texts(question.doc_ids))


async def _describe(question: m.Describe, context: IndexContext) -> Described:
    return await context.describe(question.doc_ids, question.filter, question.fields)


async def _explain(question: m.Explain, context: IndexContext) -> Explanation:
    await _check_instruction(question.prompt.instruction, context)
    return await context.explain(question.prompt, question.doc_id, question.chunk_size)


async def _check_instruction(instruction: str, context: IndexContext) -> None:
    if instruction != context.settings.instruction:
        await context.check_instruction(instruction)


def _passage(pair: m.Pair) -> AnyPassage:
    if pair.doc_id is not None:
        return StoredPassage(pair.doc_id, pair.text)
    return RawPassage(pair.text or "")
