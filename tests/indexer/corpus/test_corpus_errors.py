"""Corpora that cannot be read on: every fatal error names its file."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import pytest

from indexer.corpus import CorpusLine, RejectedLine, read_corpus
from kalm_cache.errors import CorpusError
from tests.indexer.corpora import COMPRESS, write


def test_a_missing_file_is_an_error_at_the_call(tmp_path: Path) -> None:
    with pytest.raises(
        CorpusError, match=r"none\.jsonl does not exist; give a file, a folder, or - for standard input"
    ):
        read_corpus(tmp_path / "none.jsonl")


@pytest.mark.parametrize("name", ["corpus.xml", "corpus", "corpus.gz", "c.parquet.gz", "c.jsonl.bz2"])
def test_an_unknown_suffix_names_the_file_and_the_accepted_ones(tmp_path: Path, name: str) -> None:
    with pytest.raises(CorpusError) as caught:
        read_corpus(write(tmp_path / name, "x"))
    assert str(caught.value) == (
        f"{tmp_path / name}: unknown suffix; accepted are .jsonl, .jsonlines, .ndjson, .json, .tsv, .csv, .parquet; "
        "all but .parquet also with .gz, .zst, .zstd, or - for JSON lines on standard input"
    )


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_a_file_without_read_permission_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "c.jsonl", "{}")
    path.chmod(0)
    with pytest.raises(CorpusError, match=r"cannot open .*c\.jsonl: Permission denied"):
        list(read_corpus(path))


def test_a_source_that_vanishes_before_it_is_read_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "c.jsonl", "{}")
    lines = read_corpus(path)
    path.unlink()
    with pytest.raises(CorpusError, match=r"cannot open .*c\.jsonl: No such file"):
        list(lines)


def random_lines(count: int) -> bytes:
    return b"".join(b'{"id": %d, "text": "%s"}\n' % (n, os.urandom(500).hex().encode()) for n in range(count))


@pytest.mark.parametrize("compression", [".gz", ".zst"])
@pytest.mark.parametrize("kept", [0.5, 0.999])
def test_a_truncated_file_yields_its_whole_lines_and_then_an_error(
    tmp_path: Path, compression: str, kept: float
) -> None:
    data = COMPRESS[compression](random_lines(1000))
    lines = read_corpus(write(tmp_path / f"c.jsonl{compression}", data[: int(len(data) * kept)]))
    taken: list[CorpusLine | RejectedLine] = []
    with pytest.raises(CorpusError) as caught:
        for line in lines:
            taken.append(line)
    assert all(isinstance(line, CorpusLine) for line in taken)
    assert 300 < len(taken) < 1000
    assert f"c.jsonl{compression} beyond line {len(taken)}: " in str(caught.value)


@pytest.mark.parametrize("compression", [".gz", ".zst"])
def test_a_file_cut_in_its_last_byte_is_an_error_and_its_lines_are_counted(tmp_path: Path, compression: str) -> None:
    path = write(tmp_path / f"c.jsonl{compression}", COMPRESS[compression](random_lines(3))[:-1])
    with pytest.raises(CorpusError, match=r"beyond line \d: "):
        list(read_corpus(path))


@pytest.mark.parametrize("compression", [".gz", ".zst"])
def test_a_suffix_that_promises_compression_of_plain_text_is_an_error(tmp_path: Path, compression: str) -> None:
    with pytest.raises(CorpusError, match=r"beyond line 0: "):
        list(read_corpus(write(tmp_path / f"c.jsonl{compression}", '{"id": "a", "text": "one"}')))


@pytest.mark.parametrize("compression", [".gz", ".zst"])
def test_a_compressed_file_of_no_bytes_is_an_error(tmp_path: Path, compression: str) -> None:
    with pytest.raises(CorpusError, match=r"is empty, not even (gzip|zstd)'s header is there"):
        list(read_corpus(write(tmp_path / f"c.jsonl{compression}", b"")))


def test_damaged_gzip_is_an_error(tmp_path: Path) -> None:
    data = bytearray(gzip.compress(random_lines(1000)))
    data[len(data) // 2 : len(data) // 2 + 50] = b"\0" * 50
    with pytest.raises(CorpusError, match=r"c\.jsonl\.gz beyond line \d+: "):
        list(read_corpus(write(tmp_path / "c.jsonl.gz", bytes(data))))


def test_a_csv_without_a_text_column_is_an_error_that_names_its_columns(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"c\.csv: no text column among 'id', 'body'; name one 'text' or 'contents'"):
        list(read_corpus(write(tmp_path / "c.csv", "id,body\na,one\n")))


def test_a_csv_header_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"c\.csv:1: cannot read the header: not UTF-8: byte 0xff at offset 0"):
        list(read_corpus(write(tmp_path / "c.csv", b"\xff\xfei\0d\0")))


def test_a_tsv_header_without_an_id_is_an_error_and_not_a_passage(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"c\.tsv: no id column among 'pid', 'text'"):
        list(read_corpus(write(tmp_path / "c.tsv", "pid\ttext\n1\tone\n")))


def test_a_tsv_of_four_columns_needs_a_header(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"c\.tsv:1: 4 columns and no header; give 2 \(id, text\)"):
        list(read_corpus(write(tmp_path / "c.tsv", "D1\thttp://x\ttitle\tbody\n")))
