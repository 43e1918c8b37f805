"""Texts that come with requests are encoded once, whoever sends them, and found after a restart."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any

import httpx
import pytest

from kalm_cache.generations.generation import open_current
from kalm_cache.reranker import KaLMReranker
from query_service.engine.documents import DocumentEncoder
from query_service.engine.texts import obtain
from tests.query_service.conftest import MAX_LENGTH, serving, serving_texts
from tests.stores import damage_record
from tests.texts import long_text
from tests.waiting import wait_for

QUERY = "bees"
TEXTS = ["bees make honey", "a stone", long_text(2 * MAX_LENGTH, seed=3), "北京", ""]


def rerank(client: httpx.Client, texts: list[str] = TEXTS, **fields: object) -> tuple[list[float], list[str], Any]:
    """Margins and `cache` by position, and the sources."""
    body = {"query": QUERY, "documents": texts, "return_margin": True} | fields
    answer = client.post("/rerank", json=body)
    assert answer.status_code == 200, answer.text
    results = sorted(answer.json()["results"], key=lambda one: one["index"])
    hits = sum(one["cache"] == "hit" for one in results)
    assert answer.headers["X-Cache-Hits"] == str(hits)
    sources = answer.json()["meta"]["cache_sources"]
    assert sum(sources.values()) == len(results)
    return [one["margin"] for one in results], [one["cache"] for one in results], sources


def metric(client: httpx.Client, series: str) -> float:
    lines = client.get("/metrics").text.splitlines()
    return float(next(line.removeprefix(f"{series} ") for line in lines if line.startswith(f"{series} ")))


class Encodings:
    """The texts that the encoder encoded; while it is `held`, it waits before each batch."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.texts: list[str] = []
        self.entered, self.go_on = Event(), Event()
        self.go_on.set()
        encode = DocumentEncoder.encode

        def counted(encoder: DocumentEncoder, batch: Any, options: Any) -> Any:
            self.texts += batch
            self.entered.set()
            assert self.go_on.wait(60)
            return encode(encoder, batch, options)

        patch.setattr(DocumentEncoder, "encode", counted)


@pytest.fixture
def encodings(monkeypatch: pytest.MonkeyPatch) -> Encodings:
    return Encodings(monkeypatch)


@pytest.fixture
def cached(mini_folder: Path, tmp_path: Path) -> Iterator[httpx.Client]:
    with serving_texts(mini_folder, text_cache=str(tmp_path / "cache")) as client:
        yield client


@pytest.mark.parametrize(("codec", "tolerance"), [("fp32", 1e-6), ("fp16", 1e-6), ("bf16", 1e-6), ("int8", 0.2)])
def test_after_a_restart_every_text_is_a_hit_with_the_same_score(
    mini_folder: Path, tmp_path: Path, encodings: Encodings, codec: str, tolerance: float
) -> None:
    with serving_texts(mini_folder, text_cache=str(tmp_path), codec=codec) as client:
        first, cache, sources = rerank(client)
        assert (cache, sources) == (["encoded"] * 5, {"encoded": 5})
    with serving_texts(mini_folder, text_cache=str(tmp_path), codec=codec) as client:
        second, cache, sources = rerank(client)
        assert (cache, sources) == (["hit"] * 5, {"text_cache": 5})
        assert second == pytest.approx(first, abs=tolerance)
        assert metric(client, 'kalm_cache_passage_sources_total{source="text_cache"}') == 5
        assert metric(client, 'kalm_cache_text_cache_passages_total{event="hits"}') == 5
        assert client.get("/health").json()["text_cache"]["hits"] == 5
        texts = client.post("/rerank", json={"query": QUERY, "texts": TEXTS})  # a bare array has no field for it
        assert texts.headers["X-Cache-Hits"] == "5"
    assert len(encodings.texts) == 5


def test_states_of_another_model_are_never_used(mini_folder: Path, tmp_path: Path) -> None:
    for chunk_size in (4, 8):  # decides the bytes, as a model does
        with serving_texts(mini_folder, text_cache=str(tmp_path), chunk_size=chunk_size) as client:
            assert rerank(client)[2] == {"encoded": 5}


