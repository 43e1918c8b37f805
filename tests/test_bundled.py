"""What the package carries: `tiny`, the static embedder, the demo collection."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from benchmarks.reference import MarginOracle, load_slow_reference
from indexer.corpus import CorpusLine, read_corpus
from kalm_cache.cli.app import app
from kalm_cache.cli.commands.demo import BUNDLED_DEMO, SHOWN
from kalm_cache.codec import get_codec
from kalm_cache.codec.sensitivity import load_sensitivity
from kalm_cache.evaluation import load_beir
from kalm_cache.index.passage_index import PassageIndex
from kalm_cache.model.checkpoint import BUNDLED_TINY, SENSITIVITY_FILE
from kalm_cache.model.prompts import Prompt
from kalm_cache.reranker import KaLMReranker
from tests.indexer.changes import payloads_of

QUERIES = ["What is the capital of China?", "Who was Kublai Khan's grandfather?", "naïve Σ 北京 🙂", ""]
PASSAGES = ["The capital of China is Beijing.", "Gravity attracts bodies toward one another.", "北京 é", "word " * 400]


@pytest.fixture(scope="module")
def oracle() -> MarginOracle:
    return MarginOracle(load_slow_reference(BUNDLED_TINY))


@pytest.fixture(scope="module")
def demo_passages() -> dict[str, str]:
    lines = [line for line in read_corpus(BUNDLED_DEMO / "corpus.jsonl.zst") if isinstance(line, CorpusLine)]
    return {line.passage.doc_id: line.passage.text for line in lines}


def test_tiny_stays_within_its_size() -> None:
    assert sum(path.stat().st_size for path in BUNDLED_TINY.glob("*.safetensors")) <= 32_000_000


@pytest.mark.parametrize("chunk_size", [1, 4, 16])
def test_tiny_gives_the_margins_of_transformers(oracle: MarginOracle, chunk_size: int) -> None:
    pairs = [(query, passage) for query in QUERIES for passage in PASSAGES]
    reranker = KaLMReranker("tiny", device="cpu", chunk_size=chunk_size)
    margins = [scored["margin"] for scored in reranker.predict(pairs, return_margin=True)]
    assert margins == pytest.approx([oracle.margin(*pair, chunk_size) for pair in pairs], abs=1e-4)


def test_tiny_knows_an_answer_from_a_passage_of_another_matter() -> None:
    ranking = KaLMReranker("tiny", device="cpu").rank(QUERIES[0], [PASSAGES[1], PASSAGES[0]])
    assert ranking[0]["corpus_id"] == 1
    assert ranking[0]["score"] > 0.5 > ranking[1]["score"]


def test_the_default_prompt_of_tiny_is_seven_tokens_around_the_query() -> None:
    side = KaLMReranker("tiny", device="cpu")
    empty = side.query_side.tokenize(Prompt("", side.instruction, side.system_instruction))
    assert len(empty.ids) == 7


def test_the_demo_collection_is_whole(demo_passages: dict[str, str]) -> None:
    task = load_beir(BUNDLED_DEMO)
    judged = {doc_id for grades in task.qrels.values() for doc_id in grades}
    assert len(demo_passages) == 2067
    assert judged <= set(demo_passages)
    assert set(SHOWN) <= set(task.queries)


def test_tiny_puts_the_answer_first_more_often_than_not(demo_passages: dict[str, str]) -> None:
    """The passage that answers, against four others of the same collection, for twenty held-out questions."""
    task = load_beir(BUNDLED_DEMO)
    ids = sorted(demo_passages)
    reranker = KaLMReranker("tiny", device="cpu")
    first = 0
    for number, (query_id, grades) in enumerate(list(task.qrels.items())[:20]):
        (answer,) = grades
        others = [ids[(97 * number + 13 * step) % len(ids)] for step in range(1, 5)]
        documents = [demo_passages[doc_id] for doc_id in [answer, *others]]
        first += reranker.rank(task.queries[query_id], documents)[0]["corpus_id"] == 0
    assert first >= 17


@pytest.fixture(scope="module")
def indexes(demo_passages: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The first demo passages, indexed by the command line: with `tiny` by codec, and without its sensitivity."""
    folder = tmp_path_factory.mktemp("indexes")
    corpus = folder / "corpus.jsonl"
    lines = [{"_id": one, "text": demo_passages[one]} for one in sorted(demo_passages)[:12]]
    corpus.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    shutil.copytree(BUNDLED_TINY, folder / "model", ignore=shutil.ignore_patterns(SENSITIVITY_FILE))
    wanted = {"fp32": "tiny", "int8": "tiny", "int4": "tiny", "plain int4": str(folder / "model")}
    for name, model in wanted.items():
        index = ["index", str(corpus), "--index", str(folder / name), "--codec", name.split()[-1], "--model", model]
        result = CliRunner().invoke(app, [*index, "--device", "cpu", "--dtype", "float32"])
        assert result.exit_code == 0, result.stderr
    return {name: folder / name for name in wanted}


@pytest.mark.parametrize("name", ["int8", "int4", "plain int4"])
def test_indexing_rounds_four_bits_by_the_sensitivity_of_tiny(indexes: dict[str, Path], name: str) -> None:
    sensitivity = load_sensitivity(BUNDLED_TINY / SENSITIVITY_FILE) if name == "int4" else None
    codec, stored = get_codec(name.split()[-1], sensitivity), payloads_of(indexes[name])
    with PassageIndex.open(indexes["fp32"], device="cpu") as exact:
        states = [one.states.numpy() for one in exact.pooled(list(stored))]
    assert list(stored.values()) == [codec.encode(one) for one in states]


def test_margins_by_the_sensitivity_of_tiny_are_nearer_to_exact_ones(indexes: dict[str, Path]) -> None:
    assert payloads_of(indexes["int4"]) != payloads_of(indexes["plain int4"])
    exact, by_sensitivity, plain = (margins_of(indexes[name]) for name in ("fp32", "int4", "plain int4"))
    assert np.abs(by_sensitivity - exact).mean() < 0.7 * np.abs(plain - exact).mean()


def margins_of(index: Path) -> np.ndarray:
    """(queries, passages)"""
    queries = list(load_beir(BUNDLED_DEMO).queries.values())[:6]
    with PassageIndex.open(index, device="cpu") as opened:
        return np.array([opened.margins(query, list(payloads_of(index))) for query in queries])
