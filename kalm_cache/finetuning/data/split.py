"""Queries in three parts that share none: trained on, watched during training, and reported at the end.

What a checkpoint was chosen by says too much good of it: the report needs queries that decided nothing.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kalm_cache.errors import UsageError
from kalm_cache.finetuning.data.example import Example

LEAST = 4  # queries in each part; a paired test of fewer says nothing


@dataclass(frozen=True, slots=True)
class Split:
    """The three parts; none has a query of another."""

    train: list[Example]
    watch: list[Example]
    report: list[Example]


def split_examples(
    examples: Sequence[Example],
    seed: int,
    *,
    watch_share: float,
    report_share: float,
    report: Sequence[Example] | None = None,
) -> Split:
    """Draw which queries are held out. Examples of the same query, but for case and blanks, stay together.

    Args:
        examples: all.
        seed: of the draw.
        watch_share: of the queries that the checkpoint is chosen by.
        report_share: of the queries that the report is about.
        report: these are reported instead; examples of their queries leave the others.

    Raises:
        UsageError: too few queries for three parts.
    """
    reported = {_key(example) for example in report or ()}
    others = [example for example in examples if _key(example) not in reported]
    queries = list(dict.fromkeys(map(_key, others)))
    order = [queries[i] for i in np.random.default_rng(seed).permutation(len(queries))]
    watch_count = max(LEAST, round(watch_share * len(order)))
    report_count = 0 if report is not None else max(LEAST, round(report_share * len(order)))
    watch, drawn = set(order[:watch_count]), set(order[watch_count : watch_count + report_count])
    train = [example for example in others if _key(example) not in watch | drawn]
    held_out = list(report) if report is not None else [example for example in others if _key(example) in drawn]
    if len({_key(example) for example in train}) < LEAST or len({_key(example) for example in held_out}) < LEAST:
        raise UsageError(
            f"{len(queries)} queries are too few to train on, to watch and to report: give {3 * LEAST} at least"
        )
    return Split(train, [example for example in others if _key(example) in watch], held_out)


def _key(example: Example) -> str:
    return " ".join(unicodedata.normalize("NFKC", example.query).casefold().split())
