from __future__ import annotations

import json
from pathlib import Path

import pytest

from kalm_cache.errors import CorpusError, UsageError
from kalm_cache.finetuning.data.example import Example, Item, Rejected
from kalm_cache.finetuning.data.read import read_examples
from kalm_cache.finetuning.data.split import split_examples
from kalm_cache.index.passage_index import PassageIndex


def write(path: Path, *records: dict) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_passages_are_ids_where_half_of_them_are_in_the_index(index: PassageIndex, tmp_path: Path) -> None:
    rejected: list[Rejected] = []
    file = write(
        tmp_path / "t.jsonl",
        {"query": "a", "pos": ["d1", "nowhere"], "neg": ["d2"], "grades": [1, 2]},
        {"query": "b", "pos": ["missing"]},
        {"query": "c", "pos": ["d3"], "neg": [{"text": "a text"}]},
    )
    first, second = read_examples(file, index.store, rejected.append)
    assert first == Example(f"{file}:1", "a", (Item("d1", True),), (Item("d2", True),), (1,))
    assert second.negatives == (Item("a text", False),)
    assert [(each.location, each.reason) for each in rejected] == [
        (f"{file}:1", "the index holds no passage 'nowhere'"),
        (f"{file}:2", "the index holds no passage 'missing'"),
        (f"{file}:2", "none of its relevant passages can be used"),
    ]


def test_passages_are_texts_where_few_are_in_the_index_or_the_user_says_so(index: PassageIndex, tmp_path: Path) -> None:
    file = write(tmp_path / "t.jsonl", {"query": "a", "pos": ["some text"], "neg": ["d2", "another"]})
    rejected: list[Rejected] = []
    [example] = read_examples(file, index.store, rejected.append)
    assert example.negatives == (Item("d2", False), Item("another", False))
    with pytest.raises(CorpusError, match="no query that can be used"):
        read_examples(file, index.store, rejected.append, items_are="ids")
    assert len(rejected) == 3  # the positive, a negative, and the query that is left without a positive


def examples(count: int, twice: int = 0) -> list[Example]:
    return [Example(f"f:{n}", f"Query {n % (count - twice)}", (Item("d1", True),)) for n in range(count)]


def test_the_three_parts_share_no_query_and_hold_all() -> None:
    given = examples(40, twice=10)
    given[35] = Example("f:35", "  query   5", (Item("d2", True),))  # the same query, written otherwise
    split = split_examples(given, 1, watch_share=0.2, report_share=0.3)
    parts = [split.train, split.watch, split.report]
    queries = [{" ".join(each.query.casefold().split()) for each in part} for part in parts]
    assert queries[0].isdisjoint(queries[1] | queries[2])
    assert queries[1].isdisjoint(queries[2])
    assert sorted(each.source for part in parts for each in part) == sorted(each.source for each in given)
    assert [len(part) for part in queries] == [15, 6, 9]
    assert split == split_examples(given, 1, watch_share=0.2, report_share=0.3)
    assert split != split_examples(given, 2, watch_share=0.2, report_share=0.3)


def test_queries_that_are_reported_on_by_request_are_not_trained_on() -> None:
    report = [Example("r:1", f"query {n}", (Item("d1", True),)) for n in range(5)]
    split = split_examples(examples(30), 0, watch_share=0.2, report_share=0.5, report=report)
    assert split.report == report
    assert len(split.train) + len(split.watch) == 25


def test_too_few_queries_are_refused() -> None:
    with pytest.raises(UsageError, match="10 queries are too few"):
        split_examples(examples(10), 0, watch_share=0.1, report_share=0.1)
