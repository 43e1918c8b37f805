"""Corpus readers on real files: every text format in every compression."""

from __future__ import annotations

import gzip
import json
import os
import struct
from pathlib import Path

import pytest
import zstandard

from indexer.corpus import CorpusLine, read_corpus
from kalm_cache.passage import Passage
from tests.indexer.corpora import COMPRESS, TWO, TWO_PASSAGES, passages, write


@pytest.mark.parametrize("compression", COMPRESS)
@pytest.mark.parametrize("suffix", TWO)
def test_json_lines_are_read_in_every_compression(tmp_path: Path, suffix: str, compression: str) -> None:
    path = write(tmp_path / f"corpus{suffix}{compression}", COMPRESS[compression](TWO[suffix]))
    assert list(read_corpus(path)) == [
        CorpusLine(Passage("d1", "Sun It shines."), f"{path}:1"),
        CorpusLine(Passage("2", "café"), f"{path}:2"),
    ]


@pytest.mark.parametrize("compression", COMPRESS)
def test_tsv_with_a_header_is_read_in_every_compression(tmp_path: Path, compression: str) -> None:
    data = "text\tid\ttitle\nIt shines.\td1\tSun\ncafé\t2\t\n".encode()
    path = write(tmp_path / f"corpus.tsv{compression}", COMPRESS[compression](data))
    assert list(read_corpus(path)) == [
        CorpusLine(Passage("d1", "Sun It shines."), f"{path}:2"),
        CorpusLine(Passage("2", "café"), f"{path}:3"),
    ]


@pytest.mark.parametrize("compression", COMPRESS)
def test_csv_is_read_in_every_compression(tmp_path: Path, compression: str) -> None:
    data = 'id,title,text\r\nd1,Sun,It shines.\r\n2,,"café"\r\n'.encode()
    path = write(tmp_path / f"corpus.csv{compression}", COMPRESS[compression](data))
    assert list(read_corpus(path)) == [
        CorpusLine(Passage("d1", "Sun It shines."), f"{path}:2"),
        CorpusLine(Passage("2", "café"), f"{path}:3"),
    ]


def test_tsv_without_a_header_and_two_columns_is_id_and_text(tmp_path: Path) -> None:
    path = write(tmp_path / "collection.tsv", '0\tThe "Manhattan" project\n1\t"unbalanced quote\n')
    assert list(read_corpus(path)) == [
        CorpusLine(Passage("0", 'The "Manhattan" project'), f"{path}:1"),
        CorpusLine(Passage("1", '"unbalanced quote'), f"{path}:2"),
    ]


def test_tsv_without_a_header_and_three_columns_is_id_title_text(tmp_path: Path) -> None:
    assert passages(write(tmp_path / "c.tsv", "d1\tSun\tIt shines.\n2\t\tcafé")) == TWO_PASSAGES


def test_a_csv_field_spans_lines_and_the_location_is_the_first_of_them(tmp_path: Path) -> None:
    path = write(tmp_path / "c.csv", 'id,text\na,"one\ntwo ""2""\n\nfour, 4"\nb,five\n')
    assert list(read_corpus(path)) == [
        CorpusLine(Passage("a", 'one\ntwo "2"\n\nfour, 4'), f"{path}:2"),
        CorpusLine(Passage("b", "five"), f"{path}:6"),
    ]


def test_a_csv_field_may_be_longer_than_the_csv_modules_default_limit(tmp_path: Path) -> None:
    assert passages(write(tmp_path / "c.csv", "id,text\na," + "x" * 200_000)) == [Passage("a", "x" * 200_000)]


def test_empty_csv_cells_beyond_the_last_column_are_ignored(tmp_path: Path) -> None:
    assert passages(write(tmp_path / "c.csv", "id,text\na,one,,\n")) == [Passage("a", "one")]


def test_a_byte_order_mark_and_blank_lines_are_skipped_but_counted(tmp_path: Path) -> None:
    bom = b"\xef\xbb\xbf"
    for name, data in (
        ("c.jsonl", b'\n  \r\n{"id": "a", "text": "one"}\n\n'),
        ("c.tsv", b"\n\na\tone\n\n"),
        ("c.csv", b"id,text\n\na,one\n \n"),
    ):
        path = write(tmp_path / name, bom + data)
        assert list(read_corpus(path)) == [CorpusLine(Passage("a", "one"), f"{path}:3")]


def test_a_csv_header_after_a_byte_order_mark_keeps_its_first_name(tmp_path: Path) -> None:
    assert passages(write(tmp_path / "c.csv", b"\xef\xbb\xbfid,text\na,one\n")) == [Passage("a", "one")]


def test_an_empty_file_has_no_lines(tmp_path: Path) -> None:
    for name in ("c.jsonl", "c.tsv", "c.csv"):
        assert list(read_corpus(write(tmp_path / name, b""))) == []


def test_an_empty_passage_is_accepted(tmp_path: Path) -> None:
    assert passages(write(tmp_path / "c.jsonl", '{"id": "a", "title": "", "text": ""}')) == [Passage("a", "")]


def test_the_first_name_wins_among_several_ids_and_texts(tmp_path: Path) -> None:
    data = '{"docid": "4", "doc_id": "3", "id": "2", "_id": "1", "contents": "no", "text": "yes"}'
    assert passages(write(tmp_path / "c.jsonl", data)) == [Passage("1", "yes")]


def test_ids_keep_their_spaces_zeros_and_nul(tmp_path: Path) -> None:
    path = write(tmp_path / "c.jsonl", '{"id": " 007 ", "text": ""}\n{"id": "a\\u0000b", "text": ""}')
    assert [passage.doc_id for passage in passages(path)] == [" 007 ", "a\0b"]


def test_an_id_of_511_bytes_is_accepted(tmp_path: Path) -> None:
    doc_id = "é" * 255 + "x"
    assert passages(write(tmp_path / "c.tsv", f"{doc_id}\tone\n")) == [Passage(doc_id, "one")]


def test_suffixes_are_read_in_any_case(tmp_path: Path) -> None:
    assert passages(write(tmp_path / "C.JSONL.GZ", gzip.compress(TWO[".jsonl"]))) == TWO_PASSAGES


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
def test_members_and_frames_written_one_after_the_other_are_all_read(tmp_path: Path, compression: str) -> None:
    first, second = TWO[".jsonl"].splitlines(keepends=True)
    if compression == "gzip":
        path = write(tmp_path / "c.jsonl.gz", gzip.compress(first) + gzip.compress(second))
    else:
        skippable = b"\x50\x2a\x4d\x18" + struct.pack("<I", 4) + b"junk"
        path = write(
            tmp_path / "c.jsonl.zst", skippable + zstandard.compress(first) + skippable + zstandard.compress(second)
        )
    assert passages(path) == TWO_PASSAGES


def test_lines_larger_than_a_compressed_piece_come_out_whole(tmp_path: Path) -> None:
    text = os.urandom(50_000).hex()
    data = json.dumps({"id": "a", "text": text}).encode()
    assert passages(write(tmp_path / "c.jsonl.zst", zstandard.compress(data))) == [Passage("a", text)]
