from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from kalm_cache.generations.generation import open_current
from kalm_cache.settings import load_settings
from query_service.app import create_app
from query_service.engine.documents import DocumentEncoder
from query_service.server import open_service
from tests.checkpoints import make_checkpoint
from tests.query_service.conftest import running, serving
from tests.stores import damage_record

Q = {"query": "bees"}


def failure(client: httpx.Client, path: str, status: int, **request: object) -> dict[str, object]:
    response = client.post(path, **request)
    assert response.status_code == status, response.text
    assert response.json().keys() - {"message"} == {"error", "detail"}  # `message`: for clients of Cohere
    assert response.json()["detail"] == response.json()["error"]["message"]
    return response.json()["error"]


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("/search", {}, "query: Field required"),
        ("/search", {"query": None}, "query: Field required"),
        ("/search", Q | {"k": 0}, "k: Input should be greater than or equal to 1"),
        ("/search", Q | {"top_n": -1}, "top_n: Input should be greater than or equal to 0"),
        ("/search", Q | {"first_stage": "best"}, "first_stage: Input should be 'dense', 'bm25' or 'fused'"),
        ("/rerank", Q, "Give exactly one of `ids`, `documents`, `texts`; got none"),
        ("/rerank", Q | {"ids": ["s1"], "texts": []}, "exactly one of `ids`, `documents`, `texts`; got ids and texts"),
        ("/rerank", Q | {"ids": "s1"}, "ids: Input should be a valid list"),
        ("/rerank", Q | {"ids": [""]}, "ids.0: String should have at least 1 character"),
        ("/rerank", Q | {"ids": [None] * 99}, "and 94 more"),
        ("/score", {}, "exactly one of `pairs`, `queries`, `text_1`, `data_1`; got none"),
        ("/score", {"queries": "a"}, "`queries` and `documents` or `items` go together"),
        ("/score", {"pairs": [], "text_2": "a"}, "`text_1` and `text_2` go together"),
        ("/score", {"queries": ["a", "b"], "documents": ["c"]}, "2 queries and 1 documents"),
        ("/score", {"pairs": [Q]}, "pairs.0: Give exactly one of `document`, `doc_id`; got none"),
        ("/rerank", [], "expected an object"),
        ("/rerank", Q | {"documents": [None]}, "documents.0: expected a text or {text?, "),
        ("/rerank", Q | {"documents": "a"}, "documents: Input should be a valid list"),
        ("/rerank", Q | {"documents": [{"text": "a", "id": 1.5}]}, "documents.0.id: expected a text or an integer"),
        ("/score", {"queries": "a", "documents": [5]}, "documents.0: expected a text or {text?, "),
        ("/score", {"queries": 5, "documents": "a"}, "queries: expected a text or a list"),
        ("/score", {"pairs": [5]}, "pairs.0: expected an object"),
    ],
)
def test_an_invalid_request_is_a_422_that_names_the_field(
    service: httpx.Client, path: str, body: object, message: str
) -> None:
    error = failure(service, path, 422, json=body)
    assert error["type"] == "ValidationError"
    assert message in str(error["message"])
    assert not re.search(r"[\[\]()]|function|Document", str(error["message"]))  # names of our own


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/search", rb'{"query": "\ud800"}'),
        ("/search", rb'{"query": "a", "instruction": "b\udfff"}'),
        ("/rerank", rb'{"query": "a", "ids": ["\udc00x"]}'),
        ("/rerank", rb'{"query": "a", "documents": ["\ud83d"]}'),
        ("/v1/rerank", rb'{"query": "a", "texts": [{"text": "b", "id": "\ud83d"}]}'),
        ("/score", rb'{"pairs": [{"query": "\ud83d", "document": "b"}]}'),
        ("/score", rb'{"text_1": "a", "text_2": "\ud83d\u0041"}'),
    ],
)
def test_half_a_surrogate_pair_is_a_422(service: httpx.Client, path: str, body: bytes) -> None:
    error = failure(service, path, 422, content=body, headers={"content-type": "application/json"})
    assert "unicode" in str(error["message"]).lower()


def test_a_whole_surrogate_pair_is_a_character(service: httpx.Client) -> None:
    body = rb'{"query": "a", "documents": ["\ud83d\udc1d"], "return_documents": true}'
    answer = service.post("/rerank", content=body, headers={"content-type": "application/json"}).json()
    assert answer["results"][0]["document"] == {"text": "🐝"}


@pytest.mark.parametrize("body", [{"documents": [{"id": "a"}]}, {"documents": ["x", {"doc_id": 3, "title": None}]}])
def test_a_document_of_an_id_alone_is_told_where_ids_go(service: httpx.Client, body: dict[str, list[object]]) -> None:
    error = failure(service, "/rerank", 422, json=Q | body)
    place = len(body["documents"]) - 1
    assert (
        error["message"] == f"documents.{place} has an id and no text; to rank what the index holds, send ids as `ids`"
    )


@pytest.mark.parametrize("path", ["/search", "/rerank", "/v1/rerank", "/score", "/explain"])
def test_an_empty_body_is_called_so_and_told_what_it_lacks(service: httpx.Client, path: str) -> None:
    for content in (b"", None):
        message = str(failure(service, path, 422, content=content)["message"])
        assert message.startswith("The body is empty; send JSON such as {")
        assert message.endswith("got none" if path == "/score" else "query: Field required")
    assert service.post("/infinity/rerank").json()["detail"][1]["loc"] == ["body", "query"]


