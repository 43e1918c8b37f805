"""The passages that a collection's judged queries are reranked over. Knows nothing of codecs."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from indexer.corpus import CorpusLine, read_corpus
from kalm_cache.evaluation import BeirTask
from kalm_cache.first_stage import BM25Index, DenseIndex, FirstStage, load_embedder


@dataclass(frozen=True, slots=True)
class Questions:
    """Questions, and the places of their candidates in `texts`."""

    queries: list[str]
    candidates: list[list[int]]
    texts: list[str]


@dataclass(frozen=True, slots=True)
class Collection:
    """Judged queries, their candidates, and the id of each passage of `questions.texts`."""

    task: BeirTask
    questions: Questions
    doc_ids: list[str]


def find_candidates(folder: Path, task: BeirTask, k: int) -> Collection:
    """The fused first stage's `k` best passages for each query, over the whole corpus."""
    passages = [line.passage for line in read_corpus(folder) if isinstance(line, CorpusLine)]
    texts = [passage.text for passage in passages]
    embedder = load_embedder("static", query_prompt="", passage_prompt="")
    with tempfile.TemporaryDirectory() as temporary:
        vectors = [(np.arange(len(texts)), embedder.embed_passages(texts))]
        dense = DenseIndex.build(vectors, embedder.dimension, Path(temporary))
        stage = FirstStage(dense, BM25Index.build(enumerate(texts), Path(temporary)), embedder)
        found = [one.ordinals.tolist() for one in stage.search_many(list(task.queries.values()), k, "fused")]
    needed = sorted({ordinal for ordinals in found for ordinal in ordinals})
    places = {ordinal: place for place, ordinal in enumerate(needed)}
    candidates = [[places[ordinal] for ordinal in ordinals] for ordinals in found]
    questions = Questions(list(task.queries.values()), candidates, [texts[ordinal] for ordinal in needed])
    return Collection(task, questions, [passages[ordinal].doc_id for ordinal in needed])
