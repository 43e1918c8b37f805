"""Both clients on a transport in memory: what they send, and how they wait."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import anyio
import httpx
import pytest

import kalm_cache
from kalm_cache import AsyncClient, Client
from kalm_cache.client import PairScore, Retries
from kalm_cache.errors import DeadlineExceededError, ServiceUnavailableError, UsageError

Handler = Callable[[httpx.Request], httpx.Response]
QUICK = Retries(first_wait_seconds=0.0, random=lambda: 0.0)


def ask(handler: Handler, method: str, *arguments: Any, retries: Any = QUICK, **options: Any) -> Any:
    """The value of one method of `Client`; the same method of `AsyncClient` must give the same, or raise the same."""

    def of_both() -> tuple[Any, Any]:
        async def later() -> Any:
            http = httpx.AsyncClient(base_url="http://service", transport=httpx.MockTransport(handler))
            async with AsyncClient(http=http, retries=retries) as client:
                return await getattr(client, method)(*arguments, **options)

        with Client(
            http=httpx.Client(base_url="http://service", transport=httpx.MockTransport(handler)), retries=retries
        ) as client:
            failure, value = outcome(lambda: getattr(client, method)(*arguments, **options))
        other_failure, other_value = outcome(lambda: anyio.run(later))
        assert (type(other_failure), str(other_failure)) == (type(failure), str(failure))
        assert other_value == value
        return failure, value

    failure, value = of_both()
    if failure is not None:
        raise failure
    return value


def outcome(asked: Callable[[], Any]) -> tuple[Exception | None, Any]:
    try:
        return None, asked()
    except Exception as exc:
        return exc, None


def answering(*answers: httpx.Response | Exception) -> tuple[Handler, list[httpx.Request]]:
    """A transport that gives these answers in turn, over and over, and the requests that it gets."""
    requests: list[httpx.Request] = []

    def handle(request: httpx.Request) -> httpx.Response:
        requests.append(request)
        answer = answers[(len(requests) - 1) % len(answers)]
        if isinstance(answer, Exception):
            raise answer
        return httpx.Response(answer.status_code, content=answer.content, headers=answer.headers)

    return handle, requests


def ok(body: Any) -> httpx.Response:
    return httpx.Response(200, json=body)


def scores(*margins: float) -> httpx.Response:
    return ok({"results": [{"index": i, "score": 0.5, "margin": margin} for i, margin in enumerate(margins)]})


def test_names_load_from_the_package() -> None:
    assert (kalm_cache.Client, kalm_cache.AsyncClient) == (Client, AsyncClient)


def test_every_method_of_the_client_is_one_of_the_asynchronous_client() -> None:
    names = {name for name in dir(Client) if not name.startswith("_")} - {"close"}
    assert names == {name for name in dir(AsyncClient) if not name.startswith("_")} - {"aclose"}


def test_scoring_asks_in_batches_and_joins_them_in_order() -> None:
    handler, requests = answering(scores(1.0, 2.0), scores(3.0))
    assert ask(handler, "score", [("q", "a"), ("q", "b"), ("q", "c")], batch_size=2) == [
        PairScore(0.5, 1.0),
        PairScore(0.5, 2.0),
        PairScore(0.5, 3.0),
    ]
    assert [request.url.path for request in requests] == ["/score"] * 4
    assert requests[0].headers["content-type"] == "application/json"


def test_predict_rank_and_margins_are_those_of_a_reranker_and_an_index() -> None:
    handler, requests = answering(scores(1.0, 2.0))
    assert ask(handler, "predict", [("q", "a"), ("q", "b")]) == [0.5, 0.5]
    assert ask(handler, "predict", [("q", "a"), ("q", "b")], return_margin=True)[1] == {"score": 0.5, "margin": 2.0}
    assert ask(handler, "rank", "q", ["a", "b"], top_k=1) == [{"corpus_id": 1, "score": 0.5}]
    assert ask(handler, "margins", "q", ["d1", "d2"]) == [1.0, 2.0]
    assert json.loads(requests[-1].content)["pairs"][0] == {"query": "q", "doc_id": "d1"}


def test_no_pairs_are_no_request() -> None:
    handler, requests = answering(scores())
    assert ask(handler, "predict", []) == []
    assert ask(handler, "rank", "q", []) == []
    assert requests == []


@pytest.mark.parametrize("method", ["rank", "margins"])
def test_one_string_in_place_of_a_list_is_refused(method: str) -> None:
    with pytest.raises(UsageError, match="one string"):
        ask(answering()[0], method, "q", "a text")


def test_models_health_and_raw_requests() -> None:
    handler, requests = answering(ok({"object": "list", "data": [{"id": "tiny"}], "status": "ok"}))
    assert ask(handler, "models") == ["tiny"]
    assert ask(handler, "health")["status"] == "ok"
    assert ask(handler, "request", "/info")["object"] == "list"
    assert ask(handler, "request", "/explain", {"query": "q"})["object"] == "list"
    assert [request.method for request in requests[::2]] == ["GET", "GET", "GET", "POST"]


def test_a_busy_service_is_asked_again() -> None:
    busy = httpx.Response(429, headers={"retry-after": "0"})
    handler, requests = answering(busy, httpx.ConnectError("refused"), ok({"status": "ok"}))
    assert ask(handler, "health") == {"status": "ok"}
    assert len(requests) == 6


def test_a_service_that_stays_busy_is_given_up() -> None:
    handler, requests = answering(httpx.Response(503, json={"error": {"type": "NotReadyError", "message": "starting"}}))
    with pytest.raises(ServiceUnavailableError, match="starting"):
        ask(handler, "health", retries=1)
    assert len(requests) == 4


def test_a_timeout_is_a_deadline_and_is_not_repeated() -> None:
    handler, requests = answering(httpx.ReadTimeout("the time was up"))
    with pytest.raises(DeadlineExceededError, match="did not answer in time"):
        ask(handler, "health")
    assert len(requests) == 2


@pytest.mark.parametrize(
    ("answer", "is_ready"),
    [
        (ok({"status": "ready"}), True),
        (httpx.Response(503), False),
        (httpx.ConnectError("refused"), False),
        (httpx.ReadTimeout("late"), False),
    ],
)
def test_ready_is_an_answer_at_once(answer: httpx.Response | Exception, is_ready: bool) -> None:
    handler, requests = answering(answer)
    assert ask(handler, "ready") is is_ready
    assert len(requests) == 2


def test_the_key_and_the_address_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KALM_CACHE_API_KEY", "secret")
    monkeypatch.setenv("KALM_CACHE_BASE_URL", "http://elsewhere:1234/prefix")
    with Client() as client:
        assert client.base_url == "http://elsewhere:1234/prefix/"
        assert client._http.headers["authorization"] == "Bearer secret"
        assert str(client._http.build_request("GET", "/health").url) == "http://elsewhere:1234/prefix/health"
    with Client("http://here", api_key="") as client:
        assert "authorization" not in client._http.headers


@pytest.mark.parametrize("kind", [Client, AsyncClient])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"base_url": "localhost:8080"}, "expected http://HOST:PORT"),
        ({"base_url": "ftp://host"}, "expected http://HOST:PORT"),
        ({"base_url": "http://[::1"}, "not an address"),
        ({"api_key": "line\nbreak"}, "printable ASCII"),
    ],
)
def test_what_no_connection_can_use_is_a_usage_error(kind: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        kind(**options)


def test_the_key_is_in_no_message() -> None:
    handler, _ = answering(httpx.Response(401, json={"error": {"type": "Unauthorized", "message": "no such key"}}))
    http = httpx.Client(
        base_url="http://service",
        headers={"authorization": "Bearer secret"},
        transport=httpx.MockTransport(handler),
    )
    with Client(http=http) as client, pytest.raises(Exception, match="no such key") as failure:
        client.health()
    assert "secret" not in str(failure.value)
