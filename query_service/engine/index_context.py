"""`IndexContext`: what an open index, or a model alone, answers. Knows nothing of HTTP."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from kalm_cache.errors import DamagedRecordError, UsageError
from kalm_cache.index.passage_index import PassageIndex
from kalm_cache.model.prompts import Prompt, require_short
from kalm_cache.scoring.attribution import attribute
from kalm_cache.scoring.pipeline import RankingRules, Shortlist, rerank
from kalm_cache.settings import Settings
from query_service.answering.context import Attended, Described, Explanation, Found, Search
from query_service.answering.model_card import ModelCard
from query_service.answering.notes import AnswerNotes
from query_service.answering.passages import AnyPassage, ScoringOptions
from query_service.answering.scores import Scores
from query_service.engine.request_context import RequestContext
from query_service.engine.scoring import score_pairs
from query_service.engine.time_budget import TimeBudget


@dataclass(frozen=True, slots=True)
class IndexContext:
    """An `AnswerContext` whose answers are computed here; `request` is how, and what is noted of them."""

    request: RequestContext

    @property
    def notes(self) -> AnswerNotes:
        """What is noted of the answer."""
        return self.request

    @property
    def settings(self) -> Settings:
        """What holds where a request does not say."""
        return self.request.settings

    @property
    def model(self) -> ModelCard:
        """What scores."""
        return self.request.model

    @property
    def version(self) -> str:
        """The generation that answers; `none` without an index."""
        return self.request.served.version

    async def check_instruction(self, instruction: str) -> None:
        """See `AnswerContext.check_instruction`."""
        tokenizer, limit = self.request.model.query_side.tokenizer, self.settings.max_instruction_tokens
        await self.request.read("read", lambda: require_short(tokenizer, instruction, limit))

    async def search(self, search: Search) -> Found:
        """See `AnswerContext.search`."""
        index = self.request.index
        find = index.find_texts if search.with_text else None
        checked = None if search.filter is None else index.metadata.parse(search.filter)
        names = index.metadata.check_fields(search.fields)
        shortlist = await self.request.read(
            "first_stage", lambda: index.find(search.prompt.query, search.k, search.mode, checked)
        )
        rules = RankingRules(
            search.chunk_size,
            search.top_n,
            search.weight,
            find,
            find_metadata=(lambda doc_ids: index.metadata.values(doc_ids, names)) if search.fields else None,
            calibration=index.calibration,
            min_probability=search.min_probability,
        )
        return await self.rank(search.prompt, shortlist, rules, search.budget_ms)

    async def rank(self, prompt: Prompt, shortlist: Shortlist, rules: RankingRules, budget_ms: float | None) -> Found:
        """Rerank candidates, in a time budget where one is given."""
        budget = None if budget_ms is None else TimeBudget(self.request, budget_ms)
        if budget is not None:
            rules = replace(rules, shorten=budget.shorten)
        answer = await rerank(self.request, self.request.index.stored, prompt, shortlist, rules)
        self.request.counts.queries_cut += answer.query_truncated
        return Found(answer, None if budget is None else budget.plan)

    async def score_pairs(
        self, prompts: Sequence[Prompt], passages: Sequence[AnyPassage], options: ScoringOptions
    ) -> Scores:
        """See `AnswerContext.score_pairs`. Equal prompts are tokenised once, equal passages read once.

        Texts of a bound key are private: no cache tells it what others have sent.
        """
        if self.request.bound is not None:
            options = replace(options, cache=False)
        return await score_pairs(self.request, prompts, passages, options)

    async def find_texts(self, doc_ids: Sequence[str]) -> list[str | None]:
        """See `AnswerContext.find_texts`."""
        texts = await self.request.read("read", lambda: self.request.index.find_texts(doc_ids))
        return [text if isinstance(text, str) else None for text in texts]

    async def describe(
        self, doc_ids: Sequence[str], filter: Mapping[str, Any] | None, fields: Sequence[str]
    ) -> Described:
        """See `AnswerContext.describe`."""
        metadata = self.request.index.metadata
        checked, names = metadata.parse(filter or {}), metadata.check_fields(fields)
        return await self.request.read(
            "read", lambda: Described(metadata.matches(doc_ids, checked), metadata.values(doc_ids, names))
        )

    async def explain(self, prompt: Prompt, doc_id: str, chunk_size: int | None) -> Explanation:
        """See `AnswerContext.explain`: decoded once more in plain torch, between two batches."""
        return await self.request.compute("decode", lambda: _explain(self.request.index, prompt, doc_id, chunk_size))


def _explain(index: PassageIndex, prompt: Prompt, doc_id: str, chunk_size: int | None) -> Explanation:
    chunk_size = chunk_size or index.chunk_size
    [passage] = index.pooled([doc_id], chunk_size=chunk_size)
    text = _text(doc_id, index)
    [tokens] = index.stored.share([index.query_side.tokenize(prompt)], chunk_size)
    attribution = attribute(
        index.query_side,
        tokens,
        text,
        passage,
        chunk_size=chunk_size,
        max_length=index.generation.manifest.fingerprint.max_length,
    )
    return Explanation(
        margin=attribution.margin,
        chunk_size=chunk_size,
        query_truncated=attribution.query_truncated,
        truncated=passage.truncated,
        text=text,
        chunks=[
            Attended(chunk.start, chunk.end, weight, chunk.tokens)
            for chunk, weight in zip(attribution.chunks, attribution.weights, strict=True)
        ],
    )


def _text(doc_id: str, index: PassageIndex) -> str:
    [text] = index.find_texts([doc_id])
    if isinstance(text, DamagedRecordError):
        raise text
    if text is None:
        raise UsageError(
            "the index keeps no texts, so there is nothing to show attention on; index again without --no-text"
        )
    return text