def test_who_has_another_secret_finds_nothing(mini_folder: Path, tmp_path: Path) -> None:
    for secret in ("ours", "theirs"):
        with serving_texts(mini_folder, text_cache=str(tmp_path), text_cache_secret=secret) as client:
            assert rerank(client)[2] == {"encoded": 5}


def test_a_private_text_is_neither_kept_nor_looked_up(cached: httpx.Client) -> None:
    for _ in range(2):
        assert rerank(cached, cache=False)[2] == {"encoded": 5}
    assert rerank(cached)[2] == {"encoded": 5}
    assert rerank(cached)[2] == {"text_cache": 5}
    assert rerank(cached, cache=False)[2] == {"encoded": 5}
    assert (
        cached.post("/score", json={"queries": "a", "documents": TEXTS, "cache": False}).headers["X-Cache-Hits"] == "0"
    )
    infinity = {"query": "a", "documents": TEXTS, "cache": False}
    assert cached.post("/infinity/rerank", json=infinity).headers["X-Cache-Hits"] == "0"


def test_a_ratio_hits_where_it_is_a_multiple_of_the_stored_one(cached: httpx.Client) -> None:
    eight = rerank(cached, chunk_size=8)
    assert eight[2] == {"encoded": 5}
    again = rerank(cached, chunk_size=8)
    assert again[2] == {"text_cache": 5}
    assert again[0] == pytest.approx(eight[0], abs=1e-6)
    for _ in range(2):
        assert rerank(cached, chunk_size=6)[2] == {"encoded": 5}


def test_the_index_serves_an_id_and_the_text_cache_any_other_text(build: Callable[..., Path], tmp_path: Path) -> None:
    from tests.query_service.conftest import CORPUS

    documents: list[Any] = [{"id": "s1", "text": CORPUS["s1"]}, {"id": "s2", "text": "another text"}, CORPUS["s3"]]
    with serving(build(codec="fp32"), text_cache=str(tmp_path / "cache")) as client:
        first, cache, sources = rerank(client, documents)
        assert (cache, sources) == (["hit", "encoded", "hit"], {"index_id": 1, "index_text": 1, "encoded": 1})
        second, cache, sources = rerank(client, documents)
        assert (cache, sources) == (["hit"] * 3, {"index_id": 1, "index_text": 1, "text_cache": 1})
        assert second == pytest.approx(first, abs=1e-6)
        by_id = client.post("/rerank", json={"query": QUERY, "ids": ["s3"], "return_margin": True}).json()
        assert by_id["results"][0]["margin"] == pytest.approx(second[2], abs=1e-4)


def test_a_text_that_the_index_holds_is_a_hit_without_its_id_and_without_an_encoder(build: Callable[..., Path]) -> None:
    from tests.query_service.conftest import CORPUS

    with serving(build(codec="fp32")) as client:
        by_text, cache, sources = rerank(client, [CORPUS["s3"], {"id": "mine", "text": CORPUS["s1"]}])
        assert (cache, sources) == (["hit", "hit"], {"index_text": 2})
        by_id = client.post("/rerank", json={"query": QUERY, "ids": ["s3", "s1"], "return_margin": True}).json()
        margins = {one["doc_id"]: one["margin"] for one in by_id["results"]}
        assert by_text == pytest.approx([margins["s3"], margins["s1"]], abs=1e-4)
        assert 'kalm_cache_passage_sources_total{source="index_text"} 2.0' in client.get("/metrics").text
        private = {"query": QUERY, "documents": [CORPUS["s3"]], "cache": False}
        assert client.post("/rerank", json=private).status_code == 400  # it would have to be encoded


def test_a_text_whose_stored_states_are_damaged_is_encoded(build: Callable[..., Path]) -> None:
    from tests.query_service.conftest import CORPUS

    folder = build(codec="fp32")
    damage_record(open_current(folder).segment, "s1")
    with serving(folder, with_encoder=True) as client:
        _, cache, sources = rerank(client, [CORPUS["s1"], CORPUS["s2"]])
        assert (cache, sources) == (["encoded", "hit"], {"index_text": 1, "encoded": 1})


