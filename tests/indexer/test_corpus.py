"""Corpus readers on real files: every format and compression, every reason to reject a line, every fatal error."""

from __future__ import annotations

import gzip
import io
import itertools
import json
import os
import struct
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from indexer.corpus import CorpusLine, RejectedLine, read_corpus
from kalm_cache.errors import CorpusError, MissingExtraError
from kalm_cache.passage import Passage

COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".zst": zstandard.compress,
    ".zstd": zstandard.compress,
}
TWO = {
    ".jsonl": b'{"_id": "d1", "title": "Sun", "text": "It shines."}\n{"_id": 2, "text": "caf\xc3\xa9"}\n',
    ".ndjson": b'{"id": "d1", "title": "Sun", "text": "It shines."}\n{"id": 2, "contents": "caf\xc3\xa9"}',
    ".jsonlines": b'{"docid": "d1", "contents": "Sun It shines."}\r\n{"doc_id": "2", "text": "caf\xc3\xa9"}\r\n',
    ".json": b'{"doc_id": "d1", "title": null, "text": "Sun It shines."}\n{"docid": 2, "text": "caf\xc3\xa9"}\n',
}
TWO_PASSAGES = [Passage("d1", "Sun It shines."), Passage("2", "café")]


def write(path: Path, data: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def passages(source: Path) -> list[Passage]:
    return [line.passage for line in read_corpus(source) if isinstance(line, CorpusLine)]


def rejects(source: Path) -> list[RejectedLine]:
    return [line for line in read_corpus(source) if isinstance(line, RejectedLine)]


def only_reject(path: Path, data: bytes | str) -> RejectedLine:
    [line] = read_corpus(write(path, data))
    assert isinstance(line, RejectedLine)
    return line


# --- formats ---------------------------------------------------------------------------------------------------------


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


# --- Parquet ---------------------------------------------------------------------------------------------------------


def write_parquet(path: Path, columns: dict[str, object], **options: object) -> Path:
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, **options)
    return path


def test_parquet_is_read_with_row_numbers_as_locations(tmp_path: Path) -> None:
    columns = {"_id": ["d1", "2"], "title": ["Sun", None], "text": ["It shines.", "café"], "vector": [[1.0], [2.0]]}
    path = write_parquet(tmp_path / "c.parquet", columns)
    assert list(read_corpus(path)) == [
        CorpusLine(Passage("d1", "Sun It shines."), f"{path}:1"),
        CorpusLine(Passage("2", "café"), f"{path}:2"),
    ]


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


# --- folders ---------------------------------------------------------------------------------------------------------


def test_a_folder_is_read_in_sorted_order_without_other_and_hidden_files(tmp_path: Path) -> None:
    write(tmp_path / "b.tsv", "2\ttwo\n")
    write(tmp_path / "a" / "z.jsonl", '{"id": 1, "text": "one"}')
    write(tmp_path / "c.csv.gz", gzip.compress(b"id,text\n3,three\n"))
    for name in ("README.md", "._b.tsv", ".cache/x.jsonl", "_SUCCESS"):
        write(tmp_path / name, "no corpus")
    assert list(read_corpus(tmp_path)) == [
        CorpusLine(Passage("1", "one"), f"{tmp_path}/a/z.jsonl:1"),
        CorpusLine(Passage("2", "two"), f"{tmp_path}/b.tsv:1"),
        CorpusLine(Passage("3", "three"), f"{tmp_path}/c.csv.gz:2"),
    ]


@pytest.mark.parametrize("beside", ["queries.jsonl", "qrels/test.tsv"])
def test_of_a_beir_folder_only_the_corpus_is_read(tmp_path: Path, beside: str) -> None:
    write(tmp_path / "scifact" / "corpus.jsonl", TWO[".jsonl"])
    write(tmp_path / "scifact" / beside, "q\tno passage\n")
    assert passages(tmp_path / "scifact") == TWO_PASSAGES
    assert passages(tmp_path) == TWO_PASSAGES


def test_a_corpus_file_beside_other_shards_is_no_beir_folder(tmp_path: Path) -> None:
    write(tmp_path / "corpus.tsv", "1\tone\n")
    write(tmp_path / "more.tsv", "2\ttwo\n")
    assert passages(tmp_path) == [Passage("1", "one"), Passage("2", "two")]


