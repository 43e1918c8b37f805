"""sentence-transformers' own evaluators and miner run on a `KaLMCrossEncoder`."""

from __future__ import annotations

from pathlib import Path

import pytest

from kalm_cache.adapters import KaLMCrossEncoder
from kalm_cache.model.checkpoint import BUNDLED_TINY
from tests.adapters.test_sentence_transformers import PAIRS, QUERY, TEXTS

SAMPLES = [
    {"query": QUERY, "positive": [TEXTS[0]], "negative": [TEXTS[1]]},
    {"query": "When does the ferry leave?", "positive": TEXTS[1], "negative": [TEXTS[0], TEXTS[2]]},
]


@pytest.fixture(scope="module")
def model() -> KaLMCrossEncoder:
    return KaLMCrossEncoder("tiny", device="cpu")


@pytest.fixture(scope="module")
def scores(model: KaLMCrossEncoder) -> list[float]:
    return [float(score) for score in model.predict(PAIRS)]


def test_their_evaluators_run_on_ours(model: KaLMCrossEncoder, scores: list[float], tmp_path: Path) -> None:
    evaluation = pytest.importorskip("sentence_transformers.cross_encoder.evaluation")
    correlation = evaluation.CrossEncoderCorrelationEvaluator(PAIRS, scores, name="dev")(model, str(tmp_path))
    assert correlation["dev_pearson"] == pytest.approx(1, abs=1e-5)
    assert correlation["dev_spearman"] == pytest.approx(1)
    assert len(list(tmp_path.iterdir())) == 1
    labels = [int(score >= sorted(scores)[1]) for score in scores]
    classified = evaluation.CrossEncoderClassificationEvaluator(PAIRS, labels, name="dev")(model)
    assert classified["dev_average_precision"] == pytest.approx(1)
    reranked = evaluation.CrossEncoderRerankingEvaluator(SAMPLES, name="dev")(model)
    assert 0 < reranked["dev_map"] <= 1


def test_hard_negatives_are_mined_with_ours(model: KaLMCrossEncoder) -> None:
    library = pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    from sentence_transformers.util import mine_hard_negatives
    from tokenizers import Tokenizer

    static = library.sentence_transformer.modules.StaticEmbedding(
        Tokenizer.from_file(str(BUNDLED_TINY / "tokenizer.json")), embedding_dim=8
    )
    pairs = datasets.Dataset.from_dict({"query": [QUERY, "When does the ferry leave?"], "answer": TEXTS[:2]})
    mined = mine_hard_negatives(
        pairs,
        library.SentenceTransformer(modules=[static], device="cpu"),
        cross_encoder=model,
        corpus=TEXTS,
        num_negatives=1,
        max_score=2.0,
        verbose=False,
        use_faiss=False,
    )
    assert len(mined) > 0
    assert all(row["negative"] != row["answer"] for row in mined)