def test_a_text_that_stands_twice_in_a_request_is_encoded_once(cached: httpx.Client, encodings: Encodings) -> None:
    documents: list[Any] = ["a text", {"text": "a text"}, {"id": "x", "text": "a text"}]
    margins, _, _ = rerank(cached, documents)
    assert encodings.texts == ["a text"]
    assert len(set(margins)) == 1


def test_requests_that_come_together_have_a_text_encoded_once(
    cached: httpx.Client, encodings: Encodings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(obtain, "ENCODE_TOKENS", 1)  # one text a step
    shared = ["one", "two", "three"]
    encodings.go_on.clear()
    with ThreadPoolExecutor(8) as threads:
        asked: list[Future[Any]] = [threads.submit(rerank, cached, [*shared, f"{i}"]) for i in range(8)]
        assert encodings.entered.wait(60)
        encodings.go_on.set()
        answers = [each.result() for each in asked]
    assert sorted(encodings.texts) == sorted([*shared, *map(str, range(8))])
    assert sum(cache.count("encoded") for _, cache, _ in answers) == len(encodings.texts)
    assert all(margins[:3] == pytest.approx(answers[0][0][:3], abs=1e-5) for margins, _, _ in answers)


def test_a_text_that_is_asked_for_at_two_ratios_is_encoded_once(
    cached: httpx.Client, encodings: Encodings, mini_folder: Path
) -> None:
    encodings.go_on.clear()
    with ThreadPoolExecutor(3) as threads:
        four = threads.submit(rerank, cached)
        assert encodings.entered.wait(60)
        others = [threads.submit(rerank, cached, **fields) for fields in ({"chunk_size": 8}, {"chunk_size": 4})]
        encodings.go_on.set()
        answers = [each.result()[0] for each in (four, *others)]
    assert sorted(encodings.texts) == sorted(TEXTS)
    for ratio, margins in zip((4, 8, 4), answers, strict=True):
        library = KaLMReranker(str(mini_folder), device="cpu", dtype="float32", max_length=MAX_LENGTH, chunk_size=ratio)
        expected = library.predict([(QUERY, text) for text in TEXTS], return_margin=True)
        assert margins == pytest.approx([each["margin"] for each in expected], abs=1e-4)


def test_a_request_takes_over_a_text_from_one_whose_time_is_up(
    cached: httpx.Client, encodings: Encodings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(obtain, "ENCODE_TOKENS", 1)  # one text a step
    encodings.go_on.clear()
    both = {"query": QUERY, "documents": ["a longer text, which is encoded first", "one"]}
    with ThreadPoolExecutor(2) as threads:
        late = threads.submit(cached.post, "/rerank", json=both | {"timeout_ms": 500})
        assert encodings.entered.wait(60)
        waiting = threads.submit(rerank, cached, ["one"])
        assert late.result().status_code == 504
        encodings.go_on.set()
        assert waiting.result()[1] == ["encoded"]
    assert encodings.texts == [both["documents"][0], "one"]


def test_private_texts_wait_for_no_other_request(cached: httpx.Client, encodings: Encodings) -> None:
    encodings.go_on.clear()
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(rerank, cached, ["one"])
        assert encodings.entered.wait(60)
        private = threads.submit(rerank, cached, ["one"], cache=False)
        encodings.go_on.set()
        assert (first.result()[1], private.result()[1]) == (["encoded"], ["encoded"])
    assert encodings.texts == ["one", "one"]


def test_a_disk_that_cannot_be_written_turns_the_cache_off_and_answers_go_on(
    mini_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("no folder")
    with (
        caplog.at_level(logging.WARNING),
        serving_texts(mini_folder, text_cache=str(tmp_path / "file" / "x")) as client,
    ):
        assert metric(client, "kalm_cache_text_cache_off") == 0
        before = rerank(client)[0]
        wait_for(lambda: metric(client, "kalm_cache_text_cache_off") == 1)
        assert rerank(client)[0] == pytest.approx(before, abs=1e-5)
        assert rerank(client)[2] == {"encoded": 5}
        assert "cannot be written" in client.get("/health").json()["text_cache"]["off"]
    assert sum("no longer cached" in record.message for record in caplog.records) == 1
