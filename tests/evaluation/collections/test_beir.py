from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from kalm_cache.errors import CorpusError
from kalm_cache.evaluation import BeirTask, load_beir

QUERIES = '{"_id": "q1", "text": "one"}\n{"_id": "q2", "text": "zwei ü"}\n{"_id": 3, "text": "three"}\n'
HEADER = "query-id\tcorpus-id\tscore\n"
QRELS = "q2\td1\t1\nq2\td2\t0\n3\td1\t2\n"
EXPECTED = BeirTask("toy", "test", {"q2": "zwei ü", "3": "three"}, {"q2": {"d1": 1, "d2": 0}, "3": {"d1": 2}})


def make_folder(parent: Path, queries: str = QUERIES, qrels: str = HEADER + QRELS, split: str = "test") -> Path:
    folder = parent / "toy"
    (folder / "qrels").mkdir(parents=True)
    (folder / "queries.jsonl").write_text(queries, encoding="utf-8")
    (folder / "qrels" / f"{split}.tsv").write_text(qrels, encoding="utf-8")
    return folder


def compress(path: Path) -> None:
    path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()


def test_a_task_holds_the_queries_with_judgments_and_those_judgments(tmp_path: Path) -> None:
    assert load_beir(make_folder(tmp_path), "test") == EXPECTED


def test_a_header_may_be_left_out(tmp_path: Path) -> None:
    assert load_beir(make_folder(tmp_path, qrels=QRELS)) == EXPECTED


def test_files_may_be_gzipped(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    compress(folder / "queries.jsonl")
    compress(folder / "qrels" / "test.tsv")
    assert load_beir(folder) == EXPECTED


def test_windows_line_ends_a_byte_order_mark_and_blank_lines_change_nothing(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    for path in (folder / "queries.jsonl", folder / "qrels" / "test.tsv"):
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n\r\n"))
    assert load_beir(folder) == EXPECTED


def test_of_several_grades_for_a_pair_the_last_one_counts(tmp_path: Path) -> None:
    assert load_beir(make_folder(tmp_path, qrels="q1\td1\t1\nq1\td1\t3\n")).qrels == {"q1": {"d1": 3}}


def test_a_dot_as_the_folder_gets_the_name_of_that_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(make_folder(tmp_path))
    assert load_beir(".").name == "toy"


def test_an_unknown_split_is_refused_with_those_that_are_there(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, split="dev")
    (folder / "qrels" / "train.tsv").write_text(QRELS)
    with pytest.raises(CorpusError, match=r"no qrels/test\.tsv; there are dev, train"):
        load_beir(folder, "test")


@pytest.mark.parametrize("missing", ["queries.jsonl", "qrels/test.tsv"])
def test_a_folder_of_another_layout_is_refused(missing: str, tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    (folder / missing).unlink()
    with pytest.raises(CorpusError, match=rf"holds no {missing}; give a folder laid out as BEIR does"):
        load_beir(folder)


def test_judgments_without_a_line_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"test\.tsv holds no judgment"):
        load_beir(make_folder(tmp_path, qrels=HEADER))


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("q1\td1", "2 columns, expected 3"),
        ("q1 0 d1 1", "1 columns, expected 3"),
        ("q1\td1\tgood", "the grade is 'good', expected a whole number"),
        ("q1\td1\t0.5", "the grade is '0.5', expected a whole number"),
        ("q9\td1\t1", "query id 'q9' is not among the queries"),
    ],
)
def test_a_bad_judgment_is_refused_with_its_file_and_line(line: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=rf"test\.tsv:5: {reason}"):
        load_beir(make_folder(tmp_path, qrels=f"{HEADER}{QRELS}{line}\n"))


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"_id": "q4", "text": ', "Expecting value"),
        ('["q4", "text"]', "a JSON list"),
        ('{"id": "q4", "text": "t"}', "'_id' is null; make it a string or an integer"),
        ('{"_id": true, "text": "t"}', "'_id' is a boolean; make it a string or an integer"),
        ('{"_id": "q4", "text": null}', "'text' is null; make it a string"),
        ('{"_id": "q1", "text": "again"}', "query id 'q1' for the second time"),
        ('{"_id": "q4", "text": "\\ud800"}', "'text' holds half a surrogate pair"),
        ("[" * 100_000, "."),
    ],
)
def test_a_bad_query_is_refused_with_its_file_and_line(line: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=rf"queries\.jsonl:4: {reason}"):
        load_beir(make_folder(tmp_path, queries=f"{QUERIES}{line}\n"))


def test_a_truncated_gzip_file_is_refused_with_the_line_reached(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    path = folder / "queries.jsonl"
    path.with_name("queries.jsonl.gz").write_bytes(gzip.compress(path.read_bytes())[:-12])
    path.unlink()
    with pytest.raises(CorpusError, match=r"cannot read .*queries\.jsonl\.gz beyond line \d"):
        load_beir(folder)


def test_bytes_that_are_not_utf8_are_refused(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    (folder / "queries.jsonl").write_bytes(b'{"_id": "q1", "text": "\xff"}\n')
    with pytest.raises(CorpusError, match=r"queries\.jsonl:1: not UTF-8: byte 0xff at offset 23 of line 1"):
        load_beir(folder)
