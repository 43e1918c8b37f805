"""A real small index of forty passages, judged queries over it, and what a job is given."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from indexer.corpus import RejectedLine
from kalm_cache.finetuning.data.example import Rejected
from kalm_cache.finetuning.job import Shown, Source
from kalm_cache.finetuning.passages import Passages, open_passages
from kalm_cache.finetuning.training.trainer import Progress
from kalm_cache.index.passage_index import PassageIndex
from kalm_cache.model.checkpoint import Checkpoint
from kalm_cache.model.prompts import DEFAULT_SYSTEM_INSTRUCTION
from kalm_cache.settings import Settings
from tests.indexes import build, make_embedder

WORDS = ("capital", "china", "gravity", "vitamin", "ferry", "island", "morning", "bees", "flowers", "hive", "query")
PASSAGES = 40
QUERIES = 24


class Told:
    """What a job tells, kept."""

    def __init__(self) -> None:
        self.rejected: list[Rejected] = []
        self.steps: list[Progress] = []

    def shown(self) -> Shown:
        return Shown(self.rejected.append, self.steps.append, lambda what, total: nullcontext(lambda count: None))


@pytest.fixture(scope="session")
def texts() -> dict[str, str]:
    draw = random.Random(3)
    return {f"d{n}": " ".join(draw.choices(WORDS, k=draw.randint(3, 30))) for n in range(PASSAGES)}


@pytest.fixture(scope="session")
def index_folder(texts: dict[str, str], mini_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    embedder = make_embedder(tmp_path_factory.mktemp("embedder"), 16, WORDS)
    folder = tmp_path_factory.mktemp("finetuned-index")
    settings = Settings(model=str(mini_folder), embedder=str(embedder), device="cpu", chunk_size=2, codec="fp32")
    rejected: list[RejectedLine] = []
    build(folder, settings, texts, rejected=rejected)
    assert rejected == []
    return folder


@pytest.fixture(scope="session")
def index(index_folder: Path) -> Iterator[PassageIndex]:
    with PassageIndex.open(index_folder, device="cpu") as opened:
        yield opened


@pytest.fixture
def source(index: PassageIndex, mini: Checkpoint) -> Source:
    return Source(index, mini, "Find it.", DEFAULT_SYSTEM_INSTRUCTION)


@pytest.fixture
def passages(source: Source, tmp_path: Path) -> Iterator[Passages]:
    with open_passages(source.index, source.checkpoint, tmp_path / "texts") as opened:
        yield opened


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture(scope="session")
def train_file(texts: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two dozen queries of three words, each with the passage that they were drawn from."""
    draw, path = random.Random(5), tmp_path_factory.mktemp("data") / "train.jsonl"
    records: list[dict[str, Any]] = []
    for n in range(QUERIES):
        words = texts[f"d{n}"].split()
        records.append({"query": f"{' '.join(draw.sample(words, 3))} {n}", "pos": [f"d{n}"], "neg": [f"d{n + 1}"]})
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path
