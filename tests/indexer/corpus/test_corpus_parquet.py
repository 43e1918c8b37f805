"""Corpora in Parquet: locations, ids, rows and files that cannot be read."""

from __future__ import annotations

import itertools
import os
import sys
from pathlib import Path

import pytest

from indexer.corpus import CorpusLine, RejectedLine, read_corpus
from kalm_cache.errors import CorpusError, MissingExtraError
from kalm_cache.passage import Passage
from tests.indexer.corpora import passages, write


def rejects(source: Path) -> list[RejectedLine]:
    return [line for line in read_corpus(source) if isinstance(line, RejectedLine)]


def write_parquet(path: Path, columns: dict[str, object], **options: object) -> Path:
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, **options)
    return path


def test_parquet_is_read_with_row_numbers_as_locations(tmp_path: Path) -> None:
    columns = {"_id": ["d1", "2"], "title": ["Sun", None], "text": ["It shines.", "café"], "vector": [[1.0], [2.0]]}
    path = write_parquet(tmp_path / "c.parquet", columns)
    lines = list(read_corpus(path))
    assert lines == [
        CorpusLine(Passage("d1", "Sun It shines."), f"{path}:1"),
        CorpusLine(Passage("2", "café"), f"{path}:2"),
    ]
    assert [line.unused for line in lines if isinstance(line, CorpusLine)] == [("vector",), ("vector",)]


def test_parquet_integers_are_ids_across_batches_and_row_groups(tmp_path: Path) -> None:
    columns = {"id": list(range(1000)), "contents": [f"text {n}" for n in range(1000)]}
    path = write_parquet(tmp_path / "c.parquet", columns, row_group_size=300)
    lines = list(read_corpus(path))
    assert len(lines) == 1000
    assert lines[0] == CorpusLine(Passage("0", "text 0"), f"{path}:1")
    assert lines[999] == CorpusLine(Passage("999", "text 999"), f"{path}:1000")


def test_parquet_rows_without_a_string_are_rejected(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "c.parquet", {"id": ["a", None, "c"], "text": ["one", "two", None]})
    assert list(read_corpus(path)) == [
        CorpusLine(Passage("a", "one"), f"{path}:1"),
        RejectedLine(f"{path}:2", "'id' is null; make it a string or an integer", None, '{"id": null, "text": "two"}'),
        RejectedLine(f"{path}:3", "'text' is null; make it a string", "c", '{"id": "c", "text": null}'),
    ]


def test_parquet_floats_and_bytes_are_no_ids(tmp_path: Path) -> None:
    assert [line.reason for line in rejects(write_parquet(tmp_path / "f.parquet", {"id": [1.0], "text": ["x"]}))] == [
        "'id' is a float; make it a string or an integer"
    ]
    assert [line.reason for line in rejects(write_parquet(tmp_path / "b.parquet", {"id": [b"a"], "text": ["x"]}))] == [
        "'id' is a bytes; make it a string or an integer"
    ]


def test_a_large_parquet_row_group_is_not_loaded_whole(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    columns = {"id": list(range(30_000)), "text": [f"{n:07d} " + "word " * 200 for n in range(30_000)]}  # 30 MB
    path = write_parquet(tmp_path / "c.parquet", columns, use_dictionary=False, compression="none")
    del columns
    before = pa.total_allocated_bytes()
    lines = read_corpus(path)
    growth = max(pa.total_allocated_bytes() - before for _ in itertools.islice(lines, 10_000))
    assert growth < 8 * 2**20


def test_a_parquet_string_that_is_not_utf8_rejects_its_row_only(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    texts = pa.array([b"one", b"ab\xff", b"three"]).view(pa.string())
    path = write_parquet(tmp_path / "c.parquet", {"id": ["a", "b", "c"], "text": texts})
    assert passages(path) == [Passage("a", "one"), Passage("c", "three")]
    [line] = rejects(path)
    assert line.location == f"{path}:2"
    assert line.reason == "'text' is not UTF-8: invalid start byte at offset 2"


def test_parquet_without_a_text_column_is_an_error_that_names_the_columns(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "c.parquet", {"id": ["a"], "body": ["x"]})
    with pytest.raises(
        CorpusError, match=r"c\.parquet: no text column among 'id', 'body'; name one 'text' or 'contents'"
    ):
        list(read_corpus(path))


def test_corrupt_parquet_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    with pytest.raises(CorpusError, match=r"c\.parquet beyond row 0"):
        list(read_corpus(write(tmp_path / "c.parquet", b"version https://git-lfs.github.com/spec/v1\n")))


def test_parquet_with_damaged_pages_is_an_error(tmp_path: Path) -> None:
    columns = {"id": list(range(5000)), "text": [os.urandom(40).hex() for _ in range(5000)]}
    path = write_parquet(tmp_path / "c.parquet", columns, compression="gzip", use_dictionary=False)
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 2000] = b"\xff" * 2000
    with pytest.raises(CorpusError, match=r"c\.parquet beyond row"):
        list(read_corpus(write(path, bytes(data))))


def test_parquet_without_pyarrow_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "c.parquet", b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)  # what an import of an absent package meets
    monkeypatch.delitem(sys.modules, "pyarrow.parquet", raising=False)
    with pytest.raises(MissingExtraError, match=r"pip install 'kalm-cache\[parquet\]'"):
        read_corpus(path)
