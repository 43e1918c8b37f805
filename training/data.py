"""Reads the licensed training sets: passages, pairs and negatives. Knows nothing of models.

Only the sets named in CORPORA may train anything; every other folder under beir/ is for evaluation. TEXT stands for
what `collect_text.py` brought from package registries.
"""

import json
import random
from dataclasses import dataclass
from pathlib import Path

CORPORA = ("boolq", "cosqa", "halueval-hotpot", "medquad", "scifact", "tatqa")
TEXT = "text"


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


def read_text(folder: Path, limit: int, rng: random.Random) -> tuple[list[TrainingPassage], list[Pair]]:
    """A sample of what `collect_text.py` brought: at most `limit` passages and `limit` pairs of each source.

    A pair's query often repeats its passage's title, so that half of their passages go without one.
    """
    passages, pairs, seen = [], [], set()
    for number, row in enumerate(_sample(folder / "pairs.jsonl", limit, rng)):
        title = row["title"] if rng.random() < 0.5 else ""
        passages.append(TrainingPassage(f"p{number}", title, row["text"]))
        pairs.append(Pair(row["query"], (f"p{number}",), ()))
        seen.add(row["text"])
    for number, row in enumerate(_sample(folder / "passages.jsonl", limit, rng)):
        if row["text"] not in seen:
            passages.append(TrainingPassage(f"t{number}", row["title"], row["text"]))
    return passages, pairs


def _sample(path: Path, limit: int, rng: random.Random) -> list[dict[str, str]]:
    by_source: dict[str, list[dict[str, str]]] = {}
    with path.open(encoding="utf-8") as lines:
        for row in map(json.loads, lines):
            by_source.setdefault(row["source"], []).append(row)
    return [row for rows in by_source.values() for row in rng.sample(rows, min(limit, len(rows)))]
