"""A calibrated index over HTTP and the client: probabilities, the least of them, and `auto`."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from indexer.change.set_calibration import set_calibration
from kalm_cache.client import Client
from kalm_cache.generations.generation import open_current
from tests.calibrated import calibration, curve
from tests.query_service.conftest import CORPUS, serving

QUERY, IDS = "When does the ferry leave?", ["s1", "s2", "s3", "s4"]
FITTED = curve(4, temperature=0.5, offset=0.1, weight=5.0)


@pytest.fixture(scope="module")
def calibrated(index_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    folder = Path(shutil.copytree(index_folder, tmp_path_factory.mktemp("calibrated") / "index"))
    decoder = open_current(folder).manifest.decoder
    assert decoder is not None
    set_calibration(folder, calibration(FITTED, decoder=decoder.digest))
    with serving(folder, with_encoder=True) as client:
        yield client


def ask(client: httpx.Client, path: str, **request: Any) -> Any:
    response = client.post(path, json={"query": QUERY, **request})
    assert response.status_code == 200, response.text
    return response.json()


def of(results: list[dict[str, Any]]) -> list[Any]:
    return [FITTED.probability(result["margin"]) for result in results]


def test_every_answer_has_the_probability_of_each_margin(calibrated: httpx.Client) -> None:
    documents = {"documents": [CORPUS["s5"], "A text that is not stored."]}
    answers = [
        ask(calibrated, "/search")["results"],
        ask(calibrated, "/rerank", ids=IDS, return_margin=True)["results"],
        ask(calibrated, "/rerank", return_margin=True, **documents)["results"],
        ask(calibrated, "/rerank", return_margin=True, texts=documents["documents"]),
    ]
    pairs = [{"query": QUERY, "doc_id": one} for one in IDS]
    columns = {"text_1": QUERY, "text_2": documents["documents"], "return_margin": True}
    answers.append(calibrated.post("/score", json={"pairs": pairs, "return_margin": True}).json()["results"])
    answers.append(calibrated.post("/score", json=columns).json()["data"])
    got = [[result["probability"] for result in results] for results in answers]
    assert got == [pytest.approx(of(results)) for results in answers]


def test_results_below_the_least_probability_are_left_out(calibrated: httpx.Client) -> None:
    ranked = ask(calibrated, "/rerank", ids=IDS)["results"]
    least = ranked[1]["probability"]
    assert ask(calibrated, "/rerank", ids=IDS, min_probability=least)["results"] == ranked[:2]
    assert [one["doc_id"] for one in ask(calibrated, "/search", min_probability=1.0)["results"]] == []


def test_auto_is_the_weight_that_was_fitted(calibrated: httpx.Client) -> None:
    def order(weight: object) -> list[str]:
        return [one["doc_id"] for one in ask(calibrated, "/search", first_stage_weight=weight)["results"]]

    assert order("auto") == order(5.0) != order(0.0)


@pytest.mark.parametrize(
    ("path", "request_"),
    [
        ("/search", {"min_probability": 0.5, "chunk_size": 8}),
        ("/search", {"first_stage_weight": "auto", "chunk_size": 8}),
        ("/rerank", {"ids": IDS, "min_probability": 0.5, "chunk_size": 8}),
    ],
)
def test_what_was_not_fitted_is_refused_with_what_was(
    calibrated: httpx.Client, service: httpx.Client, path: str, request_: dict[str, Any]
) -> None:
    refused = calibrated.post(path, json={"query": QUERY, **request_})
    assert refused.status_code == 422
    assert "not calibrated at chunk size 8 (at: 4)" in refused.json()["error"]["message"]
    refused = service.post(path, json={"query": QUERY, **request_, "chunk_size": 4})
    assert "(at: none); run kalm-cache calibrate" in refused.json()["error"]["message"]


@pytest.mark.parametrize(
    "wrong",
    [{"min_probability": 1.5}, {"min_probability": "0.5"}, {"first_stage_weight": -1}, {"first_stage_weight": "x"}],
)
def test_a_number_that_is_none_is_refused_by_its_name(calibrated: httpx.Client, wrong: dict[str, Any]) -> None:
    refused = calibrated.post("/search", json={"query": QUERY, **wrong})
    assert refused.status_code in (400, 422)
    assert next(iter(wrong)) in refused.text


def test_an_index_without_a_calibration_says_nothing_of_probabilities(service: httpx.Client) -> None:
    assert "probability" not in ask(service, "/rerank", ids=IDS)["results"][0]
    assert ask(service, "/search")["results"][0]["probability"] is None


def test_the_client_asks_and_reads_as_the_index(calibrated: httpx.Client) -> None:
    with Client(str(calibrated.base_url)) as client:
        searched = client.search(QUERY, first_stage_weight="auto", min_probability=0.01).results
        ranked = client.rerank(QUERY, IDS, min_probability=0.01).results
        scores = client.score([(QUERY, {"doc_id": one}) for one in IDS])
    for found in (searched, ranked, scores):
        assert [one.probability for one in found] == pytest.approx([FITTED.probability(one.margin) for one in found])
        assert found
