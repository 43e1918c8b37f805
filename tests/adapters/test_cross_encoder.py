from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest
import torch

from kalm_cache import Client, KaLMReranker, PassageIndex
from kalm_cache.adapters import KaLMCrossEncoder
from kalm_cache.errors import UsageError
from tests.adapters.conftest import CORPUS, IDS, QUERY, Sent

TEXTS = [CORPUS[doc_id] for doc_id in IDS]
STORED = [{"id": doc_id} for doc_id in IDS]
PAIRS = [(QUERY, text) for text in TEXTS]


@pytest.mark.parametrize("name", ["predict", "rank"])
def test_arguments_are_those_of_sentence_transformers(name: str) -> None:
    library = pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
    theirs = inspect.signature(getattr(library.CrossEncoder, name)).parameters
    ours = inspect.signature(getattr(KaLMCrossEncoder, name)).parameters
    assert [(key, each.kind, each.default) for key, each in ours.items()] == [
        (key, each.kind, each.default) for key, each in theirs.items()
    ]


def test_predict_gives_arrays_tensors_lists_or_a_scalar(unpooled: KaLMReranker) -> None:
    encoder = KaLMCrossEncoder(unpooled)
    expected = unpooled.predict(PAIRS)
    array = encoder.predict(PAIRS)
    assert isinstance(array, np.ndarray)
    assert array.tolist() == pytest.approx(expected, abs=1e-6)
    tensor = encoder.predict(PAIRS, convert_to_tensor=True)
    assert isinstance(tensor, torch.Tensor)
    assert tensor.tolist() == pytest.approx(expected, abs=1e-6)
    listed = encoder.predict(PAIRS, convert_to_numpy=False)
    assert isinstance(listed, list)
    assert [(each.shape, each.dtype) for each in listed] == [((), torch.float32)] * len(PAIRS)
    assert [each.item() for each in listed] == pytest.approx(expected, abs=1e-6)
    assert encoder.predict(PAIRS[0]) == pytest.approx(expected[0], abs=1e-6)
    assert np.ndim(encoder.predict(list(PAIRS[0]))) == 0
    assert encoder.predict([]).shape == (0,)


def test_an_activation_takes_margins(unpooled: KaLMReranker) -> None:
    margins = [pair["margin"] for pair in unpooled.predict(PAIRS, return_margin=True)]
    encoder = KaLMCrossEncoder(unpooled)
    assert encoder.predict(PAIRS, activation_fn=torch.nn.Identity()).tolist() == pytest.approx(margins, abs=1e-5)
    assert encoder.predict(PAIRS, activation_fn=torch.nn.Sigmoid()) == pytest.approx(encoder.predict(PAIRS), abs=1e-6)


def test_rank_is_sorted_cut_and_gives_documents_back(unpooled: KaLMReranker) -> None:
    expected = unpooled.rank(QUERY, TEXTS)
    ranking = KaLMCrossEncoder(unpooled).rank(QUERY, TEXTS, return_documents=True)
    assert [entry["corpus_id"] for entry in ranking] == [entry["corpus_id"] for entry in expected]
    assert [entry["text"] for entry in ranking] == [TEXTS[entry["corpus_id"]] for entry in expected]
    assert KaLMCrossEncoder(unpooled).rank(QUERY, TEXTS, top_k=2) == [
        {"corpus_id": entry["corpus_id"], "score": pytest.approx(entry["score"], abs=1e-6)} for entry in expected[:2]
    ]


@pytest.mark.parametrize(("backend", "paths"), [("index", []), ("client", ["/rerank"])])
@pytest.mark.parametrize("key", ["doc_id", "id"])
def test_stored_passages_are_pairs_by_their_ids(
    request: pytest.FixtureRequest, index: PassageIndex, sent: Sent, backend: str, paths: list[str], key: str
) -> None:
    expected = index.rerank(QUERY, IDS).results
    encoder = KaLMCrossEncoder(request.getfixturevalue(backend))
    ranking = encoder.rank(QUERY, [{key: doc_id} for doc_id in IDS])
    assert [IDS[entry["corpus_id"]] for entry in ranking] == [hit.doc_id for hit in expected]
    assert [entry["score"] for entry in ranking] == pytest.approx([hit.score for hit in expected], abs=1e-6)
    assert [path for path, _ in sent] == paths


def test_pairs_of_several_queries_keep_their_order(index: PassageIndex) -> None:
    pairs = [(QUERY, STORED[0]), ("ferry", STORED[1]), (QUERY, STORED[2])]
    one_by_one = [float(KaLMCrossEncoder(index).predict(pair)) for pair in pairs]
    assert KaLMCrossEncoder(index).predict(pairs).tolist() == pytest.approx(one_by_one, abs=1e-6)


def test_prompts_are_instructions(index: PassageIndex) -> None:
    encoder = KaLMCrossEncoder(index, prompts={"find": "Find the passage."}, default_prompt_name="find")
    named = encoder.predict([(QUERY, document) for document in STORED])
    given = KaLMCrossEncoder(index).predict([(QUERY, document) for document in STORED], prompt="Find the passage.")
    assert named.tolist() == given.tolist()
    with pytest.raises(UsageError, match="prompt_name is 'other'; the prompts are 'find'"):
        encoder.predict([(QUERY, STORED[0])], prompt_name="other")


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ([("q", "a"), ("q",)], r"pairs\[1\] is \('q',\); expected two strings"),
        ([("q", 7)], r"pairs\[0\] is \('q', 7\); expected two strings"),
        ([("q", {"title": "t"})], r"pairs\[0\]\[1\] has neither an id nor a text"),
        ([(1, "a")], r"pairs\[0\] is \(1, 'a'\)"),
    ],
)
def test_what_is_no_pair_is_named_by_its_position(unpooled: KaLMReranker, inputs: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        KaLMCrossEncoder(unpooled).predict(inputs)


def test_what_would_leave_pairs_without_a_score_is_refused(unpooled: KaLMReranker) -> None:
    with pytest.raises(UsageError, match="leaves pairs without a score"):
        KaLMCrossEncoder(unpooled, on_missing="skip")


def test_what_belongs_to_a_model_is_refused_beside_a_backend(index: PassageIndex, client: Client) -> None:
    with pytest.raises(UsageError, match="max_length is for a model's name; this backend is open"):
        KaLMCrossEncoder(index, max_length=9)
    with pytest.raises(UsageError, match="cache is for a model's name"):
        KaLMCrossEncoder(backend=client, cache="folder")
    with pytest.raises(UsageError, match="the length that counts is the backend's"):
        KaLMCrossEncoder(index).predict([(QUERY, STORED[0])], processing_kwargs={"max_length": 9})
    with pytest.raises(UsageError, match="give a model's name or a backend; got both"):
        KaLMCrossEncoder("tiny", backend=client)