@pytest.mark.parametrize("body", [b"{", b'{"query": "\xff"}', b"[" * 100_000])
def test_a_body_that_is_not_json_is_a_400(service: httpx.Client, body: bytes) -> None:
    failure(service, "/search", 400, content=body, headers={"content-type": "application/json"})


@pytest.mark.parametrize("request_", [("/search", Q), ("/rerank", Q | {"ids": ["s1"]})])
def test_a_chunk_size_that_is_no_multiple_is_a_422(service: httpx.Client, request_: tuple[str, dict]) -> None:
    path, body = request_
    error = failure(service, path, 422, json=body | {"chunk_size": 6})
    assert error["type"] == "UsageError"
    assert "stored at 4" in str(error["message"])


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/rerank", Q | {"ids": ["s1", "nowhere", "ü" * 600]}),
        ("/score", {"pairs": [Q | {"doc_id": "s1"}, Q | {"doc_id": "nowhere"}, Q | {"doc_id": "ü" * 600}]}),
    ],
)
def test_unknown_ids_are_a_404_that_names_them(service: httpx.Client, path: str, body: object) -> None:
    error = failure(service, path, 404, json=body)
    assert error["type"] == "UnknownIdError"
    assert error["ids"] == ["nowhere", "ü" * 600]
    assert "'nowhere'" in str(error["message"])


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/rerank", Q | {"documents": ["a text"]}),
        ("/v2/rerank", Q | {"texts": ["a text"]}),
        ("/score", {"queries": "a", "documents": ["b"]}),
    ],
)
def test_raw_documents_without_the_encoder_are_a_400_with_the_way_out(
    decoder_only: httpx.Client, path: str, body: object
) -> None:
    error = failure(decoder_only, path, 400, json=body)
    assert error["type"] == "EncoderOffError"
    assert "kalm-cache serve --with-encoder" in str(error["message"])


def test_an_encoder_of_another_model_is_a_409(index_folder: Path, tmp_path: Path) -> None:
    opened = open_service(index_folder, load_settings(device="cpu", dtype="float32"))
    other = DocumentEncoder(opened.live.served.model, str(make_checkpoint(tmp_path / "other", seed=1)))
    opened.live.served.documents = other
    with running(create_app(opened)) as client:
        error = failure(client, "/rerank", 409, json=Q | {"documents": ["a text"]})
        assert error["type"] == "IndexMismatchError"
        assert client.post("/rerank", json=Q | {"ids": ["s1"]}).status_code == 200


@pytest.fixture
def spare_folder(build: Callable[..., Path]) -> Path:
    """An index that the test may damage; without BM25 and texts."""
    return build(bm25=False, store_text=False)


def shard_of(folder: Path) -> Path:
    return open_current(folder).segment


def test_a_mode_that_was_not_built_is_a_422_and_texts_that_are_not_kept_are_left_out(spare_folder: Path) -> None:
    with serving(spare_folder) as client:
        assert "available modes: dense" in str(failure(client, "/search", 422, json=Q | {"first_stage": "bm25"}))
        [result] = client.post("/rerank", json=Q | {"ids": ["s1"], "return_documents": True}).json()["results"]
        assert "document" not in result


def test_damaged_passages_are_left_out_named_and_counted(spare_folder: Path) -> None:
    damage_record(shard_of(spare_folder), "s1")  # before it is opened: a small store is read once
    with serving(spare_folder) as client:
        whole = client.post("/rerank", json=Q | {"ids": ["s2", "s0"]}).json()
        answer = client.post("/rerank", json=Q | {"ids": ["s2", "s1", "s0"], "return_documents": True}).json()
        assert answer["meta"]["damaged"] == ["s1"]
        assert [one["doc_id"] for one in answer["results"]] == [one["doc_id"] for one in whole["results"]]
        assert sorted(one["index"] for one in answer["results"]) == [0, 2]
        assert client.get("/health").json()["damaged_reads"] == 1
        found = client.post("/search", json=Q | {"k": 18, "top_n": 0, "first_stage": "dense"}).json()
        assert found["damaged"] == ["s1"]
        assert "s1" not in {one["doc_id"] for one in found["results"]}
        assert len(found["results"]) == 17
        assert "kalm_cache_damaged_records_total 2.0" in client.get("/metrics").text


def test_damage_where_every_pair_has_a_score_and_bugs_are_a_500_that_shows_no_traceback(
    spare_folder: Path,
) -> None:
    damage_record(shard_of(spare_folder), "s1")
    opened = open_service(spare_folder, load_settings(device="cpu", dtype="float32"))
    with running(create_app(opened)) as client:
        error = failure(client, "/score", 500, json={"pairs": [Q | {"doc_id": "s2"}, Q | {"doc_id": "s1"}]})
        assert error["type"] == "DamagedRecordError"
        assert client.post("/score", json={"pairs": [Q | {"doc_id": "s2"}]}).status_code == 200
        del opened.live.served.index.stored  # as a bug would
        error = failure(client, "/search", 500, json=Q)
        assert error == {
            "type": "InternalServerError",
            "message": "the service failed on this request; its log says how",
        }
        assert client.get("/health").status_code == 200


def test_unknown_paths_and_methods_are_answered_in_the_same_shape(service: httpx.Client) -> None:
    assert service.get("/nowhere").json()["error"] == {"type": "NotFound", "message": "Not Found"}
    response = service.get("/search")
    assert (response.status_code, response.headers["allow"]) == (405, "POST")
    assert response.json()["error"]["type"] == "MethodNotAllowed"
