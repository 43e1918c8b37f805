"""`Scorer`, which every adapter uses: scores of a query's candidates from a service, an index or a reranker."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING, Any, Protocol, TypedDict

from anyio import to_thread

from kalm_cache.adapters.candidates import Candidate, ScoredCandidate, StoredScores, ranked, stored_ids, texts_to_encode
from kalm_cache.arguments import check_document, check_text
from kalm_cache.client import AsyncClient, Client, PairScore
from kalm_cache.client.calls import DocumentLike, pairs_of
from kalm_cache.errors import UnknownIdError, UsageError
from kalm_cache.passage import OnMissing

if TYPE_CHECKING:
    from kalm_cache.index.passage_index import PassageIndex
    from kalm_cache.reranker import KaLMReranker
    from kalm_cache.scoring.ranking import Answer

Backend = Any  # Client, AsyncClient, PassageIndex or KaLMReranker; naming the last two here would load torch
_computing = Lock()  # one computation at a time: in this process it uses every core, or the whole device


class Options(TypedDict, total=False):
    """Options of scoring; where one is missing, the backend's default holds."""

    instruction: str
    chunk_size: int


class Source(Protocol):
    """What a backend does for a `Scorer`: it scores passages of one query."""

    def score_stored(self, query: str, doc_ids: list[str], strict: bool, options: Options) -> StoredScores:
        """Scores of stored passages. `strict`: an id that the index does not hold is an `UnknownIdError`."""

    def score_texts(self, query: str, texts: list[DocumentLike], options: Options) -> list[PairScore]:
        """The score of each text, in their order."""


@dataclass(frozen=True, slots=True)
class ServiceSource:
    """A query service."""

    client: Client

    def score_stored(self, query: str, doc_ids: list[str], strict: bool, options: Options) -> StoredScores:
        """One request, without texts."""
        on_missing: OnMissing = "error" if strict else "skip"
        return _by_id(self.client.rerank(query, doc_ids, with_text=False, on_missing=on_missing, **options))

    def score_texts(self, query: str, texts: list[DocumentLike], options: Options) -> list[PairScore]:
        """Requests of some hundred texts each."""
        return self.client.score(pairs_of(query, texts), **options)


@dataclass(frozen=True, slots=True)
class IndexSource:
    """An index in this process, and a reranker of the same model where texts are to be encoded."""

    index: PassageIndex
    reranker: KaLMReranker | None

    def score_stored(self, query: str, doc_ids: list[str], strict: bool, options: Options) -> StoredScores:
        """Decodes over the stored states."""
        with _computing:
            try:
                return _by_id(self.index.rerank(query, doc_ids, with_text=False, **options))
            except UnknownIdError as exc:
                if strict:
                    raise
                unknown = set(exc.ids)
            known = [doc_id for doc_id in doc_ids if doc_id not in unknown]
            return _by_id(self.index.rerank(query, known, with_text=False, **options)) if known else StoredScores({})

    def score_texts(self, query: str, texts: list[DocumentLike], options: Options) -> list[PairScore]:
        """As the reranker beside the index. Raises `UsageError` where there is none."""
        if self.reranker is None:
            raise UsageError(
                "an index holds no encoder: give the adapter reranker=KaLMReranker(…) of the same model beside it, or "
                "choose on_missing='error' or 'skip'"
            )
        template = self.index.passage_template  # what the index holds was made by it
        passages = [check_document(text, f"documents[{i}]", template) for i, text in enumerate(texts)]
        return RerankerSource(self.reranker).score_texts(query, [*passages], options)


@dataclass(frozen=True, slots=True)
class RerankerSource:
    """A reranker in this process, which has no stored passages: texts alone can be scored."""

    reranker: KaLMReranker

    def score_stored(self, query: str, doc_ids: list[str], strict: bool, options: Options) -> StoredScores:
        """None are stored."""
        return StoredScores({})

    def score_texts(self, query: str, texts: list[DocumentLike], options: Options) -> list[PairScore]:
        """Encodes and decodes; the pooling ratio is the reranker's own."""
        return self.score_pairs([(query, text) for text in texts], options.get("instruction"), {})

    def score_pairs(
        self, pairs: list[tuple[str, DocumentLike]], instruction: str | None, options: Mapping[str, Any]
    ) -> list[PairScore]:
        """The score of each pair, in their order. `options`: further ones of `predict`."""
        with _computing:
            scores = self.reranker.predict(pairs, return_margin=True, instruction=instruction, **options)
        return [PairScore(score["score"], score["margin"]) for score in scores]


@dataclass(frozen=True, slots=True)
class Scorer:
    """Scores a query's candidates by a backend.

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

    def score(
        self, query: str, candidates: Sequence[Candidate], instruction: str | None = None
    ) -> list[ScoredCandidate]:
        """The candidates by falling margin. Left out: under `skip` those not stored, and unless `encode` damaged ones.

        Raises:
            UsageError: a candidate without an id under `error`, or without a text where it must be encoded.
            UnknownIdError: ids that the index does not hold, under `error`.
        """
        query, source = check_text(query, "query"), self.source()
        on_missing: OnMissing = "encode" if isinstance(source, RerankerSource) else self.on_missing
        return score_candidates(source, query, candidates, on_missing, self._options(instruction))

    async def ascore(
        self, query: str, candidates: Sequence[Candidate], instruction: str | None = None
    ) -> list[ScoredCandidate]:
        """As `score`, without holding up the event loop: awaits an `AsyncClient`, and runs others in a thread."""
        query = check_text(query, "query")
        if not isinstance(self.backend, AsyncClient):
            return await to_thread.run_sync(self.score, query, candidates, instruction)
        doc_ids, options = stored_ids(candidates, self.on_missing), self._options(instruction)
        stored = StoredScores({})
        if doc_ids:
            on_missing: OnMissing = "error" if self.on_missing == "error" else "skip"
            answer = await self.backend.rerank(query, doc_ids, with_text=False, on_missing=on_missing, **options)
            stored = _by_id(answer)
        texts = texts_to_encode(candidates, stored, self.on_missing)
        scores = await self.backend.score(pairs_of(query, list(texts.values())), **options)
        return ranked(candidates, stored, dict(zip(texts, scores, strict=True)))

    def source(self) -> Source:
        """What scores. Raises `UsageError` for what cannot, and for an `AsyncClient`."""
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

    def _options(self, instruction: str | None) -> Options:
        options = Options()
        instruction = self.instruction if instruction is None else instruction
        if instruction is not None:
            options["instruction"] = instruction
        if self.chunk_size is not None:
            options["chunk_size"] = self.chunk_size
        return options


def score_candidates(
    source: Source, query: str, candidates: Sequence[Candidate], on_missing: OnMissing, options: Options
) -> list[ScoredCandidate]:
    """Stored passages by their ids first, then the texts of what is left; each in one call, or in none."""
    doc_ids = stored_ids(candidates, on_missing)
    stored = StoredScores({})
    if doc_ids:
        stored = source.score_stored(query, doc_ids, on_missing == "error", options)
    texts = texts_to_encode(candidates, stored, on_missing)
    scores = source.score_texts(query, list(texts.values()), options) if texts else []
    return ranked(candidates, stored, dict(zip(texts, scores, strict=True)))


def _by_id(answer: Answer) -> StoredScores:
    scores = {result.doc_id: PairScore(result.score, result.margin) for result in answer.results}
    return StoredScores(scores, answer.damaged)
