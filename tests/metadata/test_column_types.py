from __future__ import annotations

from datetime import UTC, date, datetime

import pytest

from kalm_cache.errors import UsageError
from kalm_cache.metadata.column_types import Cell, ColumnType, converted, guess_type, instant
from kalm_cache.metadata.fields import MetadataFields
from kalm_cache.passage import PassageTemplate


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["de", "2024-01-01"], "text"),
        (["2024-01-01", "2024-01-02T08:00:00Z"], "date"),
        ([date(2024, 1, 1)], "date"),
        ([1, 2.5], "number"),
        ([True, False], "boolean"),
        ([["a"], ["b", "c"]], "text[]"),
        (["a", ["b"]], "text[]"),
        ([Cell("1"), Cell("2.5")], "number"),
        ([Cell("1"), Cell("n/a")], "text"),
        ([Cell("true"), Cell("False")], "boolean"),
        ([1, 2, "three"], "number"),
        ([{"a": 1}], None),
        ([None, ""], None),
    ],
)
def test_the_type_of_a_column_follows_from_its_values(values: list[object], expected: ColumnType | None) -> None:
    assert guess_type(values) == expected


def test_values_are_kept_as_they_came_and_what_is_none_is_none() -> None:
    assert converted("2024-05-01", "date") == "2024-05-01"
    assert converted(datetime(2024, 5, 1, 8, tzinfo=UTC), "date") == "2024-05-01T08:00:00+00:00"
    assert converted(3.0, "number") == 3
    assert converted(Cell("3.50"), "number") == 3.5
    assert converted("a", "text[]") == ["a"]
    assert [converted(empty, "text[]") for empty in (None, "", [], {}, [None])] == [None] * 5


@pytest.mark.parametrize(
    ("value", "column", "problem"),
    [
        ("3", "number", "holds '3', and the column is number"),
        (True, "number", "holds True, and the column is number"),
        (float("nan"), "number", "holds nan"),
        (2**53 + 1, "number", "which no 64-bit float holds exactly"),
        (["a"], "text", "holds a list, and the column is text"),
        ([["a"]], "text[]", "a list within a list"),
        ({"a": 1}, "text", "holds an object"),
        ("yesterday", "date", "holds 'yesterday'"),
        ("2024-02-30", "date", "holds '2024-02-30'"),
        ("\ud800", "text", "and the column is text"),
    ],
)
def test_what_does_not_fit_a_column_says_what_it_is(value: object, column: ColumnType, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        converted(value, column)


def test_dates_are_instants() -> None:
    assert instant("1970-01-01") == instant("1970-01-01T02:00+02:00") == 0
    assert instant("1970-01-02T00:00:00.000001Z") == 86_400_000_001
    assert instant("0001-01-01T00:00+14:00") is not None
    assert [instant(text) for text in ("20240501", "2024-05", "2024-13-01", "2024-05-01 noon")] == [None] * 4


def test_a_setting_names_fields_and_may_name_their_types() -> None:
    fields = MetadataFields.parse("lang, year:number")
    assert fields.schema({"lang": "text", "old": "date"}) == {"lang": "text", "year": "number"}
    assert MetadataFields.parse("all,sku:text").schema({"lang": "text"}) == {"lang": "text", "sku": "text"}
    assert not MetadataFields.parse("")


@pytest.mark.parametrize("setting", ["lang,", "lang,lang", "year:int", ":text", "text", "_id"])
def test_a_setting_that_cannot_be_is_refused(setting: str) -> None:
    with pytest.raises(UsageError, match="metadata is"):
        MetadataFields.parse(setting)


def test_the_members_of_a_metadata_object_are_fields() -> None:
    record = {"id": "a", "text": "t", "year": 1, "metadata": {"lang": "de", "text": "no field"}}
    assert MetadataFields.parse("all").values(record, PassageTemplate()) == {"year": 1, "lang": "de"}
    assert MetadataFields.parse("lang").values(record, PassageTemplate()) == {"lang": "de"}
    with pytest.raises(ValueError, match="'lang' is in the record and in its 'metadata'"):
        MetadataFields.parse("lang").values(record | {"lang": "en"}, PassageTemplate())
