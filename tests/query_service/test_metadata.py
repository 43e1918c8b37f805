"""Filters and fields over HTTP, of one service and of shards behind a router, and keys that see some passages alone.

Every route that reads an index is asked with a key of one tenant for what another tenant has.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from indexer.build.index_job import load_encoders, run_index_job
from indexer.corpus import CorpusLine
from kalm_cache.client import Client
from kalm_cache.errors import UnknownIdError, UsageError
from kalm_cache.passage import Passage
from kalm_cache.settings import load_settings
from tests.query_service.conftest import CORPUS, MAX_LENGTH, serving
from tests.query_service.router.conftest import routing

QUERY = "What is the capital of China?"
METADATA: dict[str, dict[str, Any]] = {
    doc_id: {"tenant": ("acme", "rival")[place % 2], "year": 2000 + place} for place, doc_id in enumerate(CORPUS)
}
ACME = [doc_id for doc_id, values in METADATA.items() if values["tenant"] == "acme"]
RIVAL = [doc_id for doc_id, values in METADATA.items() if values["tenant"] == "rival"]
KEYS = """
everything
acme {"tenant": "acme"}
nobody {"tenant": "none"}
misfit {"owner": "acme"}
"""


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@pytest.fixture(scope="module")
def folder(mini_folder: Path, embedder_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The corpus in two shards, each passage with a tenant."""
    folder = tmp_path_factory.mktemp("tenants") / "index"
    settings = load_settings(
        model=str(mini_folder), embedder=str(embedder_folder), device="cpu", max_length=MAX_LENGTH, metadata="all"
    )
    lines = [CorpusLine(Passage(*item), f"c:{i}", metadata=METADATA[item[0]]) for i, item in enumerate(CORPUS.items())]
    encoders = load_encoders(settings)
    options: dict[str, Any] = {"on_reject": lambda line: None, "on_progress": lambda counts: None}
    run_index_job(lines, folder, settings, encoders, shards=2, **options)
    return folder


@pytest.fixture(scope="module")
def keys_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("keys") / "keys"
    file.write_text(KEYS)
    return file


