"""What a search may ask for besides passages, through a router: a time budget, probabilities; and dtypes."""

from __future__ import annotations

import logging
import shutil
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from indexer.change.set_calibration import set_calibration
from kalm_cache.generations.generation import open_current
from tests.calibrated import calibration, curve
from tests.query_service.conftest import serving
from tests.query_service.router.conftest import routing
from tests.query_service.router.test_answers import same

QUERY = "bees and the flowers that they visit"


def test_a_budget_is_spent_by_all_shards_together_and_the_plan_says_so(
    router: httpx.Client, whole: httpx.Client
) -> None:
    body = {"query": QUERY, "k": 12, "top_n": 12}
    unhurried = router.post("/search", json=body | {"budget_ms": 60_000}).json()
    assert (unhurried["plan"]["k"], unhurried["plan"]["reduced"]) == (12, False)
    expected = whole.post("/search", json=body).json()
    assert same(unhurried["results"], expected["results"])
    hurried = router.post("/search", json=body | {"budget_ms": 0.001}).json()
    assert hurried["plan"]["reduced"]
    assert 1 <= len(hurried["results"]) == hurried["plan"]["k"] <= 3  # one of each service


def test_probabilities_thresholds_and_the_fitted_weight_are_those_of_one_service(sharded: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(sharded, tmp_path / "index"))
    decoder = open_current(folder).manifest.decoder
    assert decoder is not None
    set_calibration(folder, calibration(curve(4, temperature=0.5, offset=0.1, weight=5.0), decoder=decoder.digest))
    with ExitStack() as stack:
        whole = stack.enter_context(serving(folder, with_encoder=True))
        shards = ("0,3", "1,2")
        parts = [stack.enter_context(serving(folder, with_encoder=True, shards=numbers)) for numbers in shards]
        router = stack.enter_context(routing([str(part.base_url) for part in parts], tmp_path))
        asked = [
            ("/search", {"query": QUERY}),
            ("/search", {"query": QUERY, "first_stage_weight": "auto", "min_probability": 0.5}),
            ("/search", {"query": QUERY, "chunk_size": 8, "min_probability": 0.5}),
            ("/rerank", {"query": QUERY, "ids": ["s1", "l2", "s3", "l4"], "min_probability": 0.5}),
            ("/score", {"pairs": [{"query": QUERY, "doc_id": one} for one in ("s1", "l2")]}),
        ]
        answers = [(router.post(path, json=body), whole.post(path, json=body)) for path, body in asked]
        assert [answer.status_code for answer, _ in answers] == [200, 200, 422, 200, 200]
        assert all(same(answer.json(), expected.json()) for answer, expected in answers)
        assert all(result["probability"] is not None for result in answers[0][0].json()["results"])


def test_services_that_compute_in_different_dtypes_are_named(
    sharded: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with ExitStack() as stack:
        one = stack.enter_context(serving(sharded, shards="0,1"))
        other = stack.enter_context(serving(sharded, shards="2,3", dtype="bfloat16"))
        addresses = [str(part.base_url) for part in (one, other)]
        with caplog.at_level(logging.WARNING, logger="query_service.router"):
            router = stack.enter_context(routing(addresses, tmp_path, watch_seconds=0.05))
            assert [router.post("/search", json={"query": QUERY}).status_code for _ in range(4)] == [200] * 4
        said = [record.getMessage() for record in caplog.records if "dtype" in record.getMessage()]
    assert said == [
        f"margins are compared that were computed in different dtypes: float32 (at {addresses[0]}) and bfloat16 "
        f"(at {addresses[1]}); start all services with the same --dtype"
    ]
