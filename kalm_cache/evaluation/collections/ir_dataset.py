"""A dataset of ir_datasets by its name (`beir/fiqa/test`, `miracl/sw/dev`, …) → a collection. Extra `eval`.

ir_datasets downloads a dataset at its first use, into `~/.ir_datasets` or where `IR_DATASETS_HOME` says.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from kalm_cache.errors import CorpusError, MissingExtraError, UsageError
from kalm_cache.evaluation.collections.beir import BeirTask
from kalm_cache.evaluation.collections.collection import Collection, drops_own_id
from kalm_cache.evaluation.collections.qrels import judged
from kalm_cache.passage import Passage, PassageTemplate


def load_ir_dataset(name: str) -> Collection:
    """The collection called `name` by ir_datasets: it must have documents, queries and judgments.

    Raises:
        MissingExtraError: ir_datasets is not installed.
        UsageError: no such name, or one without judged queries.
        CorpusError: its files cannot be had.
    """
    dataset = _open(name)
    lacking = [part for part in ("docs", "queries", "qrels") if not dataset.has(part)]
    if lacking:
        raise UsageError(
            f"ir_datasets has no {', '.join(lacking)} under {name!r}; name a judged subset, as {name}/test"
        )
    try:
        texts = {query.query_id: query.default_text() for query in dataset.queries_iter()}
        qrels: dict[str, dict[str, int]] = {}
        for judgment in dataset.qrels_iter():
            qrels.setdefault(judgment.query_id, {})[judgment.doc_id] = int(judgment.relevance)
    except Exception as exc:  # ir_datasets lets through whatever requests, zip files and parsers raise
        raise _unreachable(name, exc) from exc
    qrels = judged(name, qrels, texts)
    if not qrels:
        raise CorpusError(f"ir_datasets {name!r} holds no judgment of its queries")
    task = BeirTask(name.replace("/", "-"), "test", {query_id: texts[query_id] for query_id in qrels}, qrels)
    return Collection(task, lambda template: _passages(name, template), drop_own_id=drops_own_id(task.name))


def _open(name: str) -> Any:
    try:
        import ir_datasets
    except ImportError as exc:
        raise MissingExtraError("ir_datasets", "eval") from exc
    try:
        return ir_datasets.load(name)
    except KeyError as exc:
        raise UsageError(f"ir_datasets knows no {name!r}; its names are listed on https://ir-datasets.com") from exc


def _passages(name: str, template: PassageTemplate) -> Iterator[Passage]:
    """Documents with a title and a text by the template, as everywhere; others as ir_datasets has them."""
    try:
        for doc in _open(name).docs_iter():
            yield Passage(doc.doc_id, template.text_of(doc._asdict()) if _has_title(doc) else doc.default_text())
    except OSError as exc:
        raise _unreachable(name, exc) from exc


def _has_title(doc: Any) -> bool:
    return isinstance(getattr(doc, "title", None), str) and isinstance(getattr(doc, "text", None), str)


def _unreachable(name: str, exc: Exception) -> CorpusError:
    return CorpusError(
        f"ir_datasets {name!r} cannot be read: {type(exc).__name__}: {exc}; it is downloaded at its first use, into "
        "~/.ir_datasets or $IR_DATASETS_HOME: run this once with a network, or use --beir with a local folder"
    )
