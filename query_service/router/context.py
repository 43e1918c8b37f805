"""`ShardsContext`: the answer to one request, put together from those of the shards. Knows nothing of HTTP."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np

from kalm_cache.errors import UnknownIdError
from kalm_cache.first_stage import Candidates, fuse, list_depth, merge, z_scores
from kalm_cache.model.prompts import Prompt
from kalm_cache.passage import Passage
from kalm_cache.scoring.pipeline import RankingRules, Shortlist
from kalm_cache.scoring.state_reader import DamagedPassage
from kalm_cache.settings import Settings
from kalm_cache.storage.passage_store import key_of
from query_service.answering.context import Described, Explanation, Found, Search
from query_service.answering.model_card import ModelCard
from query_service.answering.notes import AnswerNotes
from query_service.answering.passages import AnyPassage, ScoringOptions, StoredPassage
from query_service.answering.scores import Score, Scores
from query_service.router import messages as m
from query_service.router.errors import ReplicaFailedError, ShardsMissingError
from query_service.router.fleet import Part, Pin
from query_service.router.merging import merged

_Asked = TypeVar("_Asked", bound=m.Question)
_Answered = TypeVar("_Answered")
Ask = Callable[[Part, m.Exchange[Any, Any], Any], Any]


@dataclass(slots=True)
class ShardsContext:
    """An `AnswerContext` whose answers are those of the shards of one generation.

    ask: sends a question to a part; awaited. limit_ms: of the whole request. bound: the filter of what the one who asks
    sees; `None` = everything. Every question has it.
    """

    pin: Pin
    notes: AnswerNotes
    limit_ms: float
    ask: Ask
    bound: Mapping[str, Any] | None = None
    parts: list[Part] = field(init=False)

    def __post_init__(self) -> None:
        self.parts = list(self.pin.parts)
        self.notes.missing_shards = list(self.pin.missing)

    @property
    def settings(self) -> Settings:
        """What holds where a request does not say."""
        return self.notes.settings

    @property
    def model(self) -> ModelCard:
        """What scores."""
        return self.pin.status.model

    @property
    def version(self) -> str:
        """The generation that answers."""
        return self.pin.generation.partition("-")[0]

    async def check_instruction(self, instruction: str) -> None:
        """Nothing: the shards do, which have the tokenizer."""

    async def search(self, search: Search) -> Found:
        """See `AnswerContext.search`. Lists are merged before they are fused: z-scores are of the whole index."""
        rules = RankingRules(
            top_n=search.top_n,
            first_stage_weight=search.weight,
            calibration=self.model.calibration,
            min_probability=search.min_probability,
        )
        rules = rules.at(search.chunk_size or self.model.chunk_size, Shortlist([], first_stage=search.mode))
        candidates, homes = await self._find(search)
        weight = rules.weight
        bonus = weight * z_scores(candidates.scores) if weight else None
        rows: dict[Part, list[int]] = {}
        for row, ordinal in enumerate(candidates.ordinals.tolist()):
            rows.setdefault(homes[ordinal], []).append(row)
        if not rows:
            rows = {self.parts[0]: []}  # which says whether the query was cut
        texts = (search.top_n or search.k) if search.with_text else 0
        budget_ms = None if search.budget_ms is None else search.budget_ms - self.notes.elapsed_ms
        ranked = await self._scatter(
            m.RANK,
            {
                part: m.Rank(
                    self.pin.generation,
                    self._left_ms,
                    search.prompt,
                    candidates.ordinals[some].tolist(),
                    search.chunk_size,
                    budget_ms,
                    texts,
                    [] if bonus is None else bonus[some].tolist(),
                )
                for part, some in rows.items()
            },
        )
        self._note([answer.timings_ms for answer in ranked.values()], [answer.counts for answer in ranked.values()])
        found = merged(candidates, {part: rows[part] for part in ranked}, ranked, search, rules)
        results = found.answer.results
        if search.fields:
            described = await self.describe([result.doc_id for result in results], None, search.fields)
            results = [replace(one, metadata=values) for one, values in zip(results, described.values, strict=True)]
        return replace(found, answer=replace(found.answer, results=results, timings_ms=self.notes.finished()))

    async def score_pairs(
        self, prompts: Sequence[Prompt], passages: Sequence[AnyPassage], options: ScoringOptions
    ) -> Scores:
        """See `AnswerContext.score_pairs`: stored passages go to their shards, texts to those that hold them."""
        homes = await self._homes(passages, options)
        distinct = {prompt: place for place, prompt in enumerate(dict.fromkeys(prompts))}
        rows: dict[Part, list[int]] = {}
        for row, passage in enumerate(passages):
            part = homes.get(passage)
            if part is not None:
                rows.setdefault(part, []).append(row)
        if not rows and self.parts:
            rows = {self.parts[0]: []}
        asked = options if options.on_missing == "encode" else replace(options, on_missing="skip")
        questions = {}
        for part, some in rows.items():
            pairs = [_pair(distinct[prompts[row]], passages[row]) for row in some]
            questions[part] = m.ScorePairs(self.pin.generation, self._left_ms, list(distinct), pairs, asked)
        answers = await self._scatter(m.SCORE, questions)
        self._note([answer.timings_ms for answer in answers.values()], [answer.counts for answer in answers.values()])
        scores: list[Score | None] = [None] * len(passages)
        for part, answer in answers.items():
            for row, score in zip(rows[part], answer.scores, strict=True):
                scores[row] = score
        missing = _in_order(passages, [doc_id for answer in answers.values() for doc_id in answer.missing])
        if missing and options.on_missing != "skip":
            raise UnknownIdError(missing)
        merged = Scores(
            scores,
            prompt_tokens=sum(answer.prompt_tokens for answer in answers.values()),
            passage_tokens=sum(answer.passage_tokens for answer in answers.values()),
            query_truncated=any(answer.query_truncated for answer in answers.values()),
            damaged=[DamagedPassage(*record) for answer in answers.values() for record in answer.damaged],
            missing=missing,
        )
        self.notes.truncated, self.notes.cache_hits = merged.truncated, merged.cache_hits
        return merged

    async def find_texts(self, doc_ids: Sequence[str]) -> list[str | None]:
        """See `AnswerContext.find_texts`."""
        rows = self._rows_by_part(doc_ids)
        questions = {
            part: m.FindTexts(self.pin.generation, self._left_ms, [doc_ids[row] for row in some])
            for part, some in rows.items()
        }
        texts: list[str | None] = [None] * len(doc_ids)
        for part, answer in (await self._scatter(m.TEXTS, questions)).items():
            for row, text in zip(rows[part], answer.texts, strict=True):
                texts[row] = text
        return texts

    async def describe(
        self, doc_ids: Sequence[str], filter: Mapping[str, Any] | None, fields: Sequence[str]
    ) -> Described:
        """See `AnswerContext.describe`."""
        rows = self._rows_by_part(doc_ids) or {self.parts[0]: []}  # which says whether filter and fields fit
        wanted = None if filter is None else dict(filter)
        questions = {
            part: m.Describe(self.pin.generation, self._left_ms, [doc_ids[row] for row in some], wanted, list(fields))
            for part, some in rows.items()
        }
        described = Described([None] * len(doc_ids), [{} for _ in doc_ids])
        for part, answer in (await self._scatter(m.DESCRIBE, questions)).items():
            for row, is_match, values in zip(rows[part], answer.matches, answer.values, strict=True):
                described.matches[row], described.values[row] = is_match, values
        return described

    def _rows_by_part(self, doc_ids: Sequence[str]) -> dict[Part, list[int]]:
        """The positions of ids that each part has, or would have."""
        rows: dict[Part, list[int]] = {}
        for row, doc_id in enumerate(doc_ids):
            part = self._home_of(doc_id)
            if part is not None:
                rows.setdefault(part, []).append(row)
        return rows

    async def explain(self, prompt: Prompt, doc_id: str, chunk_size: int | None) -> Explanation:
        """See `AnswerContext.explain`."""
        part = self._home_of(doc_id)
        if part is None:
            raise ShardsMissingError(self.notes.missing_shards)
        question = m.Explain(self.pin.generation, self._left_ms, prompt, doc_id, chunk_size)
        answers = await self._scatter(m.EXPLAIN, {part: question})
        if part not in answers:
            raise ShardsMissingError(self.notes.missing_shards)
        return answers[part]

    async def _find(self, search: Search) -> tuple[Candidates, dict[int, Part]]:
        """The first stage's candidates, and the part of each ordinal."""
        k, filter = search.k, None if search.filter is None else dict(search.filter)
        question = m.Find(self.pin.generation, self._left_ms, search.prompt.query, k, search.mode, filter)
        answers = await self._scatter(m.FIND, dict.fromkeys(self.parts, question))
        self._note([answer.timings_ms for answer in answers.values()], [])
        by_part = {part: [_candidates(ranking) for ranking in answer.lists] for part, answer in answers.items()}
        homes = {
            ordinal: part for part, lists in by_part.items() for found in lists for ordinal in found.ordinals.tolist()
        }
        modes = {answer.mode for answer in answers.values()}
        depth = max((list_depth(k, each) for each in modes), default=k)
        merged = [merge(lists, depth) for lists in zip(*by_part.values(), strict=True)]
        return fuse(merged, k), homes

    async def _homes(self, passages: Sequence[AnyPassage], options: ScoringOptions) -> dict[AnyPassage, Part]:
        """Who scores each passage: the shard of its id; of a text, a shard that has it, else one by its content."""
        distinct = list(dict.fromkeys(passages))
        homes: dict[AnyPassage, Part | None] = {
            passage: self._home_of(passage.doc_id) for passage in distinct if isinstance(passage, StoredPassage)
        }
        by_text = {
            passage: Passage("", passage.text).content_hash()
            for passage in distinct
            if passage.text is not None and (passage not in homes or options.on_missing == "encode")
        }
        if not by_text:
            return {passage: part for passage, part in homes.items() if part is not None}
        holders = await self._holders(list(by_text.values())) if options.cache else {}
        for passage, content in by_text.items():
            holding, home = holders.get(content, []), homes.get(passage)
            if holding:
                homes[passage] = home if home in holding else holding[0]
            elif home is None:
                homes[passage] = self.parts[int.from_bytes(content[:8], "big") % len(self.parts)]
        return {passage: part for passage, part in homes.items() if part is not None}

    async def _holders(self, contents: Sequence[bytes]) -> dict[bytes, list[Part]]:
        """The parts whose passages have these contents."""
        if len(self.parts) == 1:
            return {}
        question = m.Locate(self.pin.generation, self._left_ms, [content.hex() for content in contents])
        holders: dict[bytes, list[Part]] = {}
        for part, answer in (await self._scatter(m.LOCATE, dict.fromkeys(self.parts, question))).items():
            for content, present in zip(contents, answer.present, strict=True):
                if present:
                    holders.setdefault(content, []).append(part)
        return holders

    def _home_of(self, doc_id: str) -> Part | None:
        """The part that has an id, or would have it; `None` where nobody serves it now."""
        shard = self.pin.sharding.shard_of(key_of(doc_id))
        return next((part for part in self.parts if shard in part.numbers), None)

    async def _scatter(
        self, exchange: m.Exchange[_Asked, _Answered], questions: Mapping[Part, _Asked]
    ) -> dict[Part, _Answered]:
        """The answers of all parts that live; without one that does not, where such answers are wanted.

        Raises:
            ShardsMissingError: nobody serves a part any more, and answers without it are not wanted.
            KalmCacheError: what a part refuses.
        """
        bound = None if self.bound is None else dict(self.bound)
        asking = [
            asyncio.ensure_future(self.ask(part, exchange, replace(question, bound=bound)))
            for part, question in questions.items()
        ]
        try:
            answers: dict[Part, _Answered] = {}
            for part, answer in zip(questions, asking, strict=True):
                try:
                    answers[part] = await answer
                except ReplicaFailedError:
                    self._lose(part)
            return answers
        finally:
            for answer in asking:
                answer.cancel()

    def _lose(self, part: Part) -> None:
        missing = sorted({*self.notes.missing_shards, *part.numbers})
        if not self.settings.partial_answers or len(self.parts) == 1:
            raise ShardsMissingError(missing)
        self.notes.missing_shards = missing
        self.parts.remove(part)

    def _note(self, timings: Sequence[Mapping[str, float]], counts: Sequence[Any]) -> None:
        """Add the longest time of each stage, as the parts work side by side, and what all of them used."""
        for stage in dict.fromkeys(stage for each in timings for stage in each if stage != "total"):
            longest = max(each.get(stage, 0.0) for each in timings)
            self.notes.timings_ms[stage] = self.notes.timings_ms.get(stage, 0.0) + longest
        for each in counts:
            self.notes.counts.add(each)

    @property
    def _left_ms(self) -> int:
        return max(1, math.floor(self.limit_ms - self.notes.elapsed_ms))


def _candidates(ranking: m.Ranking) -> Candidates:
    return Candidates(np.array(ranking.ordinals, np.int64), np.array(ranking.scores, np.float32))


def _pair(prompt: int, passage: AnyPassage) -> m.Pair:
    return m.Pair(prompt, passage.doc_id if isinstance(passage, StoredPassage) else None, passage.text)


def _in_order(passages: Sequence[AnyPassage], doc_ids: Sequence[str]) -> list[str]:
    """Ids in the order in which the request has them."""
    wanted = set(doc_ids)
    given = dict.fromkeys(passage.doc_id for passage in passages if isinstance(passage, StoredPassage))
    return [doc_id for doc_id in given if doc_id in wanted]
