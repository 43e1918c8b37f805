"""Documents that are records: fields that make the passage, ids that are numbers, fields that nobody uses."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from indexer.build.index_job import load_encoders, run_index_job
from indexer.corpus import read_corpus
from kalm_cache.client import Client
from kalm_cache.index.passage_index import PassageIndex
from kalm_cache.passage import PassageTemplate
from tests.indexes import settings_for
from tests.query_service.conftest import serving

RECORDS: list[dict[str, Any]] = [
    {"_id": 101, "title": "Honey bees", "text": "dance in the hive.", "brand": "Wild"},
    {"_id": 102, "title": "", "text": "Owls hunt at night."},
]
QUERY = "Where do bees dance?"


def make(folder: Path, mini_folder: Path, embedder_folder: Path, **settings: str) -> Path:
    """The records as an index, read by the corpus reader."""
    corpus = folder / "c.jsonl"
    corpus.write_text("".join(json.dumps(record) + "\n" for record in RECORDS), "utf-8")
    given = settings_for(mini_folder, embedder_folder, **settings)
    lines = read_corpus(corpus, template=PassageTemplate(given.passage_template))
    encoders = load_encoders(given)
    run_index_job(lines, folder / "i", given, encoders, on_reject=lambda _: None, on_progress=lambda _: None)
    return folder / "i"


@pytest.fixture(scope="module")
def records(
    tmp_path_factory: pytest.TempPathFactory, mini_folder: Path, embedder_folder: Path
) -> Iterator[httpx.Client]:
    folder = make(tmp_path_factory.mktemp("records"), mini_folder, embedder_folder)
    with serving(folder, with_encoder=True) as client:
        yield client


def post(client: httpx.Client, path: str = "/rerank", **body: Any) -> dict[str, Any]:
    query = {} if path == "/score" else {"query": QUERY}
    response = client.post(path, json=query | body)
    assert response.status_code == 200, response.text
    return response.json()


@pytest.mark.parametrize(
    "document",
    [
        RECORDS[0],
        {"id": "101", "title": "Honey bees", "text": "dance in the hive."},
        {"id": 101, "text": "Honey bees dance in the hive."},
        {"doc_id": 101, "title": None, "contents": "Honey bees dance in the hive."},
        {"docid": "101", "title": "Honey bees", "contents": "dance in the hive."},
    ],
)
def test_the_record_that_was_indexed_is_a_hit(records: httpx.Client, document: dict[str, Any]) -> None:
    [stored] = post(records, ids=["101"], return_margin=True)["results"]
    for source in ("documents", "texts"):
        answer = post(records, **{source: [document]}, return_margin=True, return_documents=True)
        [result] = answer if source == "texts" else answer["results"]
        assert (result["margin"], result["doc_id"]) == (stored["margin"], "101")
        text = result["text"] if source == "texts" else result["document"]["text"]
        assert text == "Honey bees dance in the hive."
        assert result.get("cache", "hit") == "hit"


def test_a_title_counts_without_an_id_and_in_every_form_of_score(records: httpx.Client) -> None:
    document = {"title": "Honey bees", "text": "dance in the hive."}
    [stored] = post(records, ids=["101"])["results"]
    [ranked] = post(records, documents=[document])["results"]
    [column] = post(records, "/score", queries=QUERY, documents=[document])["data"]
    [pair] = post(records, "/score", pairs=[{"query": QUERY, "document": document}])["results"]
    assert [one["score"] for one in (ranked, column, pair)] == pytest.approx([stored["score"]] * 3, abs=1e-5)


def test_rank_fields_say_which_fields_count_and_in_which_order(records: httpx.Client) -> None:
    document = {key: value for key, value in RECORDS[0].items() if key != "_id"}
    wanted = ["title", "text", "brand"], ["text"], ["brand", "title"]
    texts = ["Honey bees dance in the hive. Wild", "dance in the hive.", "Wild Honey bees"]
    for fields, text in zip(wanted, texts, strict=True):
        answer = post(records, "/v1/rerank", documents=[document], rank_fields=fields, return_documents=True)
        assert answer["results"][0]["document"] == {"text": text}
        assert set(answer["meta"]["unused_fields"]) == {f"documents[].{name}" for name in {*document} - {*fields}}
    refused = records.post("/v1/rerank", json={"query": QUERY, "documents": [document], "rank_fields": ["a.b"]})
    assert refused.status_code == 422
    assert "a.b" in refused.text


def test_what_nobody_uses_is_named_in_meta_or_in_a_header(records: httpx.Client) -> None:
    document = {"text": "a", "author": "b", "price": 3}
    answer = post(records, documents=[document, "c"], user="me", stream=False)
    assert answer["meta"]["unused_fields"] == ["user", "stream", "documents[].author", "documents[].price"]
    bare = records.post("/rerank", json={"query": QUERY, "texts": [document], "zürich\n": 1})
    assert json.loads(bare.headers["x-unused-fields"]) == ["zürich\n", "documents[].author", "documents[].price"]
    columns = post(records, "/score", text_1=QUERY, text_2=[document], softmax=True)
    assert columns["meta"]["unused_fields"] == ["softmax", "documents[].author", "documents[].price"]
    many = post(records, documents=["a"], **{f"field{i}" * 50: i for i in range(100)})["meta"]["unused_fields"]
    assert (len(many), {len(name) for name in many}) == (20, {80})


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/rerank", {"ids": ["101"], "topn": 3}, "topn"),
        ("/search", {"kk": 3}, "kk"),
        ("/explain", {"doc_id": "101", "lang": "en"}, "lang"),
        ("/score", {"pairs": [{"query": "q", "doc_id": "101", "text": "x"}]}, "text"),
    ],
)
def test_a_form_of_this_service_alone_refuses_a_field_by_name(
    records: httpx.Client, path: str, body: dict[str, Any], field: str
) -> None:
    response = records.post(path, json={"query": QUERY, **body})
    assert response.status_code == 422
    assert field in response.json()["detail"]


@pytest.mark.parametrize(
    "body", [b'{"text": "a", "title": 3}', b'{"text": "a", "title": "\\ud800"}', b'{"title": "a"}', b'{"contents": 7}']
)
def test_a_record_that_makes_no_passage_is_a_422(records: httpx.Client, body: bytes) -> None:
    content = b'{"query": "q", "documents": ["x", ' + body + b"]}"
    response = records.post("/rerank", content=content, headers={"content-type": "application/json"})
    assert response.status_code == 422
    assert "documents.1" in response.json()["detail"]


def test_numbers_are_ids_wherever_ids_are(records: httpx.Client) -> None:
    assert [one["doc_id"] for one in post(records, ids=[101, "102"])["results"]] in (["101", "102"], ["102", "101"])
    [pair] = post(records, "/score", pairs=[{"query": QUERY, "doc_id": 101, "label": 5}])["results"]
    assert (pair["doc_id"], pair["label"]) == ("101", 5)
    assert post(records, "/explain", id=101)["doc_id"] == post(records, "/explain", doc_id=101)["doc_id"] == "101"
    assert post(records, ids=[101, 7], on_missing="skip")["meta"]["missing"] == ["7"]


@pytest.mark.parametrize("value", [True, 1.5, 101.0, None, [101], {"id": 101}])
def test_nothing_else_is_an_id(records: httpx.Client, value: Any) -> None:
    for path, body in (("/rerank", {"ids": [value]}), ("/score", {"pairs": [{"query": "q", "doc_id": value}]})):
        response = records.post(path, json={"query": QUERY, **body} if path == "/rerank" else body)
        assert response.status_code == 422, response.text


def test_the_client_sends_records_and_numbers_as_they_are(records: httpx.Client) -> None:
    with Client(str(records.base_url)) as client:
        stored = client.rerank(QUERY, [101, 102]).results
        ranked = client.rerank(QUERY, documents=RECORDS)
        assert [(one.doc_id, one.margin, one.cache) for one in ranked.results] == [
            (one.doc_id, one.margin, "hit") for one in stored
        ]
        assert {one.text for one in ranked.results} == {"Honey bees dance in the hive.", "Owls hunt at night."}
        assert ranked.unused_fields == ["documents[].brand"]
        assert client.margins(QUERY, [101]) == client.margins(QUERY, ["101"])
        assert client.explain(QUERY, 101).doc_id == "101"


def test_an_index_keeps_the_template_that_made_its_passages(
    tmp_path: Path, mini_folder: Path, embedder_folder: Path
) -> None:
    folder = make(tmp_path, mini_folder, embedder_folder, passage_template="{brand}: {title} {text}")
    with PassageIndex.open(folder, device="cpu") as index:
        assert index.find_texts([101, 102]) == ["Wild: Honey bees dance in the hive.", "Owls hunt at night."]
    with serving(folder) as client:  # no encoder: a miss would be an error
        answer = post(client, documents=RECORDS)
        assert [one["cache"] for one in answer["results"]] == ["hit", "hit"]
        assert answer["meta"]["unused_fields"] == []


def test_rank_fields_of_which_a_record_has_none_are_refused_by_name(records: httpx.Client) -> None:
    documents = [{"text": "", "body": "Beijing is the capital of China"}, {"text": "its fields are others"}]
    refused = records.post("/v1/rerank", json={"query": QUERY, "documents": documents, "rank_fields": ["body"]})
    assert "1: none of the fields that count: 'body'" in refused.json()["message"]
    assert len(post(records, "/v1/rerank", documents=documents[:1], rank_fields=["body"])["results"]) == 1


def rank_fields_answer(client: httpx.Client, fields: list[str], *documents: object) -> tuple[list[str], list[str]]:
    """The passages as they were ranked, in the request's order, and what is said to be unused."""
    answer = post(client, "/v1/rerank", documents=documents, rank_fields=fields, return_documents=True)
    results = sorted(answer["results"], key=lambda one: one["index"])
    return [one["document"]["text"] for one in results], answer["meta"]["unused_fields"]


