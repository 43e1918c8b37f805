"""A file of judged pairs → judged queries: lines of {"query": …, "doc_id": …, "label": 1 or 0}."""

from __future__ import annotations

import json
from pathlib import Path

from kalm_cache.errors import CorpusError
from kalm_cache.evaluation.collections.beir import BeirTask
from kalm_cache.passage import as_doc_id, as_text
from kalm_cache.text.lines import for_each_line


def read_pairs(path: Path) -> BeirTask:
    """Queries by their text, and the label of each of their passages; of several labels for one pair the last counts.

    Raises:
        CorpusError: the file cannot be read, a line is bad (named as `file:line`), or there is none.
    """
    qrels: dict[str, dict[str, int]] = {}

    def read(line: str, number: int) -> None:
        query, doc_id, label = _pair(line)
        qrels.setdefault(query, {})[doc_id] = label

    for_each_line(path, read)
    if not qrels:
        raise CorpusError(f'{path} holds no pair; expected lines of {{"query": "…", "doc_id": "…", "label": 1}}')
    return BeirTask(path.stem, "pairs", {query: query for query in qrels}, qrels)


def _pair(line: str) -> tuple[str, str, int]:
    fields = json.loads(line)
    if not isinstance(fields, dict):
        raise ValueError(f"a JSON {type(fields).__name__}; write one object on each line")
    label = fields.get("label")
    if label not in (0, 1):
        raise ValueError(f"'label' is {label!r}, expected 1 (relevant) or 0")
    return as_text(fields.get("query"), "'query'"), as_doc_id(fields.get("doc_id"), "'doc_id'"), int(label)
