"""What is an id, and what passage the fields of a record make."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from kalm_cache.errors import UsageError
from kalm_cache.passage import PassageTemplate, as_doc_id, read_id


@pytest.mark.parametrize(
    ("value", "doc_id"),
    [(101, "101"), ("101", "101"), (-7, "-7"), (0, "0"), (10**400, "1" + "0" * 400), (" a ", " a "), ("", "")],
)
def test_a_whole_number_is_the_id_of_its_digits(value: Any, doc_id: str) -> None:
    assert as_doc_id(value, "id") == doc_id


@pytest.mark.parametrize("value", [np.int64(101), np.uint8(101), np.str_("101")])
def test_an_id_from_an_array_is_a_plain_string(value: Any) -> None:
    assert as_doc_id(value, "id") == "101"
    assert type(as_doc_id(value, "id")) is str


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (True, "a boolean"),
        (np.bool_(True), "a bool"),
        (1.5, "a float"),
        (101.0, "a float"),
        (math.nan, "a float"),
        (np.float32(1.0), "a float32"),
        (None, "null"),
        (b"a", "a bytes"),
        ([1], "a list"),
        ({"a": 1}, "an object"),
    ],
)
def test_nothing_else_is_an_id(value: Any, found: str) -> None:
    with pytest.raises(ValueError, match=f"^ids\\[3\\] is {found}; make it a string or an integer$"):
        as_doc_id(value, "ids[3]")


def test_ids_that_no_index_can_store_are_refused() -> None:
    with pytest.raises(ValueError, match="more than 511 digits"):
        as_doc_id(10**511, "id")
    with pytest.raises(ValueError, match="'id' holds half a surrogate pair"):
        read_id({"id": "\ud83d"})
    with pytest.raises(ValueError, match="the id in '_id' takes 512 bytes, at most 511 can be stored"):
        read_id({"_id": "a" * 512})


@pytest.mark.parametrize(
    ("record", "text"),
    [
        ({"title": "Teapot", "text": "Of glass."}, "Teapot Of glass."),
        ({"title": "", "text": " Of glass. "}, " Of glass. "),
        ({"title": None, "contents": "Of glass."}, "Of glass."),
        ({"title": "Teapot", "text": ""}, "Teapot"),
        ({"text": "{title} {0}"}, "{title} {0}"),
        ({"title": "{text}", "text": "b"}, "{text} b"),
    ],
)
def test_the_title_goes_in_front_of_the_text(record: dict[str, Any], text: str) -> None:
    assert PassageTemplate().text_of(record) == text


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        ("{text}", "Of glass."),
        ("passage: {text}", "passage: Of glass."),
        ("{title}. {text} ({brand})", "Teapot. Of glass. ()"),
        ("{{{title}}} {text}", "{Teapot} Of glass."),
        ("{title}", "Teapot"),
    ],
)
def test_a_template_puts_fields_where_it_names_them(pattern: str, text: str) -> None:
    assert PassageTemplate(pattern).text_of({"title": "Teapot", "text": "Of glass.", "price": 3}) == text


def test_fields_one_after_the_other_make_what_the_index_job_makes() -> None:
    record = {"title": "Teapot", "text": "Of glass."}
    assert PassageTemplate.joining(["title", "text"]).text_of(record) == PassageTemplate().text_of(record)
    assert PassageTemplate.joining(["text", "title"]).text_of(record) == "Of glass. Teapot"


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({}, "no text; give the passage one under 'text' or 'contents'"),
        ({"text": None}, "'text' is null; make it a string"),
        ({"text": "a", "title": 3}, "'title' is an integer; make it a string or null"),
        ({"text": "a", "title": "\ud800"}, "'title' holds half a surrogate pair"),
    ],
)
def test_a_record_that_makes_no_passage_is_refused_by_field(record: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PassageTemplate().text_of(record)


@pytest.mark.parametrize(
    "pattern", ["", "text", "{}", "{0}", "{text.__class__}", "{text[0]}", "{text!r}", "{text:>9}", "{text", "{text}}"]
)
def test_a_template_of_anything_but_names_is_refused(pattern: str) -> None:
    with pytest.raises(UsageError, match="passage_template"):
        PassageTemplate(pattern)


def test_fields_that_are_neither_id_nor_passage_are_unused() -> None:
    record = {"_id": 1, "doc_id": "1", "title": "t", "contents": "c", "url": "u", "text": "x"}
    assert PassageTemplate().unused(record) == ["contents", "url"]
    assert PassageTemplate("{url} {text}").unused(record) == ["title", "contents"]
