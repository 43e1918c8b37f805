"""Whom adapters ask: a service, an index in this process, or a reranker that encodes on the fly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING, Any, Protocol, TypedDict, cast

from anyio import to_thread

from kalm_cache.adapters.judging import AskStored, AskTexts, Candidate, Judged, OnMissing, Told, Verdict, judging
from kalm_cache.client import AsyncClient, Client, ServedAnswer
from kalm_cache.client.calls import pairs_of
from kalm_cache.errors import UnknownIdError, UsageError

if TYPE_CHECKING:
    from kalm_cache.index.passage_index import PassageIndex
    from kalm_cache.reranker import KaLMReranker
    from kalm_cache.scoring.ranking import Answer

Backend = Any  # Client, AsyncClient, PassageIndex or KaLMReranker; naming the last two here would load torch
_one_at_a_time = Lock()  # a computation in this process uses every core, or the whole device


class Options(TypedDict, total=False):
    """What of a judgement the caller chose; what is missing is the backend's own."""

    instruction: str
    chunk_size: int


class Source(Protocol):
    """Judges the passages of one query."""

    def stored(self, query: str, asked: AskStored, options: Options) -> Told:
        """Verdicts of passages by their ids."""

    def encoded(self, query: str, asked: AskTexts, options: Options) -> list[Verdict]:
        """The verdict of each text."""


@dataclass(frozen=True, slots=True)
class ServiceSource:
    """A query service."""

    client: Client

    def stored(self, query: str, asked: AskStored, options: Options) -> Told:
        """In one request that holds no text."""
        on_missing: OnMissing = "error" if asked.strict else "skip"
        return _told(self.client.rerank(query, asked.ids, with_text=False, on_missing=on_missing, **options))

    def encoded(self, query: str, asked: AskTexts, options: Options) -> list[Verdict]:
        """In requests of some hundred texts."""
        return [Verdict(one.score, one.margin) for one in self.client.score(pairs_of(query, asked.texts), **options)]


@dataclass(frozen=True, slots=True)
class IndexSource:
    """An index in this process, and a reranker of the same model where texts are to be encoded."""

    index: PassageIndex
    reranker: KaLMReranker | None

    def stored(self, query: str, asked: AskStored, options: Options) -> Told:
        """From the stored states."""
        with _one_at_a_time:
            try:
                return _told(self.index.rerank(query, asked.ids, with_text=False, **options))
            except UnknownIdError as exc:
                if asked.strict:
                    raise
                unknown = set(exc.ids)
            held = [doc_id for doc_id in asked.ids if doc_id not in unknown]
            return _told(self.index.rerank(query, held, with_text=False, **options)) if held else Told({})

    def encoded(self, query: str, asked: AskTexts, options: Options) -> list[Verdict]:
        """By the reranker."""
        if self.reranker is None:
            raise UsageError(
                "an index holds no encoder: give the adapter reranker=KaLMReranker(…) of the same model beside it, or "
                "choose on_missing='error' or 'skip'"
            )
        return RerankerSource(self.reranker).encoded(query, asked, options)


@dataclass(frozen=True, slots=True)
class RerankerSource:
    """A reranker in this process, which holds no passages: ids say nothing to it."""

    reranker: KaLMReranker

    def stored(self, query: str, asked: AskStored, options: Options) -> Told:
        """None are."""
        return Told({})

    def encoded(self, query: str, asked: AskTexts, options: Options) -> list[Verdict]:
        """Encodes and scores; the pooling ratio is the reranker's own."""
        pairs = [(query, text) for text in asked.texts]
        with _one_at_a_time:
            scored = self.reranker.predict(pairs, return_margin=True, instruction=options.get("instruction"))
        return [Verdict(one["score"], one["margin"]) for one in scored]


@dataclass(frozen=True, slots=True)
class Judge:
    """What every adapter holds: whom to ask, and how.

    Attributes:
        backend: `Client`, `AsyncClient`, `PassageIndex` or `KaLMReranker`.
        reranker: beside a `PassageIndex`, what encodes texts that it does not hold.
        on_missing: what becomes of documents that are not stored. A `KaLMReranker` encodes all of them.
        instruction: what queries ask for; `None` = the backend's own.
        chunk_size: pooling ratio; `None` = the backend's own.
    """

    backend: Backend
    reranker: KaLMReranker | None = None
    on_missing: OnMissing = "error"
    instruction: str | None = None
    chunk_size: int | None = None

    def judge(self, query: str, candidates: Sequence[Candidate], instruction: str | None = None) -> list[Judged]:
        """The candidates by falling margin, without those that are left out."""
        source, options = self._source(), self._options(instruction)
        steps = judging(candidates, self._policy(source))
        answer: Any = None
        while True:
            try:
                asked = steps.send(answer)
            except StopIteration as end:
                return cast(list[Judged], end.value)
            answer = _ask(source, query, asked, options)

    async def ajudge(self, query: str, candidates: Sequence[Candidate], instruction: str | None = None) -> list[Judged]:
        """As `judge`, without holding up the event loop: awaits an `AsyncClient`, and runs others in a thread."""
        if not isinstance(self.backend, AsyncClient):
            return await to_thread.run_sync(self.judge, query, candidates, instruction)
        steps, options = judging(candidates, self.on_missing), self._options(instruction)
        answer: Any = None
        while True:
            try:
                asked = steps.send(answer)
            except StopIteration as end:
                return cast(list[Judged], end.value)
            answer = await _ask_later(self.backend, query, asked, options)

    def _source(self) -> Source:
        if isinstance(self.backend, Client):
            return ServiceSource(self.backend)
        if isinstance(self.backend, AsyncClient):
            raise UsageError("an AsyncClient answers to asynchronous methods only; give the adapter a Client")
        from kalm_cache.index.passage_index import PassageIndex
        from kalm_cache.reranker import KaLMReranker

        if isinstance(self.backend, PassageIndex):
            return IndexSource(self.backend, self.reranker)
        if isinstance(self.backend, KaLMReranker):
            return RerankerSource(self.backend)
        got = type(self.backend).__name__
        raise UsageError(f"the backend is a {got}; expected Client, AsyncClient, PassageIndex or KaLMReranker")

    def _policy(self, source: Source) -> OnMissing:
        return "encode" if isinstance(source, RerankerSource) else self.on_missing

    def _options(self, instruction: str | None) -> Options:
        options = Options()
        wanted = self.instruction if instruction is None else instruction
        if wanted is not None:
            options["instruction"] = wanted
        if self.chunk_size is not None:
            options["chunk_size"] = self.chunk_size
        return options


def _ask(source: Source, query: str, asked: AskStored | AskTexts, options: Options) -> Told | list[Verdict]:
    if isinstance(asked, AskTexts):
        return source.encoded(query, asked, options)
    return source.stored(query, asked, options)


async def _ask_later(
    client: AsyncClient, query: str, asked: AskStored | AskTexts, options: Options
) -> Told | list[Verdict]:
    if isinstance(asked, AskTexts):
        scores = await client.score(pairs_of(query, asked.texts), **options)
        return [Verdict(one.score, one.margin) for one in scores]
    on_missing: OnMissing = "error" if asked.strict else "skip"
    return _told(await client.rerank(query, asked.ids, with_text=False, on_missing=on_missing, **options))


def _told(answer: Answer | ServedAnswer) -> Told:
    return Told({one.doc_id: Verdict(one.score, one.margin) for one in answer.results}, answer.damaged)
