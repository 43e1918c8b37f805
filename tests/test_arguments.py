"""What public functions take, and how what they do not take is named."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from kalm_cache.arguments import (
    as_list,
    check_count,
    check_doc_ids,
    check_document,
    check_limit,
    check_pairs,
    check_texts,
    check_weight,
)
from kalm_cache.errors import UsageError
from kalm_cache.passage import PassageTemplate

ARRAY = np.array(["a", "b"])


@pytest.mark.parametrize("texts", [["a", "b"], ("a", "b"), iter(["a", "b"]), ARRAY, {"a": 1, "b": 2}.keys()])
def test_whatever_has_items_in_order_is_a_list(texts: Any) -> None:
    found = check_texts(texts, "documents")
    assert found == ["a", "b"]
    assert {type(text) for text in found} == {str}


@pytest.mark.parametrize("values", ["ab", b"ab", None, 7, {"a"}, frozenset("a"), {"a": 1}, np.array("a"), object()])
def test_what_has_no_items_in_order_is_refused_by_name(values: Any) -> None:
    with pytest.raises(UsageError, match=r"^documents is .*; expected a list of strings$"):
        as_list(values, "documents")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, r"texts\[1\] is None; expected a string"),
        (7, r"texts\[1\] is 7; expected a string"),
        (b"a", r"texts\[1\] is b'a'; expected a string"),
        (["a"], r"texts\[1\] is \['a'\]; expected a string"),
        ("\udc00", r"texts\[1\] holds half a surrogate pair, \\udc00, at character 0"),
    ],
)
def test_a_text_that_is_none_is_named_by_its_position(value: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        check_texts(["a", value], "texts")


def test_ids_are_what_a_corpus_takes() -> None:
    assert check_doc_ids([101, np.int64(7), "a"]) == ["101", "7", "a"]
    assert check_doc_ids(np.array([1, 2])) == ["1", "2"]
    with pytest.raises(UsageError, match=r"ids\[1\] is a boolean; make it a string or an integer"):
        check_doc_ids(["a", True])
    with pytest.raises(UsageError, match=r"ids\[0\] is null"):
        check_doc_ids([None])


@pytest.mark.parametrize(
    "pairs", [[("q", "a")], [["q", "a"]], np.array([["q", "a"]]), np.array([["q", "a"]], object), iter([("q", "a")])]
)
def test_pairs_may_be_rows_of_an_array(pairs: Any) -> None:
    assert check_pairs(pairs) == [("q", "a")]


@pytest.mark.parametrize("pair", ["qa", {"q", "a"}, ("q", None), ("q",), np.array(["q"]), 7])
def test_what_is_no_pair_is_named_by_its_position(pair: Any) -> None:
    with pytest.raises(UsageError, match=r"pairs\[1\] is .*; expected two strings"):
        check_pairs([("q", "a"), pair])


@pytest.mark.parametrize("value", [-1, 0, True, 1.0, "5", None, np.float64(3)])
def test_a_count_is_a_whole_number(value: Any) -> None:
    with pytest.raises(UsageError, match=r"^top_n is .*; it must be a whole number, 1 or more$"):
        check_count(value, "top_n")


def test_counts_of_an_array_count_and_none_is_no_limit() -> None:
    assert check_count(np.int32(3), "k") == 3
    assert check_limit(None, "k") is None
    assert check_limit(0, "k", least=0) == 0


@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf"), "1", True, None])
def test_a_weight_is_a_finite_number(value: Any) -> None:
    with pytest.raises(UsageError, match="weight is"):
        check_weight(value, "weight")


def test_a_document_is_a_text_or_a_record() -> None:
    template = PassageTemplate()
    assert check_document("a", "documents[0]", template) == "a"
    assert check_document({"_id": 7, "title": "T", "text": "a"}, "documents[0]", template) == "T a"
    with pytest.raises(UsageError, match=r"documents\[0\] has the field 'author', which is no part of the passage"):
        check_document({"text": "a", "author": "b"}, "documents[0]", template)
    with pytest.raises(UsageError, match=r"documents\[0\]\['id'\] is a float"):
        check_document({"text": "a", "id": 1.5}, "documents[0]", template)
    with pytest.raises(UsageError, match=r"documents\[0\]: no text"):
        check_document({"title": "a"}, "documents[0]", template)


def test_a_usage_error_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="k is -1"):
        check_count(-1, "k")
