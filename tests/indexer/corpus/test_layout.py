"""CSV and TSV files as people have them: what is guessed of their layout, said, and can be told."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from indexer.corpus import RejectedLine, TableFormat, read_corpus
from kalm_cache.errors import CorpusError, UsageError
from kalm_cache.passage import Passage
from tests.indexer.corpora import passages, write

TWO = [Passage("1", "The sun shines, and it is warm."), Passage("2", 'He said "no"')]


def told(path: Path, **known: object) -> list[Passage | str]:
    lines = read_corpus(path, tables=TableFormat(**known))  # type: ignore[arg-type]
    return [line.reason if isinstance(line, RejectedLine) else line.passage for line in lines]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("c.csv", 'id,text\n1,"The sun shines, and it is warm."\n2,"He said ""no"""\n'),
        ("c.csv", 'id;text\n1;The sun shines, and it is warm.\n2;"He said ""no"""\n'),
        ("c.csv", 'id\ttext\n1\tThe sun shines, and it is warm.\n2\t"He said ""no"""\n'),
        ("c.csv", 'id|text\r\n1|The sun shines, and it is warm.\r\n2|"He said ""no"""\r\n'),
        ("c.csv", '1,"The sun shines, and it is warm."\n2,"He said ""no"""\n'),
        ("c.csv", '1;The sun shines, and it is warm.\n2;"He said ""no"""\n'),
        ("c.csv", '"The sun shines, and it is warm.",1\n"He said ""no""",2\n'),
        ("c.csv", '\ufeffID,Text\r\n1,"The sun shines, and it is warm."\r\n2,"He said ""no"""\r\n'),
        ("c.tsv", '1\tThe sun shines, and it is warm.\n2\tHe said "no"\n'),
        ("c.tsv", '\ufeffDoc_ID\tContents\r\n1\tThe sun shines, and it is warm.\r\n2\tHe said "no"\r\n'),
        ("c.tsv", 'id\ttext\n1\tThe sun shines, and it is warm.\n2\t"He said ""no"""\n'),
        ("c.tsv", 'The sun shines, and it is warm.\t1\nHe said "no"\t2\n'),
    ],
)
def test_every_layout_gives_the_same_passages(tmp_path: Path, name: str, text: str) -> None:
    assert passages(write(tmp_path / name, text)) == TWO


@pytest.mark.parametrize("text", ['"No," she said.', '"Quoted"', 'a "b" c', '5" pipe', '"open', "don't"])
def test_quotes_in_a_tsv_file_are_text(tmp_path: Path, text: str) -> None:
    lines = f"1\t{text}\n2\tplain\n3\t{text}\n"
    assert passages(write(tmp_path / "c.tsv", lines)) == [
        Passage("1", text),
        Passage("2", "plain"),
        Passage("3", text),
    ]


def test_text_behind_a_closing_quote_is_rejected_and_no_quote_lost(tmp_path: Path) -> None:
    path = write(tmp_path / "c.csv", 'id,text\n1,"No", she said\n2,"No" she said\n3,fine\n')
    first, second, third = read_corpus(path)
    assert isinstance(first, RejectedLine)
    assert isinstance(second, RejectedLine)
    assert "double the quotes inside a quoted field" in second.reason
    assert third == next(iter([line for line in read_corpus(path) if not isinstance(line, RejectedLine)]))


def test_a_row_that_holds_a_columns_name_is_no_header(tmp_path: Path) -> None:
    assert passages(write(tmp_path / "c.tsv", "17\ttext\n18\tmore\n")) == [Passage("17", "text"), Passage("18", "more")]


@pytest.mark.parametrize("name", ["c.tsv", "c.csv"])
def test_a_header_of_unknown_names_is_refused_and_no_passage(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, "pid,passage\n1,The sun\n".replace(",", "\t" if name == "c.tsv" else ","))
    with pytest.raises(CorpusError, match=r"no id column among 'pid', 'passage'.*--columns, --no-header"):
        passages(path)
    assert told(path, columns=("id", "text")) == [Passage("1", "The sun")]
    assert told(path, columns=("id", "text"), header=False)[0] == Passage("pid", "passage")


def test_what_is_told_is_not_guessed(tmp_path: Path) -> None:
    path = write(tmp_path / "c.csv", "k|1|a, b|x\n")
    columns = ("-", "id", "text", "-")
    assert told(path, columns=columns, delimiter="pipe", header=False) == [Passage("1", "a, b")]
    quoted = write(tmp_path / "q.tsv", '1\t"a"\n2\t"b"\n')
    assert told(quoted) == [Passage("1", '"a"'), Passage("2", '"b"')]
    assert told(quoted, quotes=True) == [Passage("1", "a"), Passage("2", "b")]
    unquoted = write(tmp_path / "u.csv", 'id,text\n1,"open\n2,"b"\n')
    assert told(unquoted, quotes=False) == [Passage("1", '"open'), Passage("2", '"b"')]


def test_what_was_guessed_is_said_once_and_a_plain_csv_file_says_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    passages(write(tmp_path / "plain.csv", "id,text\n1,one\n"))
    passages(write(tmp_path / "c.csv", "1;one, two\n2;three\n"))
    list(read_corpus(tmp_path / "c.csv", say=False))
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path}/c.csv: read as id, text with no header, semicolon between columns and quoted fields"
    ]


def test_the_layout_of_files_that_are_no_tables_cannot_be_told(tmp_path: Path) -> None:
    path = write(tmp_path / "c.jsonl", '{"id": 1, "text": "a"}\n')
    with pytest.raises(UsageError, match="holds no CSV or TSV file"):
        read_corpus(path, tables=TableFormat(header=True))
    with pytest.raises(UsageError, match="expected tab, comma, semicolon, pipe"):
        TableFormat(delimiter=",")
