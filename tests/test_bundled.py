"""What the package carries: `tiny`, the static embedder, the demo collection."""

from __future__ import annotations

import pytest
import torch

from benchmarks.reference import MarginOracle, load_slow_reference
from indexer.corpus import CorpusLine, read_corpus
from kalm_cache.cli.demo import BUNDLED_DEMO, SHOWN
from kalm_cache.evaluation import load_beir
from kalm_cache.model.checkpoint import BUNDLED_TINY
from kalm_cache.reranker import KaLMReranker

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


def test_tiny_in_bfloat16_stays_near_its_float32_margins() -> None:
    pairs = [(query, passage) for query in QUERIES[:2] for passage in PASSAGES]
    full, half = (KaLMReranker("tiny", device="cpu", dtype=dtype) for dtype in (torch.float32, torch.bfloat16))
    expected = [scored["margin"] for scored in full.predict(pairs, return_margin=True)]
    assert [scored["margin"] for scored in half.predict(pairs, return_margin=True)] == pytest.approx(expected, abs=0.07)


def test_tiny_knows_an_answer_from_a_passage_of_another_matter() -> None:
    ranking = KaLMReranker("tiny", device="cpu").rank(QUERIES[0], [PASSAGES[1], PASSAGES[0]])
    assert ranking[0]["corpus_id"] == 1
    assert ranking[0]["score"] > 0.5 > ranking[1]["score"]


def test_the_default_prompt_of_tiny_is_seven_tokens_around_the_query() -> None:
    side = KaLMReranker("tiny", device="cpu")
    empty = side.query_side.prompt("", side.instruction, side.system_instruction)
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
