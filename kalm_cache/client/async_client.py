"""`AsyncClient`: as `Client`, for programs with an event loop."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Unpack, cast, overload

import anyio
import httpx

from kalm_cache.client import calls
from kalm_cache.client.answers import Explanation, PairScore, ServedAnswer
from kalm_cache.client.connection import DEFAULT_TIMEOUT_SECONDS, as_no_reply, as_reply, http_options, retries_of
from kalm_cache.client.conversation import NO_RETRIES, NOT_READY, converse
from kalm_cache.client.reply import NoReply, Reply
from kalm_cache.client.retries import Retries

if TYPE_CHECKING:
    from kalm_cache.reranker import Ranked, Scored

_Value = TypeVar("_Value")


class AsyncClient:
    """A running `kalm-cache serve`. Tasks may share one. Use as an asynchronous context manager, or `aclose()` it.

    Methods, options and errors are those of `Client`.
    """

    def __init__(
        self,
        base_url: str | None = None,
        *,
        api_key: str | None = None,
        timeout: float | None = DEFAULT_TIMEOUT_SECONDS,
        retries: int | Retries = 3,
        http: httpx.AsyncClient | None = None,
    ) -> None:
        """As `Client`."""
        self._http = httpx.AsyncClient(**http_options(base_url, api_key, timeout)) if http is None else http
        self._retries = retries_of(retries)

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    @property
    def base_url(self) -> str:
        """The service's address."""
        return str(self._http.base_url)

    async def search(self, query: str, **options: Unpack[calls.SearchOptions]) -> ServedAnswer:
        """The best passages of the index for a query, as `PassageIndex.search`; options: `SearchOptions`."""
        return await self._run(calls.search(query, options))

    async def rerank(
        self,
        query: str,
        ids: Sequence[str] | None = None,
        *,
        documents: Sequence[calls.DocumentLike] | None = None,
        **options: Unpack[calls.RerankOptions],
    ) -> ServedAnswer:
        """Rank stored passages by their ids, as `PassageIndex.rerank`, or documents; options: `RerankOptions`.

        A document is a text or `{"text", "id"}`.

        Raises:
            UnknownIdError: ids that the index does not hold.
        """
        return await self._run(calls.rerank(query, ids, documents, options))

    async def margins(self, query: str, ids: Sequence[str], **options: Unpack[calls.ScoreOptions]) -> list[float]:
        """The margin of each stored passage for a query, in the order of `ids`, as `PassageIndex.margins`."""
        return [one.margin for one in await self.score(calls.stored_pairs_of(query, ids), **options)]

    async def score(self, pairs: Iterable[calls.PairLike], **options: Unpack[calls.ScoreOptions]) -> list[PairScore]:
        """Score and margin of each pair, in their order; options: `ScoreOptions`.

        A pair is `(query, text)`, `(query, {"id"})` for a stored passage, or what `POST /score` takes.
        """
        return [one for call in calls.score(pairs, options) for one in await self._run(call)]

    @overload
    async def predict(
        self,
        pairs: Iterable[calls.PairLike],
        *,
        return_margin: Literal[False] = False,
        **options: Unpack[calls.ScoreOptions],
    ) -> list[float]: ...

    @overload
    async def predict(
        self, pairs: Iterable[calls.PairLike], *, return_margin: Literal[True], **options: Unpack[calls.ScoreOptions]
    ) -> list[Scored]: ...

    async def predict(
        self, pairs: Iterable[calls.PairLike], *, return_margin: bool = False, **options: Unpack[calls.ScoreOptions]
    ) -> list[float] | list[Scored]:
        """P(yes) of each (query, document) pair, as `KaLMReranker.predict`."""
        return calls.predicted(await self.score(pairs, **options), return_margin)

    async def rank(
        self,
        query: str,
        documents: Sequence[calls.DocumentLike],
        *,
        top_k: int | None = None,
        return_margin: bool = False,
        **options: Unpack[calls.ScoreOptions],
    ) -> list[Ranked]:
        """Documents by falling margin, as `KaLMReranker.rank`: `[{"corpus_id", "score"}]`."""
        return calls.ranked(await self.score(calls.pairs_of(query, documents), **options), top_k, return_margin)

    async def explain(self, query: str, doc_id: str, **options: Unpack[calls.ExplainOptions]) -> Explanation:
        """Which parts of a stored passage the query's tokens attended to, as `Client.explain`."""
        return await self._run(calls.explain(query, doc_id, options))

    async def health(self) -> dict[str, Any]:
        """What is served: `status, index_version, model, passages, …`."""
        return await self._run(calls.health())

    async def ready(self) -> bool:
        """Whether requests are answered now: not while the service starts or stops, nor where there is none.

        Asks once: whoever waits for a service to start calls it again.
        """
        try:
            return await self._run(calls.ready(), NO_RETRIES)
        except NOT_READY:
            return False

    async def models(self) -> list[str]:
        """The names that the service answers to."""
        return await self._run(calls.models())

    async def request(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """Any JSON request (`None` = GET), and its JSON answer as it came: for what has no method here."""
        return await self._run(calls.raw(path, body))

    async def _run(self, call: calls.Call[_Value], retries: Retries | None = None) -> _Value:
        tries = converse(call, self._retries if retries is None else retries)
        wait_seconds = next(tries)
        while True:
            await anyio.sleep(wait_seconds)
            try:
                wait_seconds = tries.send(await self._send(call))
            except StopIteration as end:
                return cast(_Value, end.value)

    async def _send(self, call: calls.Call[Any]) -> Reply | NoReply:
        request = self._http.build_request(call.method, call.path, content=call.content, headers=call.headers)
        try:
            return as_reply(await self._http.send(request))
        except httpx.RequestError as exc:
            return as_no_reply(exc, str(request.url))
