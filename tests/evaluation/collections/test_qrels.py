"""Files of judgments in every layout that people have them in: what is guessed of them, said, and can be told."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from kalm_cache.errors import CorpusError, UsageError
from kalm_cache.evaluation.collections.qrels import QrelsFormat, judged, read_qrels

QUERIES = {"q1", "q2", "17"}
EXPECTED = {"q1": {"d1": 1, "d2": 0}, "17": {"99": 2}}


def read(tmp_path: Path, text: str | bytes, queries: set[str] = QUERIES, **told: object) -> dict[str, dict[str, int]]:
    path = tmp_path / "test.tsv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_qrels(path, queries, QrelsFormat(**told))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text",
    [
        "q1\td1\t1\nq1\td2\t0\n17\t99\t2\n",
        "query-id\tcorpus-id\tscore\nq1\td1\t1\nq1\td2\t0\n17\t99\t2\n",
        "topic\tdoc\tgain\nq1\td1\t1\nq1\td2\t0\n17\t99\t2\n",  # a header in words of its own
        "q1\t0\td1\t1\nq1\t0\td2\t0\n17\t0\t99\t2\n",
        "q1 Q0 d1 1\nq1 Q0 d2 0\n17 Q0 99 2\n",
        "q1  0  d1  1\nq1 0 d2 0\n17 0 99 2\n",
        "q1\t1\td1\nq1\t0\td2\n17\t2\t99\n",  # grade before passage
        "score\tquery_id\tdoc_id\n1\tq1\td1\n0\tq1\td2\n2\t17\t99\n",
        "qid,docno,label\nq1,d1,1\nq1,d2,0\n17,99,2\n",
        'qid,docno,label\n"q1","d1",1\nq1,d2,0\n17,99,2\n',
        "q1\td1\t1.0\nq1\td2\t0.0\n17\t99\t2.0\n",
        "q1\td1\t1\n\nq1\td2\t0\nq1\td1\t1\n17\t99\t2",
        b"\xef\xbb\xbfq1\td1\t1\r\nq1\td2\t0\r\n17\t99\t2\r\n",
        b"\xef\xbb\xbfquery-id\tcorpus-id\tscore\r\nq1\td1\t1\r\nq1\td2\t0\r\n17\t99\t2\r\n",
    ],
)
def test_every_layout_gives_the_same_judgments(tmp_path: Path, text: str | bytes) -> None:
    assert read(tmp_path, text) == EXPECTED


def test_a_query_whose_id_looks_like_a_header_is_a_judgment(tmp_path: Path) -> None:
    text = "query-id\td1\t1\nqid-2\td2\t1\n"
    assert read(tmp_path, text, {"query-id", "qid-2"}) == {"query-id": {"d1": 1}, "qid-2": {"d2": 1}}


def test_ids_that_are_numbers_are_told_from_grades_by_their_variety(tmp_path: Path) -> None:
    lines = [(str(query), str(100 + passage), str(passage % 2)) for query in (1, 2) for passage in range(9)]
    expected = {"1": {str(100 + n): n % 2 for n in range(9)}, "2": {str(100 + n): n % 2 for n in range(9)}}
    for order in ((0, 1, 2), (0, 2, 1), (1, 0, 2)):
        text = "".join("\t".join(line[i] for i in order) + "\n" for line in lines)
        assert read(tmp_path, text, {"1", "2"}) == expected


def test_ids_with_blanks_and_negative_grades_are_kept(tmp_path: Path) -> None:
    assert read(tmp_path, "q1\ta name\t-2\nq1\tb\t1\n") == {"q1": {"a name": -2, "b": 1}}


def test_what_was_guessed_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    read(tmp_path, "q1 0 d1 1\n17 0 99 2\n")
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path}/test.tsv: read as query, -, passage, grade with no header and blanks between columns"
    ]


def test_what_is_told_is_not_guessed(tmp_path: Path) -> None:
    text = "1\tq1\t2\n1\tq2\t3\n"
    assert read(tmp_path, text, columns=("grade", "query", "passage")) == {"q1": {"2": 1}, "q2": {"3": 1}}
    assert read(tmp_path, text, columns=("passage", "query", "grade")) == {"q1": {"1": 2}, "q2": {"1": 3}}
    headed = "q1\td1\t5\nq2\td2\t1\n"
    assert read(tmp_path, headed, header=True) == {"q2": {"d2": 1}}
    assert read(tmp_path, "q1,d1,1\n", delimiter="comma") == {"q1": {"d1": 1}}
    with pytest.raises(CorpusError, match=r"test\.tsv:1: the grade is 'score'"):
        read(tmp_path, "query-id\tcorpus-id\tscore\nq1\td1\t1\n", header=False)


def test_several_grades_of_a_pair_are_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert read(tmp_path, "q1\td1\t1\nq1\td1\t3\nq1\td2\t1\nq1\td2\t1\n") == {"q1": {"d1": 3, "d2": 1}}
    [warning] = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert "1 pairs have several grades, as query 'q1' and passage 'd1'; the last one counts" in warning


def test_queries_without_judgments_and_judgments_without_queries_are_reported(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    assert judged("name", {"q1": {"d": 1}, "gone": {"d": 1}}, QUERIES) == {"q1": {"d": 1}}
    assert [record.getMessage() for record in caplog.records] == [
        "name: judgments of 1 queries that it does not have, as 'gone'",
        "name: 2 of 3 queries have no judgment and are left out",
    ]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("q1\td1\tx\ty\n", "4 columns, and which are .* say so with --qrels-columns"),
        ("a\tb\tc\td\te\n", "5 columns, and which are"),
        ("q1\td1\tgood\n", r"test\.tsv:1: the grade is 'good'"),
        ("q1\td1\tnan\n", r"the grade is 'nan', expected a whole number"),
        ("q1\td1\tinf\n", r"the grade is 'inf', expected a whole number"),
        ("q1\td1\t1e400\n", r"the grade is '1e400', expected a whole number"),
    ],
)
def test_what_cannot_be_told_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(CorpusError, match=reason):
        read(tmp_path, text)


@pytest.mark.parametrize(
    ("told", "reason"),
    [
        ({"columns": ("query", "grade")}, "expected query, passage and grade"),
        ({"columns": ("query", "passage", "passage", "grade")}, "expected query, passage and grade"),
        ({"delimiter": "space"}, "expected tab, comma, blank"),
    ],
)
def test_a_format_that_cannot_be_is_refused(told: dict[str, object], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        QrelsFormat(**told)  # type: ignore[arg-type]
