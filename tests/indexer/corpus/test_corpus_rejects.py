"""Every reason to reject a line of a corpus."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from indexer.corpus import CorpusLine, RejectedLine, read_corpus
from kalm_cache.passage import Passage
from tests.indexer.corpora import passages, write


def only_reject(path: Path, data: bytes | str) -> RejectedLine:
    [line] = read_corpus(write(path, data))
    assert isinstance(line, RejectedLine)
    return line


NO_ID = "no id; give the passage one under '_id', 'id', 'doc_id' or 'docid'"
NOT_AN_ID = "make it a string or an integer"
REJECTED_JSON = [
    (
        '{"id": "a", "text": "x"',
        None,
        "bad JSON at column 24: Expecting ',' delimiter; write one whole object on one line",
    ),
    ("hello", None, "bad JSON at column 1: Expecting value; write one whole object on one line"),
    ('["a", "x"]', None, "a JSON list, not an object; write one object on each line"),
    ('"a"', None, "a JSON str, not an object; write one object on each line"),
    ('{"text": "x"}', None, NO_ID),
    ('{"id": null, "text": "x"}', None, f"'id' is null; {NOT_AN_ID}"),
    ('{"id": 1.0, "text": "x"}', None, f"'id' is a float; {NOT_AN_ID}"),
    ('{"id": true, "text": "x"}', None, f"'id' is a boolean; {NOT_AN_ID}"),
    ('{"id": ["a"], "text": "x"}', None, f"'id' is a list; {NOT_AN_ID}"),
    ('{"id": "", "text": "x"}', None, "the id in 'id' is empty; give every passage an id"),
    ('{"_id": " \\t\\u2003", "text": "x"}', None, "the id in '_id' is empty; give every passage an id"),
    ('{"id": "a"}', "a", "no text; give the passage one under 'text' or 'contents' (it may be empty)"),
    ('{"id": 7, "text": null}', "7", "'text' is null; make it a string"),
    ('{"id": "a", "text": ["x"]}', "a", "'text' is a list; make it a string"),
    ('{"id": "a", "text": "x", "title": 3}', "a", "'title' is an integer; make it a string or null"),
    (
        '{"id": "a", "text": "x\\ud800y"}',
        "a",
        "'text' holds half a surrogate pair, \\ud800, at character 1, which UTF-8 cannot store; "
        "write both halves or remove it",
    ),
]


@pytest.mark.parametrize(("line", "doc_id", "reason"), REJECTED_JSON)
def test_a_bad_json_line_is_rejected_with_its_reason(tmp_path: Path, line: str, doc_id: str, reason: str) -> None:
    path = write(tmp_path / "c.jsonl", f'{{"id": "ok", "text": ""}}\n{line}\n{{"id": "ok2", "text": ""}}\n')
    assert list(read_corpus(path)) == [
        CorpusLine(Passage("ok", ""), f"{path}:1"),
        RejectedLine(f"{path}:2", reason, doc_id, line),
        CorpusLine(Passage("ok2", ""), f"{path}:3"),
    ]


@pytest.mark.parametrize("line", ['{"id": "\\udfff", "text": ""}', '{"id": "a", "text": "", "title": "\\udfff"}'])
def test_half_a_surrogate_pair_is_rejected_in_ids_and_titles_too(tmp_path: Path, line: str) -> None:
    assert "half a surrogate pair, \\udfff, at character 0" in only_reject(tmp_path / "c.jsonl", line).reason


def test_a_whole_surrogate_pair_is_one_character(tmp_path: Path) -> None:
    assert passages(write(tmp_path / "c.jsonl", '{"id": "a", "text": "\\ud83d\\ude00"}')) == [Passage("a", "😀")]


def test_an_id_of_512_bytes_is_rejected(tmp_path: Path) -> None:
    line = only_reject(tmp_path / "c.jsonl", json.dumps({"id": "é" * 256, "text": "x"}))
    assert line.reason == "the id in 'id' takes 512 bytes, at most 511 can be stored; shorten it"


def test_bad_utf8_is_rejected_with_its_offset_and_shown_as_escapes(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    line = only_reject(path, b'{"id": "a", "text": "caf\xe9"}\n')
    assert line.reason == "not UTF-8: byte 0xe9 at offset 24 of line 1; convert the file to UTF-8"
    assert line == RejectedLine(f"{path}:1", line.reason, None, '{"id": "a", "text": "caf\\xe9"}')


@pytest.mark.parametrize("line", ["[" * 100_000, '{"id": ' + "1" * 5000 + ', "text": ""}'])
def test_json_that_python_refuses_to_parse_is_rejected(tmp_path: Path, line: str) -> None:
    rejected = only_reject(tmp_path / "c.jsonl", line)
    assert rejected.reason.startswith("JSON that cannot be read: ")
    assert rejected.raw == line[:200]


def test_the_raw_text_of_a_rejected_line_is_its_first_200_characters(tmp_path: Path) -> None:
    assert only_reject(tmp_path / "c.jsonl", "é" * 500).raw == "é" * 200


def test_rows_with_too_few_or_too_many_columns_are_rejected(tmp_path: Path) -> None:
    few = "1 of 2 columns; add the missing ones"
    many = "3 columns, expected 2; a separator inside a field splits it"
    for name, separator in (("c.tsv", "\t"), ("c.csv", ",")):
        path = write(tmp_path / name, "id|text\na\nb|two|three\nc|four\n".replace("|", separator))
        assert list(read_corpus(path)) == [
            RejectedLine(f"{path}:2", few, None, "a"),
            RejectedLine(f"{path}:3", many, None, f"b{separator}two{separator}three"),
            CorpusLine(Passage("c", "four"), f"{path}:4"),
        ]


def test_empty_ids_of_tables_are_rejected(tmp_path: Path) -> None:
    for name, separator in (("c.tsv", "\t"), ("c.csv", ",")):
        [line] = read_corpus(write(tmp_path / name, f"id{separator}text\n{separator}\n"))
        assert isinstance(line, RejectedLine)
        assert line.reason == "the id in 'id' is empty; give every passage an id"


def test_bad_utf8_in_a_csv_row_rejects_the_whole_row_and_names_the_line(tmp_path: Path) -> None:
    path = write(tmp_path / "c.csv", b'id,text\na,"one\ncaf\xe9\nthree"\nb,two\n')
    assert list(read_corpus(path)) == [
        RejectedLine(
            f"{path}:2", "not UTF-8: byte 0xe9 at offset 3 of line 3; convert the file to UTF-8", None, 'a,"one'
        ),
        CorpusLine(Passage("b", "two"), f"{path}:5"),
    ]


def test_bad_utf8_in_a_tsv_row_rejects_it_even_on_the_first_line(tmp_path: Path) -> None:
    path = write(tmp_path / "c.tsv", b"a\tcaf\xe9\nb\ttwo\n")
    assert list(read_corpus(path)) == [
        RejectedLine(
            f"{path}:1", "not UTF-8: byte 0xe9 at offset 5 of line 1; convert the file to UTF-8", None, "a\tcaf\\xe9"
        ),
        CorpusLine(Passage("b", "two"), f"{path}:2"),
    ]


def test_a_quote_that_is_never_closed_is_rejected_and_not_read_as_text(tmp_path: Path) -> None:
    path = write(tmp_path / "c.csv", 'id,text\na,one\nb,"two\nc,three\n')
    assert list(read_corpus(path)) == [
        CorpusLine(Passage("a", "one"), f"{path}:2"),
        RejectedLine(
            f"{path}:3", "a double quote is never closed, up to the file's end at line 4; close it", None, 'b,"two'
        ),
    ]


def test_a_quote_left_open_over_64_mib_is_rejected_and_reading_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "c.csv"
    with path.open("wb") as file:
        file.write(b'id,text\na,"one\n' + (b"x" * (2**20 - 1) + b"\n") * 64 + b"b,two\n")
    lines = list(read_corpus(path))
    reason = "the row is longer than 64 MiB; is a double quote left open in it?"
    assert lines == [RejectedLine(f"{path}:2", reason, None, 'a,"one'), CorpusLine(Passage("b", "two"), f"{path}:67")]


def test_a_carriage_return_outside_quotes_rejects_a_csv_row_and_not_a_tsv_row(tmp_path: Path) -> None:
    line = only_reject(tmp_path / "c.csv", "id,text\na,one\rtwo\n")
    assert line.reason.startswith("bad CSV: ")
    assert line.reason.endswith("; put a field with a line break in double quotes")
    assert passages(write(tmp_path / "c.tsv", "a\tone\rtwo\n")) == [Passage("a", "one\rtwo")]
