"""A folder laid out as BEIR does → judged queries. Knows nothing of passages, indexes or measures.

FOLDER/queries.jsonl       {"_id": …, "text": …} on each line
FOLDER/qrels/<split>.tsv   query id, passage id, grade, or as qrels.py says
Either may be gzipped, with .gz behind its name.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from kalm_cache.errors import CorpusError
from kalm_cache.evaluation.collections.qrels import GUESSED, QrelsFormat, judged, read_qrels
from kalm_cache.passage import as_doc_id, as_text
from kalm_cache.text.lines import for_each_line


@dataclass(frozen=True, slots=True)
class BeirTask:
    """The judged queries of one split: texts by query id, and grades by query id and passage id."""

    name: str
    split: str
    queries: dict[str, str]
    qrels: dict[str, dict[str, int]]


def load_beir(folder: str | Path, split: str = "test", qrels_format: QrelsFormat = GUESSED) -> BeirTask:
    """Read the queries that have judgments in `split`, in the judgments' order, and those judgments.

    Of several grades for one pair the last one counts, as in BEIR's own loader.

    Args:
        folder: laid out as BEIR does.
        split: of the judgments.
        qrels_format: how their file is laid out, as far as it is not to be guessed from its data.

    Raises:
        CorpusError: a file is missing or unreadable, a line is bad (named as `file:line`), or there is no such split.
    """
    folder = Path(folder)
    return read_task(folder.resolve().name, split, _qrels_file(folder, split), queries_file(folder), qrels_format)


def read_task(
    name: str, split: str, qrels_path: Path, queries_path: Path, qrels_format: QrelsFormat = GUESSED
) -> BeirTask:
    """As `load_beir`, of two files wherever they lie."""
    texts = _read_queries(queries_path)
    qrels = judged(str(qrels_path), read_qrels(qrels_path, texts, qrels_format), texts)
    if not qrels:
        raise CorpusError(f"{qrels_path} holds no judgment; expected lines of query id, passage id, grade")
    return BeirTask(name, split, {query_id: texts[query_id] for query_id in qrels}, qrels)


def queries_file(folder: Path) -> Path:
    """The queries of a folder laid out as BEIR does. Raises `CorpusError` where there are none."""
    for path in (folder / "queries.jsonl", folder / "queries.jsonl.gz"):
        if path.is_file():
            return path
    raise CorpusError(f"{folder} holds no queries.jsonl; give a folder laid out as BEIR does")


def _qrels_file(folder: Path, split: str) -> Path:
    files = {path.name.split(".tsv")[0]: path for path in sorted((folder / "qrels").glob("*.tsv*"))}
    if split not in files:
        there = f"there are {', '.join(files)}" if files else "give a folder laid out as BEIR does"
        raise CorpusError(f"{folder} holds no qrels/{split}.tsv; {there}")
    return files[split]


def _read_queries(path: Path) -> dict[str, str]:
    texts: dict[str, str] = {}

    def read(line: str, number: int) -> None:
        query_id, text = _query(line)
        if query_id in texts:
            raise ValueError(f"query id {query_id!r} for the second time; give each query an id of its own")
        texts[query_id] = text

    for_each_line(path, read)
    return texts


def _query(line: str) -> tuple[str, str]:
    fields = json.loads(line)
    if not isinstance(fields, dict):
        raise ValueError(f"a JSON {type(fields).__name__}; write one object on each line")
    return as_doc_id(fields.get("_id"), "'_id'"), as_text(fields.get("text"), "'text'")
