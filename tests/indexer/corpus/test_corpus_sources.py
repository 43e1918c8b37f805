"""Corpora in folders and on standard input, and readers whose memory stays the same."""

from __future__ import annotations

import gzip
import io
import itertools
import os
import tracemalloc
from pathlib import Path

import pytest
import zstandard

from indexer.corpus import CorpusLine, RejectedLine, read_corpus
from kalm_cache.errors import CorpusError
from kalm_cache.passage import Passage
from tests.indexer.corpora import COMPRESS, TWO, TWO_PASSAGES, passages, write


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
