from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from kalm_cache.errors import CorpusError
from kalm_cache.evaluation.collections.trec import Scored, ids_of, read_run, write_run

RUN = {"q1": [Scored("d2", 3.5), Scored("d 1", 0.25), Scored("d3", 0.25)], "q2": [Scored("d1", -7.0)], "q3": []}


def write(path: Path, *lines: str) -> Path:
    path.write_text("".join(f"{line}\n" for line in lines), "utf-8")
    return path


def read(path: Path, queries: tuple[str, ...] = ("q1", "q2")) -> dict[str, list[Scored]]:
    return read_run(path, queries, lambda doc_id: doc_id.startswith("d"))


def test_a_run_reads_back_in_its_order_ids_with_blanks_included(tmp_path: Path) -> None:
    write_run(tmp_path / "run.trec", RUN, "tag")
    assert ids_of(read(tmp_path / "run.trec")) == {"q1": ["d2", "d 1", "d3"], "q2": ["d1"]}
    first = (tmp_path / "run.trec").read_text().splitlines()[0]
    assert first == "q1\tQ0\td2\t1\t3.5\ttag"


def test_equal_scores_are_written_as_falling_ones_so_that_every_tool_keeps_the_order(tmp_path: Path) -> None:
    write_run(tmp_path / "run.trec", RUN, "tag")
    scores = [one.score for one in read(tmp_path / "run.trec")["q1"]]
    assert scores[0] > scores[1] > scores[2]
    assert scores[2] == pytest.approx(0.25)


def test_scores_order_a_foreign_run_and_not_its_ranks_or_lines(tmp_path: Path) -> None:
    path = write(tmp_path / "run", "q1 Q0 d1 1 0.5 other", "q1 Q0 d2 2 2e1 other", "q1 0 d3 9 0.5 other")
    assert ids_of(read(path)) == {"q1": ["d2", "d1", "d3"]}


def test_queries_that_are_not_asked_are_left_out_and_gzip_is_read(tmp_path: Path) -> None:
    path = tmp_path / "run.trec.gz"
    path.write_bytes(gzip.compress(b"q1 Q0 d1 1 2 t\nq9 Q0 unknown 1 2 t\n"))
    assert ids_of(read(path)) == {"q1": ["d1"]}


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("q1 Q0 d2 2 1.0", "5 columns, expected 6: query id, Q0, passage id, rank, score, tag"),
        ("q1 Q0 d2 2 high t", "the score is 'high', expected a finite number"),
        ("q1 Q0 d2 2 nan t", "the score is 'nan', expected a finite number"),
        ("q1 Q0 d1 2 1.0 t", "passage 'd1' for the second time under query 'q1'"),
        ("q1 Q0 x1 2 1.0 t", "passage 'x1' is not in the index; index the corpus of that run"),
    ],
)
def test_a_bad_line_is_refused_with_its_file_and_line(line: str, reason: str, tmp_path: Path) -> None:
    path = write(tmp_path / "run.trec", "q1 Q0 d1 1 2.0 t", "", line)
    with pytest.raises(CorpusError, match=rf"run\.trec:3: {reason}"):
        read(path)


def test_a_run_of_other_queries_or_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="no line of the 2 queries, only of others, as 'q8'"):
        read(write(tmp_path / "run.trec", "q9 Q0 d1 1 2.0 t", "q8 Q0 d1 1 2.0 t"))
    with pytest.raises(CorpusError, match="no such run file"):
        read(tmp_path / "nowhere")
