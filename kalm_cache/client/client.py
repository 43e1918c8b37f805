"""`Client` and `AsyncClient`: a query service, with the methods of `PassageIndex` and `KaLMReranker`.

A method makes its request (`calls.py`), which is sent by httpx and again where that may help (`failures.py`).
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Unpack, overload

import anyio
import httpx

from kalm_cache.arguments import check_limit
from kalm_cache.client import calls
from kalm_cache.client.answers import Explanation, PairScore, ServedAnswer
from kalm_cache.client.options import ExplainOptions, RerankOptions, ScoreOptions, SearchOptions
from kalm_cache.client.retries import Outcome, Retries
from kalm_cache.errors import UsageError

if TYPE_CHECKING:
    from kalm_cache.reranker import Ranked, Scored

API_KEY_VARIABLE = "KALM_CACHE_API_KEY"
BASE_URL_VARIABLE = "KALM_CACHE_BASE_URL"
DEFAULT_BASE_URL = "http://127.0.0.1:8080"
DEFAULT_TIMEOUT_SECONDS = 60.0
_Value = TypeVar("_Value")


class Client:
    """A running `kalm-cache serve`. Threads may share one. Use as a context manager, or `close()` it.

    Methods raise what those of an index or reranker raise, and where the service does not answer
    `ServiceUnavailableError`, `DeadlineExceededError`, `AccessDeniedError`, or `ServiceError`, the base of these.
    """

    def __init__(
        self,
        base_url: str | None = None,
        *,
        api_key: str | None = None,
        timeout: float | None = DEFAULT_TIMEOUT_SECONDS,
        retries: int | Retries = 3,
        http: httpx.Client | None = None,
    ) -> None:
        """Connect on the first call.

        Args:
            base_url: `None` = `KALM_CACHE_BASE_URL`, or else http://127.0.0.1:8080.
            api_key: `None` = `KALM_CACHE_API_KEY`; empty = none.
            timeout: seconds for each try; `None` = no limit.
            retries: further tries where the service is busy, not ready or out of reach, or a policy.
            http: httpx's client in place of `base_url`, `api_key` and `timeout`, for proxies, certificates and so on.
        """
        self._http = httpx.Client(**_http_options(base_url, api_key, timeout)) if http is None else http
        self._retries = Retries(retries) if isinstance(retries, int) else retries

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    @property
    def base_url(self) -> str:
        """The service's address."""
        return str(self._http.base_url)

    def search(self, query: str, **options: Unpack[SearchOptions]) -> ServedAnswer:
        """The best passages of the index for a query, as `PassageIndex.search`; options: `SearchOptions`."""
        return self._run(calls.search(query, options))

    def rerank(
        self,
        query: str,
        ids: Sequence[str | int] | None = None,
        *,
        documents: Iterable[calls.DocumentLike] | None = None,
        **options: Unpack[RerankOptions],
    ) -> ServedAnswer:
        """Rank stored passages by their ids, as `PassageIndex.rerank`, or documents; options: `RerankOptions`.

        A document is a text or `{"text", "title", "doc_id"}`: a record as a corpus has it. The number 101 is the id
        "101".

        Raises:
            UnknownIdError: ids that the index does not hold.
        """
        return self._run(calls.rerank(query, ids, documents, options))

    def margins(self, query: str, ids: Sequence[str | int], **options: Unpack[ScoreOptions]) -> list[float]:
        """The margin of each stored passage for a query, in the order of `ids`, as `PassageIndex.margins`."""
        return [pair.margin for pair in self.score(calls.stored_pairs_of(query, ids), **options)]

    def score(self, pairs: Iterable[calls.PairLike], **options: Unpack[ScoreOptions]) -> list[PairScore]:
        """Score and margin of each pair, in their order; options: `ScoreOptions`.

        A pair is `(query, text)`, `(query, {"doc_id"})` for a stored passage, or a mapping: `query`, either `doc_id` or
        `document`, and a `label` of the caller's, which comes back with the score.
        """
        return [pair for call in calls.score(pairs, options) for pair in self._run(call)]

    @overload
    def predict(
        self,
        pairs: Iterable[calls.PairLike],
        *,
        return_margin: Literal[False] = False,
        **options: Unpack[ScoreOptions],
    ) -> list[float]: ...

    @overload
    def predict(
        self, pairs: Iterable[calls.PairLike], *, return_margin: Literal[True], **options: Unpack[ScoreOptions]
    ) -> list[Scored]: ...

    def predict(
        self, pairs: Iterable[calls.PairLike], *, return_margin: bool = False, **options: Unpack[ScoreOptions]
    ) -> list[float] | list[Scored]:
        """P(yes) of each (query, document) pair, as `KaLMReranker.predict`."""
        return calls.predicted(self.score(pairs, **options), return_margin)

    def rank(
        self,
        query: str,
        documents: Iterable[calls.DocumentLike],
        *,
        top_k: int | None = None,
        return_margin: bool = False,
        **options: Unpack[ScoreOptions],
    ) -> list[Ranked]:
        """Documents by falling margin, as `KaLMReranker.rank`: `[{"corpus_id", "score"}]`."""
        limit = check_limit(top_k, "top_k", least=0)
        return calls.ranked(self.score(calls.pairs_of(query, documents), **options), limit, return_margin)

    def explain(self, query: str, doc_id: str | int, **options: Unpack[ExplainOptions]) -> Explanation:
        """Which parts of a stored passage the query's tokens attended to; options: `ExplainOptions`.

        Raises:
            UnknownIdError: the index does not hold the id.
            UsageError: the index keeps no text of it.
        """
        return self._run(calls.explain(query, doc_id, options))

    def health(self) -> dict[str, Any]:
        """What is served: `status, index_version, model, passages, …`."""
        return self._run(calls.health())

    def ready(self) -> bool:
        """Whether the service answers requests now: false while it starts, stops or is out of reach.

        Asks once, without retries: to wait for a service to start, call it again.
        """
        return calls.is_ready(self._send(calls.ready()))

    def models(self) -> list[str]:
        """The names that the service answers to."""
        return self._run(calls.models())

    def request(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """Send a JSON body (`None` = GET) to any path and return the JSON response unchanged."""
        return self._run(calls.raw(path, body))

    def _run(self, call: calls.Call[_Value]) -> _Value:
        tries, outcome = 1, self._send(call)
        while (wait_seconds := self._retries.wait_seconds(tries, outcome)) is not None:
            time.sleep(wait_seconds)
            tries, outcome = tries + 1, self._send(call)
        return call.finish(outcome)

    def _send(self, call: calls.Call[Any]) -> Outcome:
        try:
            return self._http.request(call.method, call.path, content=call.content, headers=call.headers)
        except httpx.RequestError as exc:
            return exc


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
        self._http = httpx.AsyncClient(**_http_options(base_url, api_key, timeout)) if http is None else http
        self._retries = Retries(retries) if isinstance(retries, int) else retries

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

    async def search(self, query: str, **options: Unpack[SearchOptions]) -> ServedAnswer:
        """The best passages of the index for a query, as `PassageIndex.search`; options: `SearchOptions`."""
        return await self._run(calls.search(query, options))

    async def rerank(
        self,
        query: str,
        ids: Sequence[str | int] | None = None,
        *,
        documents: Iterable[calls.DocumentLike] | None = None,
        **options: Unpack[RerankOptions],
    ) -> ServedAnswer:
        """Rank stored passages by their ids, or documents, as `Client.rerank`."""
        return await self._run(calls.rerank(query, ids, documents, options))

    async def margins(self, query: str, ids: Sequence[str | int], **options: Unpack[ScoreOptions]) -> list[float]:
        """The margin of each stored passage for a query, in the order of `ids`, as `PassageIndex.margins`."""
        return [pair.margin for pair in await self.score(calls.stored_pairs_of(query, ids), **options)]

    async def score(self, pairs: Iterable[calls.PairLike], **options: Unpack[ScoreOptions]) -> list[PairScore]:
        """Score and margin of each pair, in their order, as `Client.score`."""
        return [pair for call in calls.score(pairs, options) for pair in await self._run(call)]

    @overload
    async def predict(
        self,
        pairs: Iterable[calls.PairLike],
        *,
        return_margin: Literal[False] = False,
        **options: Unpack[ScoreOptions],
    ) -> list[float]: ...

    @overload
    async def predict(
        self, pairs: Iterable[calls.PairLike], *, return_margin: Literal[True], **options: Unpack[ScoreOptions]
    ) -> list[Scored]: ...

    async def predict(
        self, pairs: Iterable[calls.PairLike], *, return_margin: bool = False, **options: Unpack[ScoreOptions]
    ) -> list[float] | list[Scored]:
        """P(yes) of each (query, document) pair, as `KaLMReranker.predict`."""
        return calls.predicted(await self.score(pairs, **options), return_margin)

    async def rank(
        self,
        query: str,
        documents: Iterable[calls.DocumentLike],
        *,
        top_k: int | None = None,
        return_margin: bool = False,
        **options: Unpack[ScoreOptions],
    ) -> list[Ranked]:
        """Documents by falling margin, as `KaLMReranker.rank`: `[{"corpus_id", "score"}]`."""
        limit = check_limit(top_k, "top_k", least=0)
        return calls.ranked(await self.score(calls.pairs_of(query, documents), **options), limit, return_margin)

    async def explain(self, query: str, doc_id: str | int, **options: Unpack[ExplainOptions]) -> Explanation:
        """Which parts of a stored passage the query's tokens attended to, as `Client.explain`."""
        return await self._run(calls.explain(query, doc_id, options))

    async def health(self) -> dict[str, Any]:
        """What is served: `status, index_version, model, passages, …`."""
        return await self._run(calls.health())

    async def ready(self) -> bool:
        """Whether the service answers requests now, as `Client.ready`: asks once, without retries."""
        return calls.is_ready(await self._send(calls.ready()))

    async def models(self) -> list[str]:
        """The names that the service answers to."""
        return await self._run(calls.models())

    async def request(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """Send a JSON body (`None` = GET) to any path and return the JSON response unchanged."""
        return await self._run(calls.raw(path, body))

    async def _run(self, call: calls.Call[_Value]) -> _Value:
        tries, outcome = 1, await self._send(call)
        while (wait_seconds := self._retries.wait_seconds(tries, outcome)) is not None:
            await anyio.sleep(wait_seconds)
            tries, outcome = tries + 1, await self._send(call)
        return call.finish(outcome)

    async def _send(self, call: calls.Call[Any]) -> Outcome:
        try:
            return await self._http.request(call.method, call.path, content=call.content, headers=call.headers)
        except httpx.RequestError as exc:
            return exc


def _http_options(base_url: str | None, api_key: str | None, timeout: float | None) -> dict[str, Any]:
    """Arguments of `httpx.Client` and `httpx.AsyncClient`; `None` is read from the environment.

    Raises:
        UsageError: the address is not http(s), or no header can hold the key.
    """
    from kalm_cache import __version__

    address = base_url or os.environ.get(BASE_URL_VARIABLE) or DEFAULT_BASE_URL
    key = os.environ.get(API_KEY_VARIABLE, "") if api_key is None else api_key
    headers = {"accept": "application/json", "user-agent": f"kalm-cache/{__version__}"}
    if key:
        if not key.isascii() or not key.isprintable():
            raise UsageError("the api_key holds characters that no HTTP header can hold; expected printable ASCII")
        headers["authorization"] = f"Bearer {key}"
    try:
        url = httpx.URL(address)
    except httpx.InvalidURL as exc:
        raise UsageError(f"base_url {address!r} is not an address: {exc}") from exc
    if url.scheme not in ("http", "https") or not url.host:
        raise UsageError(f"base_url is {address!r}; expected http://HOST:PORT or https://…")
    return {"base_url": url, "headers": headers, "timeout": timeout}
