from __future__ import annotations

import logging
from typing import Any

import pytest

from kalm_cache.adapters.judging import AskStored, AskTexts, Candidate, Judged, Told, Verdict, id_of, judging
from kalm_cache.errors import UsageError

A, B, NAMELESS = Candidate("a", "text a"), Candidate("b", "text b"), Candidate(None, "text")
LOW, MIDDLE, HIGH = Verdict(0.1, -2.2), Verdict(0.5, 0.0), Verdict(0.9, 2.2)


def judge(candidates: list[Candidate], on_missing: Any, answers: dict[type, Any]) -> tuple[list[Any], list[Judged]]:
    """What is asked, and what it comes to."""
    steps, asked = judging(candidates, on_missing), []
    answer: Any = None
    try:
        while True:
            asked.append(steps.send(answer))
            answer = answers[type(asked[-1])]
    except StopIteration as end:
        return asked, end.value


def test_stored_passages_are_asked_for_by_id_alone_and_once() -> None:
    asked, ranking = judge([A, B, A], "error", {AskStored: Told({"a": LOW, "b": HIGH})})
    assert asked == [AskStored(["a", "b"], strict=True)]
    assert [(one.index, one.margin, one.cache) for one in ranking] == [
        (1, 2.2, "hit"),
        (0, -2.2, "hit"),
        (2, -2.2, "hit"),
    ]


def test_what_is_not_stored_is_left_out_under_skip() -> None:
    asked, ranking = judge([A, NAMELESS, B], "skip", {AskStored: Told({"b": HIGH})})
    assert asked == [AskStored(["a", "b"], strict=False)]
    assert [one.index for one in ranking] == [2]


def test_only_texts_of_what_is_not_stored_are_encoded() -> None:
    answers = {AskStored: Told({"b": MIDDLE}), AskTexts: [LOW, HIGH]}
    asked, ranking = judge([A, B, NAMELESS], "encode", answers)
    assert asked == [AskStored(["a", "b"], strict=False), AskTexts(["text a", "text"])]
    assert [(one.index, one.cache) for one in ranking] == [(2, "encoded"), (1, "hit"), (0, "encoded")]


def test_equal_margins_keep_their_order() -> None:
    _, ranking = judge([A, NAMELESS, B], "encode", {AskStored: Told({"a": LOW, "b": LOW}), AskTexts: [LOW]})
    assert [one.index for one in ranking] == [0, 1, 2]


def test_nothing_is_asked_where_nothing_is_to_be_judged() -> None:
    assert judge([], "error", {}) == ([], [])
    assert judge([NAMELESS], "skip", {}) == ([], [])


def test_a_damaged_passage_is_left_out_and_logged_or_encoded_again(caplog: pytest.LogCaptureFixture) -> None:
    told = Told({"b": HIGH}, damaged=["a"])
    with caplog.at_level(logging.WARNING):
        _, ranking = judge([A, B], "error", {AskStored: told})
    assert [one.index for one in ranking] == [1]
    assert "'a'" in caplog.text
    _, ranking = judge([A, B], "encode", {AskStored: told, AskTexts: [LOW]})
    assert [one.index for one in ranking] == [1, 0]


def test_a_document_without_an_id_is_an_error_that_says_where_and_what_to_do() -> None:
    with pytest.raises(UsageError, match="2 of 3 documents have no id, the first at position 1; name the metadata"):
        judge([A, NAMELESS, NAMELESS], "error", {})


def test_a_document_with_neither_states_nor_text_is_an_error() -> None:
    with pytest.raises(UsageError, match=r"document 0 \(id 'a'\) is not stored and has no text"):
        judge([Candidate("a", None)], "encode", {AskStored: Told({})})


@pytest.mark.parametrize(
    ("metadata", "own", "field", "found"),
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
    metadata: dict[str, Any], own: str | None, field: str | None, found: str | None
) -> None:
    assert id_of(metadata, own, field) == found
