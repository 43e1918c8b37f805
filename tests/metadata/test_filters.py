from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kalm_cache.errors import StoreError, UsageError
from kalm_cache.metadata import Columns, Schema, parse_filter
from kalm_cache.metadata.column_writer import rewrite_columns, write_columns

SCHEMA: Schema = {
    "lang": "text",
    "year": "number",
    "tags": "text[]",
    "sale": "boolean",
    "on": "date",
    "sizes": "number[]",
}
ROWS: list[tuple[int, dict[str, Any]]] = [
    (3, {"lang": "de", "year": 2020, "tags": ["new", "sale"], "sale": True, "on": "2024-05-01"}),
    (5, {"lang": "en", "year": 2021.5, "on": "2024-05-01T02:00:00+02:00", "sizes": [1, 2]}),
    (9, {}),
    (11, {"lang": "äh", "tags": ["sale"], "sale": False, "on": "2023-01-01"}),
]


@pytest.fixture(scope="module")
def columns(tmp_path_factory: pytest.TempPathFactory) -> Columns:
    return written(tmp_path_factory.mktemp("segment"))


def written(folder: Path) -> Columns:
    write_columns(folder, SCHEMA, ROWS)
    columns = Columns.open(folder)
    assert columns is not None
    return columns


def test_values_come_back_as_they_were_written(columns: Columns) -> None:
    assert columns.ordinals.tolist() == [ordinal for ordinal, _ in ROWS]
    assert columns.values(range(4)) == [values for _, values in ROWS]
    assert columns.values([0, 2], ["lang"]) == [{"lang": "de"}, {}]


@pytest.mark.parametrize(
    ("filter", "expected"),
    [
        ({"lang": "de"}, [3]),
        ({"lang": {"$eq": "fr"}}, []),
        ({"lang": {"$ne": "de"}}, [5, 9, 11]),
        ({"lang": {"$in": ["de", "äh", "fr"]}}, [3, 11]),
        ({"lang": {"$nin": ["de", "äh"]}}, [5, 9]),
        ({"lang": {"$in": []}}, []),
        ({"year": {"$gt": 2020}}, [5]),
        ({"year": {"$gte": 2020, "$lt": 2021}}, [3]),
        ({"year": {"$lte": 2021.5}}, [3, 5]),
        ({"year": {"$not": {"$gt": 2020}}}, [3, 9, 11]),
        ({"tags": "sale"}, [3, 11]),
        ({"tags": {"$nin": ["new"]}}, [5, 9, 11]),
        ({"sizes": {"$gt": 1}}, [5]),
        ({"sale": True}, [3]),
        ({"sale": {"$ne": True}}, [5, 9, 11]),
        ({"on": "2024-05-01"}, [3, 5]),
        ({"on": {"$lt": "2024-01-01"}}, [11]),
        ({"tags": {"$exists": True}}, [3, 11]),
        ({"tags": {"$exists": False}}, [5, 9]),
        ({"lang": "de", "year": 2020}, [3]),
        ({"$and": [{"lang": "de"}, {"year": {"$gt": 2020}}]}, []),
        ({"$or": [{"lang": "de"}, {"sizes": 2}]}, [3, 5]),
        ({"$not": {"$or": [{"lang": "de"}, {"sizes": 2}]}}, [9, 11]),
        ({}, [3, 5, 9, 11]),
    ],
)
def test_a_filter_selects_what_it_says(columns: Columns, filter: dict[str, Any], expected: list[int]) -> None:
    parsed = parse_filter(filter, SCHEMA)
    mask = parsed.mask(columns)
    assert columns.ordinals[mask].tolist() == expected
    some = np.array([3, 1])
    assert parsed.mask(columns, some).tolist() == mask[some].tolist()
    assert parsed.matches_without_values() == (9 in expected)  # the passage that has no value


@pytest.mark.parametrize(
    ("filter", "problem"),
    [
        ({"lnag": "de"}, r"no field 'lnag' \(did you mean 'lang'\?\); the index has: lang \(text\), year \(number\)"),
        ({"lang": 1}, r"'lang' is text: \$eq takes a string, got 1"),
        ({"lang": {"$gt": "a"}}, r"'lang' is text; \$gt compares numbers and dates"),
        ({"lang": ["de"]}, r"got \['de'\]; \$in takes a list"),
        ({"lang": {"$in": "de"}}, r"'lang': \$in takes a list of values"),
        ({"lang": {}}, "'lang' has no condition"),
        ({"lang": {"$regex": "d.*"}}, r"'lang': no operator '\$regex'; those are \$eq"),
        ({"year": "2020"}, "'year' is number: .* got '2020'"),
        ({"year": True}, "'year' is number"),
        ({"year": float("nan")}, "got nan"),
        ({"year": None}, r"\$exists says whether there is a value"),
        ({"sale": 1}, "'sale' is boolean: .* takes true or false"),
        ({"on": "yesterday"}, "'on' is date: .* got 'yesterday'"),
        ({"on": {"$exists": "yes"}}, r"\$exists takes true or false"),
        ({"$nor": []}, r"no operator '\$nor'"),
        ({"$and": []}, r"\$and takes a list of filters"),
        ([], "expected an object"),
    ],
)
def test_a_wrong_filter_is_named_and_the_fields_are_listed(filter: Any, problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        parse_filter(filter, SCHEMA)


def test_a_filter_is_bounded() -> None:
    deep: dict[str, Any] = {"lang": "de"}
    for _ in range(40):
        deep = {"$not": deep}
    with pytest.raises(UsageError, match="nested more than 32 deep"):
        parse_filter(deep, SCHEMA)
    with pytest.raises(UsageError, match="more than 1000 conditions"):
        parse_filter({"$or": [{"lang": "de"}] * 1001}, SCHEMA)


def test_an_index_without_metadata_says_how_to_get_some() -> None:
    with pytest.raises(UsageError, match="keeps no metadata; kalm-cache reindex CORPUS --metadata all"):
        parse_filter({"lang": "de"}, {})


def test_other_values_of_some_passages_are_what_writing_all_of_them_makes(tmp_path: Path) -> None:
    before, changes = written(tmp_path / "a"), {3: {"lang": "fr", "tags": ["x", "y", "z"]}, 9: {"weight": 1}}
    schema: Schema = {**SCHEMA, "weight": "number"}
    rewrite_columns(tmp_path / "b", before, schema, changes)
    write_columns(tmp_path / "c", schema, [(ordinal, changes.get(ordinal, values)) for ordinal, values in ROWS])
    changed = {path.relative_to(tmp_path / "b"): path.read_bytes() for path in (tmp_path / "b").rglob("*.*")}
    whole = {path.relative_to(tmp_path / "c"): path.read_bytes() for path in (tmp_path / "c").rglob("*.*")}
    assert changed == whole


@pytest.mark.parametrize("file", ["columns.json", "ordinals.npy", "0/codes.npy", "2/ends.npy", "4/instants.npy"])
def test_damaged_columns_are_an_error(tmp_path: Path, file: str) -> None:
    written(tmp_path)
    path = tmp_path / "columns" / file
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(StoreError, match="cannot be read"):
        Columns.open(tmp_path)
