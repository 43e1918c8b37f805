"""Retrieval tasks of MTEB, by name or whole benchmarks (`SciFact`, `BEIR`, `LMEB`) → collections. Extra `mteb`.

A task yields one collection for each of its subsets and evaluation splits. The instruction is the task's prompt, where
it has one; queries with an instruction of their own keep it. mteb downloads a task's data at its first use, into the
Hugging Face cache (`HF_HOME`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from kalm_cache.errors import CorpusError, MissingExtraError, UsageError
from kalm_cache.evaluation.collections.beir import BeirTask
from kalm_cache.evaluation.collections.collection import Collection
from kalm_cache.evaluation.collections.qrels import judged
from kalm_cache.evaluation.collections.trec import Scored
from kalm_cache.passage import Passage, PassageTemplate, as_doc_id


def load_mteb(name: str, subsets: Sequence[str] | None = None) -> Iterator[Collection]:
    """The collections of a task or of a benchmark's tasks, each loaded when it is asked for.

    Args:
        name: of a task, or of a benchmark, as mteb has it.
        subsets: only these of each task (languages, domains); `None` = all.

    Raises:
        MissingExtraError: mteb is not installed.
        UsageError: no such task or benchmark.
        CorpusError: a task's data cannot be had, or holds what text retrieval has no use for.
    """
    for task in find_tasks(name, subsets):
        yield from collections_of(task)


def find_tasks(name: str, subsets: Sequence[str] | None = None) -> list[Any]:
    """The retrieval tasks called so, without their data. Raises as `load_mteb`."""
    try:
        import mteb
    except ImportError as exc:
        raise MissingExtraError("mteb", "mteb") from exc
    chosen = None if subsets is None else list(subsets)
    try:
        try:
            tasks = [mteb.get_task(name, hf_subsets=chosen)]
        except KeyError:
            tasks = [mteb.get_task(task.metadata.name, hf_subsets=chosen) for task in mteb.get_benchmark(name).tasks]
    except (KeyError, ValueError) as exc:
        raise UsageError(f"mteb has no task or benchmark {name!r}, or not these subsets: {exc}") from exc
    others = [task.metadata.name for task in tasks if not isinstance(task, mteb.abstasks.AbsTaskRetrieval)]
    if others:
        raise UsageError(f"{', '.join(others)}: no retrieval tasks; this command ranks passages for queries")
    return tasks


def collections_of(task: Any) -> Iterator[Collection]:
    """The collections of an mteb retrieval task (`AbsTaskRetrieval`), loading its data. Raises `CorpusError`."""
    name = task.metadata.name
    try:
        task.load_data()
        task.convert_v1_dataset_format_to_v2(num_proc=None)
    except Exception as exc:  # mteb lets through whatever datasets, the hub and the network raise
        raise CorpusError(
            f"mteb's {name} cannot be loaded: {type(exc).__name__}: {exc}; it is downloaded at its first use, into the "
            "Hugging Face cache (HF_HOME): run this once with a network and without HF_HUB_OFFLINE"
        ) from exc
    for subset, splits in task.dataset.items():
        for split in task.eval_splits:
            if split in splits:
                yield _collection(task, name if subset == "default" else f"{name}-{subset}", split, splits[split])


def instruction_of(metadata: Any) -> str | None:
    """The task's prompt for queries, `None` where it has none."""
    prompt = metadata.prompt
    if isinstance(prompt, dict):
        prompt = prompt.get("query")
    return prompt if isinstance(prompt, str) and prompt else None


def passages_of(corpus: Any, template: PassageTemplate) -> Iterator[Passage]:
    """The passages of an mteb corpus (a `datasets.Dataset` with `id`, `text` and maybe `title`).

    Raises:
        CorpusError: a row has no usable id, or fields that make no passage.
    """
    for number, row in enumerate(corpus, start=1):
        try:
            yield Passage(as_doc_id(row["id"], "'id'"), template.text_of({**row, "text": row["text"] or ""}))
        except ValueError as exc:
            raise CorpusError(f"row {number} of mteb's corpus: {exc}") from exc


def query_texts(queries: Any, name: str) -> dict[str, str]:
    """Texts by query id of an mteb query set. Raises `CorpusError` where a query is no text."""
    texts = {str(row["id"]): row["text"] for row in queries}
    odd = next((query_id for query_id, text in texts.items() if not isinstance(text, str)), None)
    if odd is not None:
        raise CorpusError(f"mteb's {name}: query {odd!r} is a {type(texts[odd]).__name__}; only texts can be asked")
    return texts


def query_instructions(queries: Any) -> dict[str, str]:
    """Instructions of single queries by query id, where an mteb query set has them."""
    return {str(row["id"]): row["instruction"] for row in queries if row.get("instruction")}


def _collection(task: Any, name: str, split: str, data: Any) -> Collection:
    texts = query_texts(data["queries"], name)
    qrels = {
        str(query_id): {str(doc_id): int(grade) for doc_id, grade in grades.items()}
        for query_id, grades in data["relevant_docs"].items()
        if grades
    }
    qrels = judged(name, qrels, texts)
    if not qrels:
        raise CorpusError(f"mteb's {name} {split} holds no judgment of its queries")
    given = data.get("top_ranked")
    return Collection(
        task=BeirTask(name.replace("/", "-"), split, {query_id: texts[query_id] for query_id in qrels}, qrels),
        corpus=lambda template: passages_of(data["corpus"], template),
        instruction=instruction_of(task.metadata),
        instructions=query_instructions(data["queries"]),
        drop_own_id=bool(task.ignore_identical_ids),
        given=None
        if given is None
        else {
            str(query_id): [Scored(str(doc_id), float(-rank)) for rank, doc_id in enumerate(ids)]
            for query_id, ids in given.items()
        },
    )