def test_a_folder_link_that_leads_back_is_not_followed(tmp_path: Path) -> None:
    write(tmp_path / "data" / "c.tsv", "1\tone\n")
    (tmp_path / "data" / "loop").symlink_to(tmp_path)
    assert passages(tmp_path) == [Passage("1", "one")]


def test_a_folder_without_corpus_files_is_an_error(tmp_path: Path) -> None:
    write(tmp_path / "README.md", "hello")
    with pytest.raises(CorpusError, match=r"holds no corpus file; accepted suffixes are \.jsonl, .*\.parquet"):
        read_corpus(tmp_path)


# --- standard input --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compression", COMPRESS)
def test_standard_input_is_json_lines_in_any_compression_and_stays_open(compression: str) -> None:
    stdin = io.BytesIO(COMPRESS[compression](TWO[".jsonl"]))
    assert list(read_corpus("-", stdin=stdin)) == [
        CorpusLine(Passage("d1", "Sun It shines."), "<stdin>:1"),
        CorpusLine(Passage("2", "café"), "<stdin>:2"),
    ]
    assert not stdin.closed


def test_a_real_pipe_is_read_to_its_end() -> None:
    read_end, write_end = os.pipe()
    with os.fdopen(write_end, "wb") as writer:
        writer.write(zstandard.compress(TWO[".jsonl"]))
    with os.fdopen(read_end, "rb") as stdin:
        assert [line.passage for line in read_corpus("-", stdin=stdin) if isinstance(line, CorpusLine)] == TWO_PASSAGES


def test_empty_standard_input_has_no_lines() -> None:
    assert list(read_corpus("-", stdin=io.BytesIO(b""))) == []


# --- constant memory -------------------------------------------------------------------------------------------------


class EndlessStream(io.RawIOBase):
    """JSON lines without end."""

    def __init__(self) -> None:
        self._ids = itertools.count()
        self._rest = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
        while len(self._rest) < len(buffer):
            self._rest += b'{"id": %d, "text": "%s"}\n' % (next(self._ids), b"word " * 50)
        buffer[:], self._rest = self._rest[: len(buffer)], self._rest[len(buffer) :]
        return len(buffer)


def test_memory_does_not_grow_with_the_corpus() -> None:
    lines = read_corpus("-", stdin=EndlessStream())  # type: ignore[arg-type]
    tracemalloc.start()
    try:
        for _ in itertools.islice(lines, 1000):
            pass
        early = tracemalloc.get_traced_memory()[1]
        for line in itertools.islice(lines, 20_000):  # 5 MB of text
            last = line
        late = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert isinstance(last, CorpusLine)
    assert last.location == "<stdin>:21000"
    assert late - early < 100_000


def test_a_file_of_100_mb_in_few_compressed_bytes_is_not_held_whole(tmp_path: Path) -> None:
    line = b'{"id": "a", "text": "' + b"word " * 200 + b'"}\n'
    path = tmp_path / "c.jsonl.zst"
    with path.open("wb") as file, zstandard.ZstdCompressor().stream_writer(file) as writer:
        for _ in range(1000):
            writer.write(line * 100)
    lines = read_corpus(path)
    tracemalloc.start()
    try:
        taken = sum(1 for _ in itertools.islice(lines, 20_000))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert taken == 20_000
    assert peak < 70 * 2**20  # one 2 KiB piece, at worst


@pytest.mark.parametrize("line_end", [b"\n", b""])
def test_a_line_over_64_mib_is_rejected_and_the_next_one_read(tmp_path: Path, line_end: bytes) -> None:
    path = tmp_path / "c.jsonl"
    with path.open("wb") as file:
        file.write(b'{"id": "a", "text": "' + b"x" * (64 * 2**20) + b'"}' + line_end)
        file.write(b'{"id": "b", "text": "two"}\n' if line_end else b"")
    lines = list(read_corpus(path))
    reason = "the line is longer than 64 MiB; split the passage"
    assert lines[0] == RejectedLine(f"{path}:1", reason, None, '{"id": "a", "text": "' + "x" * 179)
    assert lines[1:] == ([CorpusLine(Passage("b", "two"), f"{path}:2")] if line_end else [])


# --- rejected lines --------------------------------------------------------------------------------------------------

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


# --- errors that end the reading -------------------------------------------------------------------------------------


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
