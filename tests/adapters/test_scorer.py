from __future__ import annotations

import anyio
import pytest

from kalm_cache import AsyncClient, Client, KaLMReranker, PassageIndex
from kalm_cache.adapters.candidates import Candidate, ScoredCandidate
from kalm_cache.adapters.scorer import Scorer
from kalm_cache.errors import UnknownIdError, UsageError
from tests.adapters.conftest import CORPUS, IDS, QUERY, Sent

FP16 = 5e-3  # the index keeps states in half precision
STORED = [Candidate(doc_id, CORPUS[doc_id]) for doc_id in IDS]
MIXED = [*STORED, Candidate("not-there", "A text about bees."), Candidate(None, CORPUS["s1"])]


def by_index(ranking: list[ScoredCandidate]) -> dict[int, float]:
    assert ranking == sorted(ranking, key=lambda scored: -scored.margin)
    return {scored.index: scored.margin for scored in ranking}


def test_stored_passages_are_scored_alike_by_index_service_and_reranker(
    index: PassageIndex, client: Client, async_client: AsyncClient, unpooled: KaLMReranker
) -> None:
    expected = dict(enumerate(index.margins(QUERY, IDS)))
    assert by_index(Scorer(index).score(QUERY, STORED)) == pytest.approx(expected, abs=1e-5)
    assert by_index(Scorer(client).score(QUERY, STORED)) == pytest.approx(expected, abs=1e-5)
    assert by_index(anyio.run(Scorer(async_client).ascore, QUERY, STORED)) == pytest.approx(expected, abs=1e-5)
    assert by_index(Scorer(unpooled).score(QUERY, STORED)) == pytest.approx(expected, abs=FP16)


def test_no_text_is_sent_for_what_is_stored(client: Client, sent: Sent) -> None:
    Scorer(client).score(QUERY, STORED)
    [(path, body)] = sent
    assert (path, body["ids"]) == ("/rerank", IDS)
    assert set(body) == {"query", "ids", "return_margin", "return_documents", "on_missing"}
    assert not any(text in str(body) for text in CORPUS.values() if text)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_only_texts_that_are_not_stored_are_sent_and_encoded(
    client: Client, async_client: AsyncClient, sent: Sent, unpooled: KaLMReranker, asynchronous: bool
) -> None:
    if asynchronous:
        ranking = anyio.run(Scorer(async_client, on_missing="encode").ascore, QUERY, MIXED)
    else:
        ranking = Scorer(client, on_missing="encode").score(QUERY, MIXED)
    assert {scored.index: scored.cache for scored in ranking} == dict.fromkeys(range(4), "hit") | {
        4: "encoded",
        5: "encoded",
    }
    assert [path for path, _ in sent] == ["/rerank", "/score"]
    assert [pair["document"] for pair in sent[1][1]["pairs"]] == ["A text about bees.", CORPUS["s1"]]
    texts = [(QUERY, "A text about bees."), (QUERY, CORPUS["s1"])]
    encoded = [pair["margin"] for pair in unpooled.predict(texts, return_margin=True)]
    assert [by_index(ranking)[4], by_index(ranking)[5]] == pytest.approx(
        encoded, abs=1e-3
    )  # the second one is stored, in fp16


def test_an_index_encodes_what_it_does_not_hold_by_the_reranker_beside_it(
    index: PassageIndex, unpooled: KaLMReranker, client: Client
) -> None:
    local = Scorer(index, unpooled, "encode").score(QUERY, MIXED)
    served = Scorer(client, on_missing="encode").score(QUERY, MIXED)
    assert by_index(local) == pytest.approx(by_index(served), abs=1e-3)  # the service has one of them stored, in fp16
    assert {scored.index: scored.cache for scored in local} == {scored.index: scored.cache for scored in served}
    with pytest.raises(UsageError, match="an index holds no encoder: give the adapter reranker="):
        Scorer(index, on_missing="encode").score(QUERY, MIXED)


@pytest.mark.parametrize("backend", ["index", "client"])
def test_what_is_not_stored_is_an_error_or_left_out(request: pytest.FixtureRequest, backend: str) -> None:
    backing = request.getfixturevalue(backend)
    unknown = [*STORED, Candidate("not-there", "text"), Candidate("nor-there", None)]
    with pytest.raises(UnknownIdError) as failure:
        Scorer(backing).score(QUERY, unknown)
    assert failure.value.ids == ["not-there", "nor-there"]
    assert set(by_index(Scorer(backing, on_missing="skip").score(QUERY, unknown))) == {0, 1, 2, 3}
    assert Scorer(backing, on_missing="skip").score(QUERY, unknown[4:]) == []


@pytest.mark.parametrize("backend", ["index", "client"])
def test_instruction_and_ratio_reach_index_and_service(
    request: pytest.FixtureRequest, index: PassageIndex, backend: str
) -> None:
    expected = index.margins(QUERY, IDS, instruction="Find the passage.", chunk_size=8)
    assert expected != pytest.approx(index.margins(QUERY, IDS), abs=1e-3)
    scorer = Scorer(request.getfixturevalue(backend), instruction="Find the passage.", chunk_size=8)
    assert by_index(scorer.score(QUERY, STORED)) == pytest.approx(dict(enumerate(expected)), abs=1e-5)
    overridden = scorer.score(QUERY, STORED, "Another one.")
    assert by_index(overridden) != pytest.approx(dict(enumerate(expected)), abs=1e-3)


def test_an_instruction_reaches_a_reranker(index: PassageIndex, unpooled: KaLMReranker) -> None:
    plain = dict(enumerate(index.margins(QUERY, IDS)))
    scorer = Scorer(unpooled, instruction="Find the passage.")
    assert by_index(scorer.score(QUERY, STORED)) != pytest.approx(plain, abs=1e-3)


def test_backends_in_this_process_do_not_hold_up_the_event_loop(index: PassageIndex) -> None:
    assert anyio.run(Scorer(index).ascore, QUERY, STORED) == Scorer(index).score(QUERY, STORED)


def test_other_backends_are_refused(async_client: AsyncClient) -> None:
    with pytest.raises(UsageError, match="the backend is a str; expected Client"):
        Scorer("http://service").score(QUERY, STORED)
    with pytest.raises(UsageError, match="asynchronous methods only"):
        Scorer(async_client).score(QUERY, STORED)
