"""A file of training data, whatever its format → examples whose passages are known to be ids or texts."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, Protocol

from kalm_cache.errors import CorpusError, DamagedRecordError, UsageError
from kalm_cache.finetuning.data.example import Example, Item, OnReject, Rejected
from kalm_cache.finetuning.data.flag_embedding import read_flag_embedding
from kalm_cache.finetuning.data.judgments import is_judgments, read_judgments
from kalm_cache.finetuning.data.tables import read_table

ItemsAre = Literal["auto", "ids", "texts"]
ITEMS_ARE: tuple[ItemsAre, ...] = ("auto", "ids", "texts")
TABLES = (".csv", ".tsv", ".parquet")
_SAMPLE = 200  # passages by which it is told whether they are ids
_TOGETHER = 256  # examples looked up together
logger = logging.getLogger(__name__)


class Known(Protocol):
    """What knows which ids there are; a store does."""

    def metas(self, doc_ids: Sequence[str]) -> Sequence[object | None]:
        """For each id what is known of it, a `DamagedRecordError` among it; `None` = no such passage."""


def read_examples(
    path: Path, known: Known, on_reject: OnReject, *, split: str = "train", items_are: ItemsAre = "auto"
) -> list[Example]:
    """Read training data; what cannot be used goes to `on_reject`, the rest is returned in the file's order.

    Args:
        path: JSON lines, CSV, TSV, Parquet, a BEIR folder, or judgments in one.
        known: the index's passages.
        on_reject: gets lines that cannot be used, and ids that are not in the index.
        split: of a BEIR folder.
        items_are: whether passages are ids or texts; `auto` = ids, if half of them are in the index.

    Raises:
        CorpusError: the file cannot be read, or holds no example that can be used.
    """
    examples: list[Example] = []
    for each in _lines(path, split):
        if isinstance(each, Rejected):
            on_reject(each)
        else:
            examples.append(each)
    is_id = _are_ids(path, examples, known) if items_are == "auto" else items_are == "ids"
    usable = list(_usable(examples, is_id, known, on_reject))
    if not usable:
        raise CorpusError(f"{path} holds no query that can be used; the lines that were rejected say why")
    return usable


def parse_items_are(text: str) -> ItemsAre:
    """What passages are said to be. Raises `UsageError`."""
    for name in ITEMS_ARE:
        if text == name:
            return name
    raise UsageError(f"passages are {text!r}; expected {', '.join(ITEMS_ARE)}")


def _lines(path: Path, split: str) -> Iterator[Example | Rejected]:
    if is_judgments(path):
        return read_judgments(path, split)
    return read_table(path) if any(suffix in TABLES for suffix in path.suffixes) else read_flag_embedding(path)


def _are_ids(path: Path, examples: Sequence[Example], known: Known) -> bool:
    undecided = (item.value for example in examples for item in example.items if item.is_id is None)
    sample = list(itertools.islice(dict.fromkeys(undecided), _SAMPLE))
    if not sample:
        return True
    found = sum(meta is not None for meta in known.metas(sample))
    is_id = 2 * found >= len(sample)
    words = "ids of the index" if is_id else "texts"
    logger.info("%s: %d of %d passages are ids of the index; all are read as %s", path, found, len(sample), words)
    return is_id


def _usable(examples: Iterable[Example], is_id: bool, known: Known, on_reject: OnReject) -> Iterator[Example]:
    """Examples whose passages are all there, and which have a positive one left."""
    remaining = iter(examples)
    while together := list(itertools.islice(remaining, _TOGETHER)):
        decided = [_decided(example, is_id) for example in together]
        ids = list(dict.fromkeys(item.value for example in decided for item in example.items if item.is_id))
        problems = {
            doc_id: problem
            for doc_id, meta in zip(ids, known.metas(ids), strict=True)
            if (problem := _problem(doc_id, meta))
        }
        for example in decided:
            for item in example.items:
                if item.is_id and item.value in problems:
                    on_reject(Rejected(example.source, problems[item.value], example.query))
            sound = _without(example, problems)
            if sound.positives:
                yield sound
            else:
                on_reject(Rejected(example.source, "none of its relevant passages can be used", example.query))


def _problem(doc_id: str, meta: object | None) -> str | None:
    if meta is None:
        return f"the index holds no passage {doc_id!r}"
    return str(meta) if isinstance(meta, DamagedRecordError) else None


def _decided(example: Example, is_id: bool) -> Example:
    def decide(items: tuple[Item, ...]) -> tuple[Item, ...]:
        return tuple(replace(item, is_id=is_id) if item.is_id is None else item for item in items)

    return replace(example, positives=decide(example.positives), negatives=decide(example.negatives))


def _without(example: Example, problems: dict[str, str]) -> Example:
    """The example without passages that have a problem, and without their grades and scores."""
    if not any(item.is_id and item.value in problems for item in example.items):
        return example

    def kept(items: tuple[Item, ...]) -> list[int]:
        return [i for i, item in enumerate(items) if not (item.is_id and item.value in problems)]

    positives, negatives = kept(example.positives), kept(example.negatives)
    return replace(
        example,
        positives=tuple(example.positives[i] for i in positives),
        negatives=tuple(example.negatives[i] for i in negatives),
        grades=tuple(example.grades[i] for i in positives) if example.grades else (),
        positive_scores=tuple(example.positive_scores[i] for i in positives) if example.positive_scores else (),
        negative_scores=tuple(example.negative_scores[i] for i in negatives) if example.negative_scores else (),
    )