@pytest.mark.parametrize(
    ("fields", "documents", "texts", "unused"),
    [
        (["title"], [{"title": "a"}, {"title": "b", "id": 7}], ["a", "b"], []),
        (["title", "snippet"], [{"title": "a", "snippet": "b"}, {"snippet": "c"}], ["a b", "c"], []),
        (["snippet"], ["a text", {"snippet": "c"}], ["a text", "c"], []),
        (["contents"], [{"contents": "c", "title": "t"}], ["c"], ["documents[].title"]),
        (["text"], [{"contents": "c"}, "d"], ["c", "d"], []),
        (["snippet", "titel"], [{"snippet": "c", "title": "t"}], ["c"], ["rank_fields[].titel", "documents[].title"]),
        (["title"], ["only", "texts"], ["only", "texts"], ["rank_fields[].title"]),
    ],
)
def test_records_are_ranked_by_the_fields_that_are_named_and_need_no_other(
    records: httpx.Client, fields: list[str], documents: list[object], texts: list[str], unused: list[str]
) -> None:
    assert rank_fields_answer(records, fields, *documents) == (texts, unused)


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({"documents": [{"title": "only"}]}, "documents.0: no text"),
        ({"documents": [{"title": "only"}], "rank_fields": ["title", "text"]}, "documents.0: no text"),
        ({"documents": [{"year": 1}], "rank_fields": ["year"]}, "documents.0: 'year' is an integer"),
        ({"documents": ["a"], "rank_fields": []}, "rank_fields: List should have at least 1 item"),
        ({"documents": ["a"], "rank_fields": ["a{b"]}, "rank_fields: expected names without any of"),
        ({"ids": ["101"], "rank_fields": ["title"]}, "`rank_fields` are of documents, and `ids` have none"),
    ],
)
def test_rank_fields_that_make_no_passage_are_refused(records: httpx.Client, body: dict[str, Any], told: str) -> None:
    response = records.post("/v1/rerank", json={"query": QUERY} | body)
    assert response.status_code == 422, response.text
    assert told in response.json()["detail"]
