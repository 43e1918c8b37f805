"""What the tests of sharded indexes compare: answers, records and ordinals, by id, however the index is cut."""

from __future__ import annotations

from pathlib import Path

from kalm_cache import PassageIndex
from kalm_cache.generations.generation import open_current
from kalm_cache.generations.manifest import FileReceipt
from tests.texts import long_text

# of every length, and each tenth twice: equal scores must come in one order, too
MANY = {f"m{i}": long_text(3 + 7 * i % 40, seed=500 + i) for i in range(60)}
MANY |= {f"twin{i}": MANY[f"m{i}"] for i in range(0, 60, 10)}
QUERIES = [long_text(5, seed=900 + i) for i in range(4)]


def answers_of(index: Path, k: int = 20) -> list[object]:
    """Candidates of every mode with their scores, and all ids of a rerank, best first, for some queries."""
    with PassageIndex.open(index, device="cpu", dtype="float32") as opened:
        answers: list[object] = []
        for query in QUERIES:
            for mode in opened.first_stage.modes:
                found = opened.find(query, k, mode)
                answers.append((mode, found.doc_ids, found.candidates.scores.tolist()))
            answers.append([result.doc_id for result in opened.search(query, k=k, top_n=None).results])
        return answers


def margins_of(index: Path) -> list[float]:
    with PassageIndex.open(index, device="cpu", dtype="float32") as opened:
        return [margin for query in QUERIES for margin in opened.margins(query, list(MANY))]


def shards_of(index: Path) -> dict[int, int]:
    """Passages stored in each shard of the live generation."""
    manifest = open_current(index).manifest
    return {one.shard: one.counts.passages for one in manifest.segments if one.shard is not None}


def files_of(index: Path) -> dict[str, FileReceipt]:
    """The receipts of the segments' files, which are the same for the same bytes."""
    return {name: one for name, one in open_current(index).manifest.files.items() if name.startswith("shards/")}
