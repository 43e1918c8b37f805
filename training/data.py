"""Reads the licensed training sets: passages, pairs and negatives. Knows nothing of models.

Only the sets named in CORPORA may train anything; every other folder under beir/ is for evaluation.
"""

import json
from dataclasses import dataclass
from pathlib import Path

CORPORA = ("boolq", "cosqa", "halueval-hotpot", "medquad", "scifact", "tatqa")


@dataclass(frozen=True, slots=True)
class TrainingPassage:
    """A passage of a training corpus."""

    passage_id: str
    title: str
    text: str


@dataclass(frozen=True, slots=True)
class Pair:
    """A query with the ids of its relevant passages and of its (unjudged) BM25 neighbours."""

    query: str
    positives: tuple[str, ...]
    negatives: tuple[str, ...]


def read_corpus(data: Path, name: str) -> list[TrainingPassage]:
    """All passages of one collection, in file order."""
    with (data / "beir" / name / "corpus.jsonl").open(encoding="utf-8") as lines:
        rows = map(json.loads, lines)
        return [TrainingPassage(r["_id"], r.get("title", ""), r["text"]) for r in rows]


def read_pairs(data: Path, name: str) -> list[Pair]:
    """The training pairs of one collection."""
    with (data / "train" / f"{name}.jsonl").open(encoding="utf-8") as lines:
        rows = map(json.loads, lines)
        return [Pair(r["query"], tuple(r["pos"]), tuple(r["neg"])) for r in rows]
