"""A query with its passages, as every format is read into and as the prepared files hold it. Knows nothing of files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from kalm_cache.passage import as_doc_id, as_text


@dataclass(frozen=True, slots=True)
class Item:
    """A passage: the id of one that the index holds, or a text. `is_id` `None` = the file does not say which."""

    value: str
    is_id: bool | None = None


@dataclass(frozen=True, slots=True)
class Example:
    """One query.

    source: `file:line`. positives, negatives: its passages. grades: of the positives, 1 or more each. positive_scores,
    negative_scores: a teacher's, or empty. instruction: what the query asks for; `None` = the run's.
    """

    source: str
    query: str
    positives: tuple[Item, ...]
    negatives: tuple[Item, ...] = ()
    grades: tuple[int, ...] = ()
    positive_scores: tuple[float, ...] = ()
    negative_scores: tuple[float, ...] = ()
    instruction: str | None = None

    @property
    def items(self) -> tuple[Item, ...]:
        """All its passages, positives first."""
        return self.positives + self.negatives

    @property
    def labels(self) -> tuple[int, ...]:
        """The grade of each of `items`, 0 for negatives."""
        return (self.grades or (1,) * len(self.positives)) + (0,) * len(self.negatives)

    @property
    def scores(self) -> tuple[float, ...]:
        """The teacher's score of each of `items`, or empty."""
        return self.positive_scores + self.negative_scores


@dataclass(frozen=True, slots=True)
class Rejected:
    """A line that is not used: where (`file:line`), why, and its beginning."""

    location: str
    reason: str
    raw: str


OnReject = Callable[[Rejected], None]


def read_record(fields: Mapping[str, Any], source: str) -> Example:
    """FlagEmbedding's record `{query, pos[], neg[], pos_scores?, neg_scores?, prompt?}` as an example.

    A passage is a string, a number (an id), or an object with `doc_id` or `text` that says which it is.

    Raises:
        ValueError: a field is missing or of another shape; names it.
    """
    query = as_text(fields.get("query"), "'query'")
    if not query.strip():
        raise ValueError("'query' is empty")
    positives, negatives = _items(fields, "pos"), _items(fields, "neg")
    if not positives:
        raise ValueError("'pos' is empty: the query has no relevant passage to learn from")
    scores = _numbers(fields, "pos_scores", len(positives)), _numbers(fields, "neg_scores", len(negatives))
    if bool(scores[0]) != bool(scores[1]) and negatives:
        raise ValueError("'pos_scores' and 'neg_scores': one without the other; give both, or neither")
    grades = tuple(int(grade) for grade in _numbers(fields, "grades", len(positives)))
    if grades and min(grades) < 1:
        raise ValueError("'grades' holds one below 1; a passage that is not relevant belongs to 'neg'")
    prompt = fields.get("prompt")
    instruction = None if prompt is None else as_text(prompt, "'prompt'", "a string or null")
    return Example(source, query, positives, negatives, grades, *scores, instruction)


def write_record(example: Example) -> dict[str, Any]:
    """The record that `read_record` reads as this example."""
    record: dict[str, Any] = {
        "query": example.query,
        "pos": [_written(item) for item in example.positives],
        "neg": [_written(item) for item in example.negatives],
    }
    if any(grade != 1 for grade in example.grades):
        record["grades"] = list(example.grades)
    if example.scores:
        record |= {"pos_scores": list(example.positive_scores), "neg_scores": list(example.negative_scores)}
    if example.instruction is not None:
        record["prompt"] = example.instruction
    return record


def _written(item: Item) -> dict[str, str]:
    return {"doc_id" if item.is_id else "text": item.value}


def _items(fields: Mapping[str, Any], name: str) -> tuple[Item, ...]:
    values = fields.get(name, [])
    if not isinstance(values, list):
        raise ValueError(f"{name!r} is no list; give a list of ids or texts")
    return tuple(_item(value, f"{name!r}, number {number}") for number, value in enumerate(values, start=1))


def _item(value: Any, name: str) -> Item:
    if isinstance(value, dict):
        if "doc_id" in value:
            return Item(as_doc_id(value["doc_id"], f"{name}: 'doc_id'"), is_id=True)
        return Item(as_text(value.get("text"), f"{name}: 'text'"), is_id=False)
    return Item(as_doc_id(value, name), is_id=None if isinstance(value, str) else True)


def _numbers(fields: Mapping[str, Any], name: str, count: int) -> tuple[float, ...]:
    values = fields.get(name)
    if not values:
        return ()
    if not isinstance(values, list) or not all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
        raise ValueError(f"{name!r} is no list of numbers")
    if len(values) != count:
        raise ValueError(f"{name!r} has {len(values)} numbers for {count} passages")
    return tuple(float(value) for value in values)
