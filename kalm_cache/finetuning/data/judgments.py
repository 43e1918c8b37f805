"""A BEIR folder's queries and judgments → examples: grade 1 and up is relevant, 0 and below is not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from kalm_cache.evaluation.collections.beir import load_beir
from kalm_cache.finetuning.data.example import Example, Item, Rejected
from kalm_cache.text.lines import for_each_line


def is_judgments(path: Path) -> bool:
    """Whether it is a folder laid out as BEIR does, or a file of judgments in one."""
    return path.is_dir() or path.parent.name == "qrels"


def read_judgments(path: Path, split: str) -> Iterator[Example | Rejected]:
    """Each judged query as an example.

    Args:
        path: the folder, or one of its `qrels/*.tsv`, which then says the split.
        split: of the judgments, where `path` is the folder.

    Raises:
        CorpusError: a file is missing, unreadable or of another shape; says `file:line`.
    """
    folder = path if path.is_dir() else path.parent.parent
    split = split if path.is_dir() else path.name.split(".tsv")[0]
    task = load_beir(folder, split)
    lines = _lines_of(_judgments_file(folder, split))
    for query_id, grades in task.qrels.items():
        source = lines.get(query_id, str(path))
        positives = {doc_id: grade for doc_id, grade in grades.items() if grade >= 1}
        if positives:
            yield Example(
                source,
                task.queries[query_id],
                tuple(Item(doc_id, is_id=True) for doc_id in positives),
                tuple(Item(doc_id, is_id=True) for doc_id in grades if doc_id not in positives),
                tuple(positives.values()),
            )
        else:
            yield Rejected(source, "the query has no relevant passage to learn from", f"query {query_id}")


def _judgments_file(folder: Path, split: str) -> Path:
    plain = folder / "qrels" / f"{split}.tsv"
    return plain if plain.is_file() else plain.with_name(f"{plain.name}.gz")


def _lines_of(path: Path) -> dict[str, str]:
    """`file:line` of the first judgment of each query id."""
    first: dict[str, str] = {}

    def read(line: str, number: int) -> None:
        for cell in line.split():
            first.setdefault(cell, f"{path}:{number}")

    for_each_line(path, read)
    return first
