"""A real small index: a random checkpoint, a static embedder of the corpus's words, forty short passages."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from indexer.corpus import RejectedLine
from kalm_cache.evaluation import BeirTask
from kalm_cache.index.passage_index import PassageIndex
from kalm_cache.passage import Passage
from kalm_cache.settings import Settings
from tests.indexes import build, make_embedder

WORDS = [
    "capital",
    "china",
    "beijing",
    "gravity",
    "vitamin",
    "calcium",
    "ferry",
    "island",
    "morning",
    "bees",
    "flowers",
    "hive",
    "query",
    "passage",
]
PASSAGES = 40


@pytest.fixture(scope="session")
def passages() -> list[Passage]:
    draw = random.Random(3)
    return [Passage(f"d{n}", " ".join(draw.choices(WORDS, k=draw.randint(3, 30)))) for n in range(PASSAGES)]


@pytest.fixture(scope="session")
def embedder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_embedder(tmp_path_factory.mktemp("embedder"), 16, WORDS)


@pytest.fixture(scope="session")
def index(
    passages: list[Passage], mini_folder: Path, embedder_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[PassageIndex]:
    folder = tmp_path_factory.mktemp("index")
    settings = Settings(model=str(mini_folder), embedder=str(embedder_folder), device="cpu", chunk_size=2)
    rejected: list[RejectedLine] = []
    build(folder, settings, [(passage.doc_id, passage.text) for passage in passages], rejected=rejected)
    assert rejected == []
    with PassageIndex.open(folder, device="cpu") as opened:
        yield opened


@pytest.fixture(scope="session")
def task() -> BeirTask:
    """Twelve queries of three words with graded judgments drawn at random."""
    draw = random.Random(5)
    queries = {f"q{n}": " ".join(draw.sample(WORDS, 3)) for n in range(12)}
    qrels = {query_id: {f"d{n}": draw.randint(0, 2) for n in draw.sample(range(PASSAGES), 8)} for query_id in queries}
    return BeirTask("toy", "test", queries, qrels)
