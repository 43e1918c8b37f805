"""OpenAI's client: it has no rerank method, but lists models and sends any request."""

from __future__ import annotations

from typing import Any

import pytest

from tests.client_libraries.conftest import KEY, QUERY, TEXTS

openai = pytest.importorskip("openai", reason="openai is not installed")


@pytest.fixture
def client(url: str) -> Any:
    return openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0)


def test_models_are_listed(client: Any, model: str) -> None:
    assert model in [one.id for one in client.models.list()]


def test_any_request_can_be_sent(client: Any, model: str, order: list[int]) -> None:
    body = {"model": model, "query": QUERY, "documents": TEXTS}
    answer = client.post("/rerank", body=body, cast_to=object)
    assert [one["index"] for one in answer["results"]] == order
    scored = client.post("/score", body={"model": model, "text_1": QUERY, "text_2": TEXTS}, cast_to=object)
    assert max(scored["data"], key=lambda one: one["score"])["index"] == order[0]


def test_failures_are_the_clients_own(client: Any, drop_in: str) -> None:
    with pytest.raises(openai.BadRequestError, match="no-such-model") as failure:
        client.post("/rerank", body={"model": "no-such-model", "query": QUERY, "documents": TEXTS}, cast_to=object)
    assert failure.value.type == "UnknownModelError"
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{drop_in}/v1", api_key="wrong", max_retries=0).models.list()
