"""`Client`: a query service, with the methods of `PassageIndex` and `KaLMReranker`."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Unpack, cast, overload

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
            retries: further tries where the service is busy, not ready or not to be reached, or a policy of one's own.
            http: a client with address, proxies, certificates and so on; the arguments before it are then not used.
        """
        self._http = httpx.Client(**http_options(base_url, api_key, timeout)) if http is None else http
        self._retries = retries_of(retries)

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

    def search(self, query: str, **options: Unpack[calls.SearchOptions]) -> ServedAnswer:
        """The best passages of the index for a query, as `PassageIndex.search`; options: `SearchOptions`."""
        return self._run(calls.search(query, options))

    def rerank(
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
        return self._run(calls.rerank(query, ids, documents, options))

    def margins(self, query: str, ids: Sequence[str], **options: Unpack[calls.ScoreOptions]) -> list[float]:
        """The margin of each stored passage for a query, in the order of `ids`, as `PassageIndex.margins`."""
        return [one.margin for one in self.score(calls.stored_pairs_of(query, ids), **options)]

    def score(self, pairs: Iterable[calls.PairLike], **options: Unpack[calls.ScoreOptions]) -> list[PairScore]:
        """Score and margin of each pair, in their order; options: `ScoreOptions`.

        A pair is `(query, text)`, `(query, {"id"})` for a stored passage, or what `POST /score` takes.
        """
        return [one for call in calls.score(pairs, options) for one in self._run(call)]

    @overload
    def predict(
        self,
        pairs: Iterable[calls.PairLike],
        *,
        return_margin: Literal[False] = False,
        **options: Unpack[calls.ScoreOptions],
    ) -> list[float]: ...

    @overload
    def predict(
        self, pairs: Iterable[calls.PairLike], *, return_margin: Literal[True], **options: Unpack[calls.ScoreOptions]
    ) -> list[Scored]: ...

    def predict(
        self, pairs: Iterable[calls.PairLike], *, return_margin: bool = False, **options: Unpack[calls.ScoreOptions]
    ) -> list[float] | list[Scored]:
        """P(yes) of each (query, document) pair, as `KaLMReranker.predict`."""
        return calls.predicted(self.score(pairs, **options), return_margin)

    def rank(
        self,
        query: str,
        documents: Sequence[calls.DocumentLike],
        *,
        top_k: int | None = None,
        return_margin: bool = False,
        **options: Unpack[calls.ScoreOptions],
    ) -> list[Ranked]:
        """Documents by falling margin, as `KaLMReranker.rank`: `[{"corpus_id", "score"}]`."""
        return calls.ranked(self.score(calls.pairs_of(query, documents), **options), top_k, return_margin)

    def explain(self, query: str, doc_id: str, **options: Unpack[calls.ExplainOptions]) -> Explanation:
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
        """Whether requests are answered now: not while the service starts or stops, nor where there is none.

        Asks once: whoever waits for a service to start calls it again.
        """
        try:
            return self._run(calls.ready(), NO_RETRIES)
        except NOT_READY:
            return False

    def models(self) -> list[str]:
        """The names that the service answers to."""
        return self._run(calls.models())

    def request(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """Any JSON request (`None` = GET), and its JSON answer as it came: for what has no method here."""
        return self._run(calls.raw(path, body))

    def _run(self, call: calls.Call[_Value], retries: Retries | None = None) -> _Value:
        tries = converse(call, self._retries if retries is None else retries)
        wait_seconds = next(tries)
        while True:
            time.sleep(wait_seconds)
            try:
                wait_seconds = tries.send(self._send(call))
            except StopIteration as end:
                return cast(_Value, end.value)

    def _send(self, call: calls.Call[Any]) -> Reply | NoReply:
        request = self._http.build_request(call.method, call.path, content=call.content, headers=call.headers)
        try:
            return as_reply(self._http.send(request))
        except httpx.RequestError as exc:
            return as_no_reply(exc, str(request.url))
