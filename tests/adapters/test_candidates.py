from __future__ import annotations

import logging
from typing import Any

import pytest

from kalm_cache.adapters.candidates import Candidate, ScoredCandidate, StoredScores, id_of
from kalm_cache.adapters.scorer import Options, score_candidates
from kalm_cache.client import PairScore
from kalm_cache.errors import UsageError

A, B, NAMELESS = Candidate("a", "text a"), Candidate("b", "text b"), Candidate(None, "text")
LOW, MIDDLE, HIGH = PairScore(0.1, -2.2), PairScore(0.5, 0.0), PairScore(0.9, 2.2)


class FixedSource:
    """Gives the scores that a test has fixed, and keeps what it is asked for."""

    def __init__(self, stored: StoredScores, encoded: list[PairScore]) -> None:
        self.stored, self.encoded = stored, encoded
        self.requests: list[tuple[Any, ...]] = []

    def score_stored(self, query: str, doc_ids: list[str], strict: bool, options: Options) -> StoredScores:
        self.requests.append((doc_ids, strict))
        return self.stored

    def score_texts(self, query: str, texts: list[str], options: Options) -> list[PairScore]:
        self.requests.append((texts,))
        return self.encoded


def score(
    candidates: list[Candidate], on_missing: Any, stored: Any = None, encoded: Any = ()
) -> tuple[list[tuple[Any, ...]], list[ScoredCandidate]]:
    """What the source is asked for, (ids, strict) or (texts,), and what it comes to."""
    source = FixedSource(stored or StoredScores({}), list(encoded))
    return source.requests, score_candidates(source, "q", candidates, on_missing, {})


def test_stored_passages_are_asked_for_by_id_alone_and_once() -> None:
    requests, ranking = score([A, B, A], "error", StoredScores({"a": LOW, "b": HIGH}))
    assert requests == [(["a", "b"], True)]
    assert [(scored.index, scored.margin, scored.cache) for scored in ranking] == [
        (1, 2.2, "hit"),
        (0, -2.2, "hit"),
        (2, -2.2, "hit"),
    ]


def test_what_is_not_stored_is_left_out_under_skip() -> None:
    requests, ranking = score([A, NAMELESS, B], "skip", StoredScores({"b": HIGH}))
    assert requests == [(["a", "b"], False)]
    assert [scored.index for scored in ranking] == [2]


def test_only_texts_of_what_is_not_stored_are_encoded() -> None:
    requests, ranking = score([A, B, NAMELESS], "encode", StoredScores({"b": MIDDLE}), [LOW, HIGH])
    assert requests == [(["a", "b"], False), (["text a", "text"],)]
    assert [(scored.index, scored.cache) for scored in ranking] == [(2, "encoded"), (1, "hit"), (0, "encoded")]


def test_equal_margins_keep_their_order() -> None:
    _, ranking = score([A, NAMELESS, B], "encode", StoredScores({"a": LOW, "b": LOW}), [LOW])
    assert [scored.index for scored in ranking] == [0, 1, 2]


def test_nothing_is_asked_where_nothing_is_to_be_scored() -> None:
    assert score([], "error") == ([], [])
    assert score([NAMELESS], "skip") == ([], [])


def test_a_damaged_passage_is_left_out_and_logged_or_encoded_again(caplog: pytest.LogCaptureFixture) -> None:
    stored = StoredScores({"b": HIGH}, damaged=["a"])
    with caplog.at_level(logging.WARNING):
        _, ranking = score([A, B], "error", stored)
    assert [scored.index for scored in ranking] == [1]
    assert "'a'" in caplog.text
    _, ranking = score([A, B], "encode", stored, [LOW])
    assert [scored.index for scored in ranking] == [1, 0]


def test_a_document_without_an_id_is_an_error_that_says_where_and_what_to_do() -> None:
    with pytest.raises(UsageError, match="2 of 3 documents have no id, the first at position 1; name the metadata"):
        score([A, NAMELESS, NAMELESS], "error")


def test_a_document_with_neither_states_nor_text_is_an_error() -> None:
    with pytest.raises(UsageError, match=r"document 0 \(id 'a'\) is not stored and has no text"):
        score([Candidate("a", None)], "encode")


@pytest.mark.parametrize(
    ("metadata", "library_id", "field", "doc_id"),
    [
        ({"id": "m", "_id": "n"}, "o", None, "m"),
        ({"_id": "n"}, "o", None, "n"),
        ({"id": 7}, None, None, "7"),
        ({"id": ""}, "o", None, "o"),
        ({"id": None}, "o", None, "o"),
        ({}, None, None, None),
        ({}, "", None, None),
        ({"key": "k", "id": "m"}, "o", "key", "k"),
        ({"id": "m"}, "o", "key", None),
    ],
)
def test_ids_come_from_the_metadata_before_the_librarys_own(
    metadata: dict[str, Any], library_id: str | None, field: str | None, doc_id: str | None
) -> None:
    assert id_of(metadata, library_id, field) == doc_id