@pytest.fixture(scope="module")
def one(folder: Path, keys_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A service over both shards, with a text cache and a prefix cache."""
    cache = str(tmp_path_factory.mktemp("texts"))
    with serving(folder, api_keys_file=keys_file, with_encoder=True, text_cache=cache, prefix_cache_gib=0.01) as client:
        yield client


@pytest.fixture(scope="module")
def router(folder: Path, keys_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    with ExitStack() as stack:
        parts = [stack.enter_context(serving(folder, with_encoder=True, shards=shard)) for shard in ("0", "1")]
        addresses = [str(part.base_url) for part in parts]
        yield stack.enter_context(
            routing(addresses, tmp_path_factory.mktemp("router"), api_keys_file=keys_file, max_documents=1000)
        )


@pytest.fixture(params=["one", "router"])
def asked(request: pytest.FixtureRequest) -> httpx.Client:
    client: httpx.Client = request.getfixturevalue(request.param)
    return client


def post(client: httpx.Client, path: str, key: str, **body: Any) -> httpx.Response:
    return client.post(path, json=body, headers=bearer(key))


def test_a_search_stays_within_its_filter_and_has_the_fields_that_are_asked_for(asked: httpx.Client) -> None:
    filter = {"tenant": "rival", "year": {"$gte": 2003}}
    answer = post(asked, "/search", "everything", query=QUERY, top_n=0, filter=filter, fields=["year"]).json()
    expected = {doc_id: {"year": METADATA[doc_id]["year"]} for doc_id in RIVAL if METADATA[doc_id]["year"] >= 2003}
    found = {result["doc_id"]: result["metadata"] for result in answer["results"]}
    assert found == {doc_id: expected[doc_id] for doc_id in found}
    dense = post(asked, "/search", "everything", query=QUERY, top_n=0, filter=filter, first_stage="dense").json()
    assert {result["doc_id"] for result in dense["results"]} == expected.keys()
    assert dense["results"][0]["metadata"] is None


def test_ids_that_do_not_match_are_left_out_of_a_rerank_and_unknown_ones_are_an_error(asked: httpx.Client) -> None:
    some, filter = [RIVAL[0], *ACME[:3]], {"tenant": "acme"}
    answer = post(asked, "/rerank", "everything", query=QUERY, ids=some, filter=filter, fields=["*"]).json()
    assert {result["index"]: result["metadata"] for result in answer["results"]} == {
        1 + place: METADATA[doc_id] for place, doc_id in enumerate(ACME[:3])
    }
    unknown = post(asked, "/rerank", "everything", query=QUERY, ids=["x", RIVAL[0]], filter=filter)
    assert (unknown.status_code, unknown.json()["error"]["ids"]) == (404, ["x"])
    texts = post(asked, "/rerank", "everything", query=QUERY, documents=["a text"], filter=filter)
    assert (texts.status_code, "`filter` and `fields` are of stored passages" in texts.text) == (422, True)
    shown = post(asked, "/explain", "everything", query=QUERY, doc_id=ACME[0], filter=filter)
    hidden = post(asked, "/explain", "everything", query=QUERY, doc_id=RIVAL[0], filter=filter)
    assert (shown.status_code, hidden.status_code) == (200, 404)


@pytest.mark.parametrize("path", ["/search", "/rerank", "/explain"])
def test_a_wrong_field_is_a_422_that_names_it_and_lists_the_fields(asked: httpx.Client, path: str) -> None:
    body = {"query": QUERY} | {"/rerank": {"ids": ACME[:1]}, "/explain": {"doc_id": ACME[0]}}.get(path, {})
    answer = post(asked, path, "everything", **body, filter={"tenat": "acme"})
    assert answer.status_code == 422
    assert "no field 'tenat' (did you mean 'tenant'?); the index has: tenant (text), year (number)" in answer.text


def test_the_client_has_filters_and_fields_as_an_index_has(asked: httpx.Client) -> None:
    with Client(str(asked.base_url), api_key="everything") as client:
        found = client.search(QUERY, filter={"tenant": "acme"}, fields=["tenant"]).results
        assert [result.metadata for result in found] == [{"tenant": "acme"}] * len(found)
        ranked = client.rerank(QUERY, [*RIVAL[:2], *ACME[:2]], filter={"tenant": "acme"}).results
        assert {result.doc_id for result in ranked} == set(ACME[:2])
        with pytest.raises(UnknownIdError):
            client.explain(QUERY, RIVAL[0], filter={"tenant": "acme"})
        with pytest.raises(UsageError, match="no field 'colour'"):
            client.search(QUERY, filter={"colour": "red"})


def test_a_bound_key_searches_among_its_own_passages(asked: httpx.Client) -> None:
    for mode in ("dense", "bm25", "fused"):
        answer = post(asked, "/search", "acme", query=QUERY, top_n=0, first_stage=mode).json()
        assert {result["doc_id"] for result in answer["results"]} <= set(ACME)
    dense = post(asked, "/search", "acme", query=QUERY, top_n=0, first_stage="dense").json()
    assert {result["doc_id"] for result in dense["results"]} == set(ACME)
    rivals = post(asked, "/search", "acme", query=QUERY, filter={"tenant": "rival"}).json()
    assert rivals["results"] == []
    assert post(asked, "/search", "nobody", query=QUERY).json()["results"] == []


def test_to_a_bound_key_ids_of_others_are_as_unknown_as_any(asked: httpx.Client) -> None:
    post(asked, "/rerank", "everything", query=QUERY, ids=list(CORPUS))  # whatever a cache can hold, it holds now
    for doc_id in (RIVAL[0], "nothing has this id"):
        answers = [
            post(asked, "/rerank", "acme", query=QUERY, ids=[doc_id]),
            post(asked, "/rerank", "acme", query=QUERY, ids=[doc_id], filter={"tenant": "acme"}, fields=["*"]),
            post(asked, "/score", "acme", pairs=[{"query": QUERY, "doc_id": doc_id}]),
            post(asked, "/explain", "acme", query=QUERY, doc_id=doc_id),
        ]
        assert [answer.status_code for answer in answers] == [404] * 4
        assert {tuple(answer.json()["error"]["ids"]) for answer in answers} == {(doc_id,)}
        assert {answer.json()["error"]["message"].replace(doc_id, "…") for answer in answers} == {
            answers[0].json()["error"]["message"].replace(doc_id, "…")
        }
        skipped = post(asked, "/rerank", "acme", query=QUERY, ids=[doc_id, ACME[0]], on_missing="skip").json()
        assert [result["doc_id"] for result in skipped["results"]] == [ACME[0]]
        assert skipped["meta"]["missing"] == [doc_id]
    own = post(asked, "/rerank", "acme", query=QUERY, ids=ACME, return_documents=True).json()
    assert {result["doc_id"]: result["document"]["text"] for result in own["results"]} == {
        doc_id: CORPUS[doc_id] for doc_id in ACME
    }


def test_no_cache_tells_a_bound_key_which_texts_others_have(asked: httpx.Client) -> None:
    private = "A text that somebody else has sent before."
    post(asked, "/rerank", "everything", query=QUERY, documents=[private])
    for text in (CORPUS[RIVAL[0]], private):
        sent = post(asked, "/rerank", "acme", query=QUERY, documents=[text]).json()
        assert [result["cache"] for result in sent["results"]] == ["encoded"]
        assert sent["meta"]["cache_sources"] == {"encoded": 1}
    named = post(asked, "/rerank", "acme", query=QUERY, documents=[{"doc_id": RIVAL[0], "text": CORPUS[RIVAL[0]]}])
    assert [result["cache"] for result in named.json()["results"]] == ["encoded"]


def test_numbers_of_all_passages_are_not_for_bound_keys(asked: httpx.Client) -> None:
    counts = {key: asked.get("/info", headers=bearer(key)).json()["passages"] for key in ("everything", "acme")}
    health = asked.get("/health").json()["passages"]
    assert (counts["everything"], health) == (len(CORPUS), None)
    assert counts["acme"] in (len(ACME), None)  # a router does not count
    refused = [asked.get("/metrics", headers=bearer("acme")), asked.post("/shard/find", headers=bearer("acme"))]
    assert [answer.status_code for answer in refused] == [403, 403]
    assert asked.get("/metrics", headers=bearer("everything")).status_code == 200


def test_a_key_whose_filter_does_not_fit_the_index_sees_nothing(asked: httpx.Client) -> None:
    answers = [post(asked, "/search", "misfit", query=QUERY), post(asked, "/rerank", "misfit", query="q", ids=ACME)]
    assert [answer.status_code for answer in answers] == [403, 403]
    assert "bound to a filter that the index does not fit" in answers[0].text


def test_every_route_of_the_service_is_one_that_these_tests_know(one: httpx.Client) -> None:
    paths = set(one.get("/openapi.json").json()["paths"])
    of_passages = {"/search", "/explain"} | {path for path in paths if path.endswith(("rerank", "score"))}
    of_the_service = {"/health", "/ready", "/info", "/v1/models", "/infinity/health", "/infinity/models", "/metrics"}
    assert paths - of_passages - of_the_service == {"/admin/reload"}
