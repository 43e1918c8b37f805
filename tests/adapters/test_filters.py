from __future__ import annotations

import pytest
from langchain_core.structured_query import Comparator, Comparison, Operation, Operator, StructuredQuery
from llama_index.core.vector_stores.types import FilterCondition, FilterOperator, MetadataFilter, MetadataFilters

from kalm_cache.adapters.filters import from_haystack, from_langchain, from_llama_index
from kalm_cache.errors import UsageError
from kalm_cache.metadata import Schema, parse_filter

SCHEMA: Schema = {"lang": "text", "year": "number", "tags": "text[]", "on": "date"}


def test_filters_of_llama_index_become_the_grammars() -> None:
    filters = MetadataFilters(
        filters=[
            MetadataFilter(key="lang", value="de"),
            MetadataFilters(
                filters=[
                    MetadataFilter(key="year", value=2020, operator=FilterOperator.GTE),
                    MetadataFilter(key="tags", value=["new", "sale"], operator=FilterOperator.ANY),
                    MetadataFilter(key="on", value=None, operator=FilterOperator.IS_EMPTY),
                ],
                condition=FilterCondition.OR,
            ),
            MetadataFilter(key="tags", value=["a", "b"], operator=FilterOperator.ALL),
            MetadataFilter(key="tags", value="c", operator=FilterOperator.CONTAINS),
        ]
    )
    translated = from_llama_index(filters)
    assert translated == {
        "$and": [
            {"lang": {"$eq": "de"}},
            {"$or": [{"year": {"$gte": 2020}}, {"tags": {"$in": ["new", "sale"]}}, {"on": {"$exists": False}}]},
            {"$and": [{"tags": {"$eq": "a"}}, {"tags": {"$eq": "b"}}]},
            {"tags": {"$eq": "c"}},
        ]
    }
    assert parse_filter(translated, SCHEMA)
    not_one = MetadataFilters(filters=[MetadataFilter(key="lang", value="de")], condition=FilterCondition.NOT)
    assert from_llama_index(not_one) == {"$not": {"$and": [{"lang": {"$eq": "de"}}]}}


def test_filters_of_langchain_become_the_grammars() -> None:
    recent = Comparison(comparator=Comparator.GT, attribute="on", value={"date": "2024-05-31", "type": "date"})
    german = Comparison(comparator=Comparator.EQ, attribute="lang", value="de")
    tagged = Comparison(comparator=Comparator.IN, attribute="tags", value=["new"])
    operation = Operation(
        operator=Operator.OR, arguments=[recent, Operation(operator=Operator.NOT, arguments=[german]), tagged]
    )
    translated = from_langchain(StructuredQuery(query="tents", filter=operation, limit=None))
    assert translated == {
        "$or": [
            {"on": {"$gt": "2024-05-31"}},
            {"$not": {"$and": [{"lang": {"$eq": "de"}}]}},
            {"tags": {"$in": ["new"]}},
        ]
    }
    assert parse_filter(translated, SCHEMA)
    assert from_langchain(StructuredQuery(query="tents", filter=None, limit=None)) == {}


def test_filters_of_haystack_become_the_grammars() -> None:
    filters = {
        "operator": "AND",
        "conditions": [
            {"field": "meta.lang", "operator": "not in", "value": ["de"]},
            {"operator": "NOT", "conditions": [{"field": "year", "operator": "<", "value": 2020}]},
        ],
    }
    translated = from_haystack(filters)
    assert translated == {"$and": [{"lang": {"$nin": ["de"]}}, {"$not": {"$and": [{"year": {"$lt": 2020}}]}}]}
    assert parse_filter(translated, SCHEMA)


def test_what_has_no_counterpart_is_an_error_that_names_it() -> None:
    with pytest.raises(UsageError, match="'text_match', which has no counterpart; known: =="):
        from_llama_index(MetadataFilter(key="lang", value="d", operator=FilterOperator.TEXT_MATCH))
    with pytest.raises(UsageError, match="'like', which has no counterpart"):
        from_langchain(Comparison(comparator=Comparator.LIKE, attribute="lang", value="d"))
