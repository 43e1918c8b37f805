from __future__ import annotations

import anyio
import pytest

from kalm_cache import AsyncClient, Client, KaLMReranker, PassageIndex
from kalm_cache.adapters.judging import Candidate, Judged
from kalm_cache.adapters.sources import Judge
from kalm_cache.errors import UnknownIdError, UsageError
from tests.adapters.conftest import CORPUS, IDS, QUERY, Sent

FP16 = 5e-3  # the index keeps states in half precision
STORED = [Candidate(doc_id, CORPUS[doc_id]) for doc_id in IDS]
MIXED = [*STORED, Candidate("not-there", "A text about bees."), Candidate(None, CORPUS["s1"])]


def by_index(ranking: list[Judged]) -> dict[int, float]:
    assert ranking == sorted(ranking, key=lambda one: -one.margin)
    return {one.index: one.margin for one in ranking}


def test_stored_passages_are_judged_alike_by_index_service_and_reranker(
    index: PassageIndex, client: Client, async_client: AsyncClient, unpooled: KaLMReranker
) -> None:
    expected = dict(enumerate(index.margins(QUERY, IDS)))
    assert by_index(Judge(index).judge(QUERY, STORED)) == pytest.approx(expected, abs=1e-5)
    assert by_index(Judge(client).judge(QUERY, STORED)) == pytest.approx(expected, abs=1e-5)
    assert by_index(anyio.run(Judge(async_client).ajudge, QUERY, STORED)) == pytest.approx(expected, abs=1e-5)
    assert by_index(Judge(unpooled).judge(QUERY, STORED)) == pytest.approx(expected, abs=FP16)


def test_no_text_is_sent_for_what_is_stored(client: Client, sent: Sent) -> None:
    Judge(client).judge(QUERY, STORED)
    [(path, body)] = sent
    assert (path, body["ids"]) == ("/rerank", IDS)
    assert not any(text in str(body) for text in CORPUS.values() if text)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_only_texts_that_are_not_stored_are_sent_and_encoded(
    client: Client, async_client: AsyncClient, sent: Sent, unpooled: KaLMReranker, asynchronous: bool
) -> None:
    if asynchronous:
        ranking = anyio.run(Judge(async_client, on_missing="encode").ajudge, QUERY, MIXED)
    else:
        ranking = Judge(client, on_missing="encode").judge(QUERY, MIXED)
    assert {one.index: one.cache for one in ranking} == dict.fromkeys(range(4), "hit") | {4: "encoded", 5: "encoded"}
    assert [path for path, _ in sent] == ["/rerank", "/score"]
    assert [pair["document"] for pair in sent[1][1]["pairs"]] == ["A text about bees.", CORPUS["s1"]]
    texts = [(QUERY, "A text about bees."), (QUERY, CORPUS["s1"])]
    encoded = [one["margin"] for one in unpooled.predict(texts, return_margin=True)]
    assert [by_index(ranking)[4], by_index(ranking)[5]] == pytest.approx(encoded, abs=1e-4)


def test_an_index_encodes_what_it_does_not_hold_by_the_reranker_beside_it(
    index: PassageIndex, unpooled: KaLMReranker, client: Client
) -> None:
    local = Judge(index, unpooled, "encode").judge(QUERY, MIXED)
    served = Judge(client, on_missing="encode").judge(QUERY, MIXED)
    assert by_index(local) == pytest.approx(by_index(served), abs=1e-4)
    assert {one.index: one.cache for one in local} == {one.index: one.cache for one in served}
    with pytest.raises(UsageError, match="an index holds no encoder: give the adapter reranker="):
        Judge(index, on_missing="encode").judge(QUERY, MIXED)


def test_what_is_not_stored_is_an_error_or_left_out(index: PassageIndex, client: Client) -> None:
    unknown = [*STORED, Candidate("not-there", "text"), Candidate("nor-there", None)]
    for backend in (index, client):
        with pytest.raises(UnknownIdError) as failure:
            Judge(backend).judge(QUERY, unknown)
        assert failure.value.ids == ["not-there", "nor-there"]
        assert set(by_index(Judge(backend, on_missing="skip").judge(QUERY, unknown))) == {0, 1, 2, 3}
        assert Judge(backend, on_missing="skip").judge(QUERY, unknown[4:]) == []


def test_instruction_and_ratio_reach_every_backend(index: PassageIndex, client: Client, unpooled: KaLMReranker) -> None:
    expected = index.margins(QUERY, IDS, instruction="Find the passage.", chunk_size=8)
    plain = index.margins(QUERY, IDS)
    assert expected != pytest.approx(plain, abs=1e-3)
    for backend in (index, client):
        judge = Judge(backend, instruction="Find the passage.", chunk_size=8)
        assert by_index(judge.judge(QUERY, STORED)) == pytest.approx(dict(enumerate(expected)), abs=1e-5)
        over = judge.judge(QUERY, STORED, "Another one.")
        assert by_index(over) != pytest.approx(dict(enumerate(expected)), abs=1e-3)
    judge = Judge(unpooled, instruction="Find the passage.")
    assert by_index(judge.judge(QUERY, STORED)) != pytest.approx(dict(enumerate(plain)), abs=1e-3)


def test_backends_in_this_process_do_not_hold_up_the_event_loop(index: PassageIndex) -> None:
    assert anyio.run(Judge(index).ajudge, QUERY, STORED) == Judge(index).judge(QUERY, STORED)


def test_other_backends_are_refused(async_client: AsyncClient) -> None:
    with pytest.raises(UsageError, match="the backend is a str; expected Client"):
        Judge("http://service").judge(QUERY, STORED)
    with pytest.raises(UsageError, match="asynchronous methods only"):
        Judge(async_client).judge(QUERY, STORED)
