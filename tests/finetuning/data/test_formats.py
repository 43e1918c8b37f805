"""Files of every format → examples, and `file:line` for what cannot be used."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kalm_cache.errors import CorpusError
from kalm_cache.finetuning.data.example import Example, Item, Rejected, read_record, write_record
from kalm_cache.finetuning.data.flag_embedding import read_flag_embedding
from kalm_cache.finetuning.data.judgments import read_judgments
from kalm_cache.finetuning.data.tables import read_table


def test_a_record_of_flag_embedding_is_read_with_scores_and_prompt(tmp_path: Path) -> None:
    file = tmp_path / "train.jsonl"
    record = {"query": "q", "pos": ["a"], "neg": ["b", 7], "pos_scores": [2], "neg_scores": [1, 0.5], "prompt": "Find."}
    file.write_text("\n" + json.dumps(record) + "\n")
    [example] = read_flag_embedding(file)
    assert example == Example(
        f"{file}:2", "q", (Item("a"),), (Item("b"), Item("7", is_id=True)), (), (2.0,), (1.0, 0.5), "Find."
    )
    assert isinstance(example, Example)
    assert example.labels == (1, 0, 0)
    assert example.scores == (2.0, 1.0, 0.5)


def test_what_is_written_is_read_again() -> None:
    example = Example(
        "f:1", "q", (Item("a", True), Item("a text", False)), (Item("b", True),), (2, 1), (3.0, 2.0), (1.0,), "Find."
    )
    assert read_record(write_record(example), "f:1") == example


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("[1]", "write one object on each line"),
        ("{", "Expecting property name"),
        ('{"pos": ["a"]}', "'query' is null"),
        ('{"query": " ", "pos": ["a"]}', "'query' is empty"),
        ('{"query": "q", "pos": []}', "no relevant passage"),
        ('{"query": "q", "pos": "a"}', "'pos' is no list"),
        ('{"query": "q", "pos": [{"doc": 1}]}', "'text' is null"),
        ('{"query": "q", "pos": ["a"], "neg": ["b"], "pos_scores": [1]}', "one without the other"),
        ('{"query": "q", "pos": ["a"], "pos_scores": [1, 2]}', "2 numbers for 1 passages"),
        ('{"query": "q", "pos": ["a"], "pos_scores": ["1"]}', "no list of numbers"),
        ('{"query": "q", "pos": ["a"], "grades": [0]}', "one below 1"),
    ],
)
def test_a_bad_line_is_rejected_with_its_place_and_the_rest_goes_on(tmp_path: Path, line: str, reason: str) -> None:
    file = tmp_path / "train.jsonl"
    file.write_text(line + '\n{"query": "q", "pos": ["a"]}\n')
    rejected, example = read_flag_embedding(file)
    assert isinstance(rejected, Rejected)
    assert rejected.location == f"{file}:1"
    assert reason in rejected.reason
    assert isinstance(example, Example)


def test_pairs_of_one_query_make_one_example(tmp_path: Path) -> None:
    file = tmp_path / "pairs.csv"
    file.write_text('anchor,positive\nq,"a, b"\nq,c\nother,d\n')
    first, second = read_table(file)
    assert first == Example(f"{file}:2", "q", (Item("a, b"), Item("c")))
    assert second == Example(f"{file}:4", "other", (Item("d"),))


def test_a_third_column_named_label_makes_labelled_pairs(tmp_path: Path) -> None:
    file = tmp_path / "pairs.tsv"
    file.write_text("sentence1\tsentence2\tlabel\nq\ta\t1\nq\tb\t0\nq\tc\t0.5\nq\td\tgood\nalone\te\t0\n")
    bad, example, without = read_table(file)
    assert isinstance(bad, Rejected)
    assert (bad.location, "'good'" in bad.reason) == (f"{file}:5", True)
    assert example == Example(f"{file}:2", "q", (Item("a"), Item("c")), (Item("b"),))
    assert isinstance(without, Rejected)
    assert "no row of this query has a relevant passage" in without.reason


def test_a_third_column_of_another_name_makes_triplets(tmp_path: Path) -> None:
    file = tmp_path / "triplets.csv"
    file.write_text("query,answer,negative_1,negative_2\nq,a,b,c\nq,a,d,\nq,a\n")
    bad, example = read_table(file)
    assert isinstance(bad, Rejected)
    assert bad.location == f"{file}:4"
    assert example == Example(f"{file}:2", "q", (Item("a"),), (Item("b"), Item("c"), Item("d")))


def test_parquet_is_read_as_csv_is(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    file = tmp_path / "triplets.parquet"
    table = pyarrow.table({"anchor": ["q", "p"], "positive": ["a", "b"], "negative": ["c", None]})
    pyarrow.parquet.write_table(table, file)
    first, second = read_table(file)
    assert first == Example(f"{file}:1", "q", (Item("a"),), (Item("c"),))
    assert second == Example(f"{file}:2", "p", (Item("b"),))


@pytest.mark.parametrize(
    ("content", "message"),
    [("a\nb\n", "1 column"), ("q,a,1\n", "must name the columns"), ('a,b\n"q,c\n', "unexpected end of data")],
)
def test_a_table_of_another_shape_is_an_error_that_names_the_file(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "pairs.csv"
    file.write_text(content)
    with pytest.raises(CorpusError, match=message) as caught:
        list(read_table(file))
    assert str(file) in str(caught.value)


def test_judgments_of_a_beir_folder_are_examples_with_grades(tmp_path: Path) -> None:
    (tmp_path / "qrels").mkdir()
    (tmp_path / "queries.jsonl").write_text('{"_id": "q1", "text": "one"}\n{"_id": "q2", "text": "two"}\n')
    qrels = tmp_path / "qrels" / "dev.tsv"
    qrels.write_text("query-id\tcorpus-id\tscore\nq1\ta\t2\nq1\tb\t0\nq2\tc\t0\n")
    found = list(read_judgments(tmp_path, "dev"))
    assert found == list(read_judgments(qrels, "ignored"))
    example, rejected = found
    assert example == Example(f"{qrels}:2", "one", (Item("a", True),), (Item("b", True),), (2,))
    assert rejected == Rejected(f"{qrels}:4", "the query has no relevant passage to learn from", "query q2")
