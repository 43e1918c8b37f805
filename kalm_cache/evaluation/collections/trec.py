"""Runs: what a system ranked for each query, in memory and as TREC run files. Knows nothing of indexes or judgments.

A TREC run has six columns a line, with blanks between them: query id, Q0, passage id, rank, score, tag. Files written
here have tabs, so that ids with blanks survive; their scores are float32 and fall strictly, so that every tool breaks
ties as they were broken here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from kalm_cache.errors import CorpusError
from kalm_cache.storage.durable import write_atomically
from kalm_cache.text.lines import for_each_line


class Scored(NamedTuple):
    """One ranked passage and the score that it was ranked by; higher is better."""

    doc_id: str
    score: float


ScoredRun = Mapping[str, Sequence[Scored]]  # query id -> passages, best first


def ids_of(run: ScoredRun) -> dict[str, list[str]]:
    """The ranked ids of each query, as `metrics` takes them."""
    return {query_id: [hit.doc_id for hit in ranked] for query_id, ranked in run.items()}


def write_run(path: Path, run: ScoredRun, tag: str) -> None:
    """Write a run as a TREC run file, replacing it in one step; `tag` must hold no blanks."""
    lines = []
    for query_id, ranked in run.items():
        before = np.float32(np.inf)
        for rank, hit in enumerate(ranked, start=1):
            before = min(np.float32(hit.score), np.nextafter(before, np.float32(-np.inf)))
            lines.append(f"{query_id}\tQ0\t{hit.doc_id}\t{rank}\t{before}\t{tag}\n")
    write_atomically(path, "".join(lines).encode())


def read_run(path: Path, queries: Collection[str], is_passage: Callable[[str], bool]) -> dict[str, list[Scored]]:
    """Read a TREC run file, plain or gzipped.

    Args:
        path: the file.
        queries: ids of the queries that count; lines of others are left out.
        is_passage: whether a passage id is known.

    Returns:
        For each query of the file by falling score, equal scores in the file's order; the ranks' column is ignored, as
        trec_eval ignores it.

    Raises:
        CorpusError: the file is missing, a line is bad or names an unknown passage (says `file:line`), or none of the
            lines belongs to one of the queries.
    """
    if not path.is_file():
        raise CorpusError(f"{path}: no such run file")
    found: dict[str, dict[str, float]] = {}
    others: set[str] = set()

    def read(line: str, number: int) -> None:
        query_id, doc_id, score = _columns(line)
        if query_id not in queries:
            others.add(query_id)
            return
        if doc_id in found.setdefault(query_id, {}):
            raise ValueError(f"passage {doc_id!r} for the second time under query {query_id!r}; keep one of them")
        if not is_passage(doc_id):
            raise ValueError(
                f"passage {doc_id!r} is not in the index; index the corpus of that run, or take the line out"
            )
        found[query_id][doc_id] = score

    for_each_line(path, read)
    if not found:
        example = f", as {min(others)!r}" if others else ""
        raise CorpusError(f"{path}: holds no line of the {len(queries)} queries, only of others{example}")
    return {query_id: _by_falling_score(scores) for query_id, scores in found.items()}


def _by_falling_score(scores: Mapping[str, float]) -> list[Scored]:
    return [Scored(doc_id, score) for doc_id, score in sorted(scores.items(), key=lambda item: -item[1])]


def _columns(line: str) -> tuple[str, str, float]:
    columns = line.split("\t") if line.count("\t") == 5 else line.split()
    if len(columns) != 6:
        raise ValueError(f"{len(columns)} columns, expected 6: query id, Q0, passage id, rank, score, tag")
    try:
        score = float(columns[4])
    except ValueError:
        score = math.nan
    if not math.isfinite(score):
        raise ValueError(f"the score is {columns[4]!r}, expected a finite number")
    return columns[0], columns[2], score
