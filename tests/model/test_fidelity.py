"""Our margins against transformers' own, on shallow checkpoints of the published widths and on `tiny`."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import pytest
import torch

from benchmarks.checkpoints import SHAPES
from benchmarks.reference import INSTRUCTION, SYSTEM, MarginOracle, load_slow_reference
from indexer.corpus import CorpusLine, read_corpus
from kalm_cache.cli.commands.demo import BUNDLED_DEMO
from kalm_cache.evaluation import load_beir
from kalm_cache.model.checkpoint import BUNDLED_TINY
from kalm_cache.model.precision import dtype_name
from kalm_cache.model.prompts import Prompt
from kalm_cache.reranker import KaLMReranker
from kalm_cache.scoring.pooling import mean_pool
from tests.checkpoints import FULL, NANO, SLIDING, SMALL, make_checkpoint
from tests.rounding import BFLOAT16_TIMES, INT8_TIMES, RANDOM_WITHIN, rms_error
from tests.texts import DOCUMENTS, QUERIES, long_text

Pairs = list[tuple[str, str]]

# Large's heads, width, window and rope; its feed-forward network is 10 240 wide, which would take gigabytes here
LARGE = replace(SHAPES["large"], layer_types=(SLIDING, FULL), intermediate_size=1024)
PAIRS = [
    (QUERIES["plain"], DOCUMENTS["plain"]),
    (QUERIES["chinese"], long_text(60)),
    (QUERIES["emoji"], DOCUMENTS["end_of_image"]),
    (long_text(30, 2), DOCUMENTS["empty"]),
    (QUERIES["specials"], DOCUMENTS["other"]),
    (QUERIES["braces"], long_text(90, 7)),
]
QUESTIONS, PASSAGES = 12, 10


@dataclass
class Model:
    """A checkpoint and what transformers makes of it, in float32 and in bfloat16."""

    folder: Path
    pairs: Pairs
    ratios: tuple[int, ...]

    @cached_property
    def exact(self) -> dict[int, list[float]]:
        return self._margins(torch.float32)

    @cached_property
    def half(self) -> dict[int, list[float]]:
        return self._margins(torch.bfloat16)

    def ours(self, dtype: str) -> dict[int, list[float]]:
        """Passages are encoded once; every ratio is pooled from their tokens' states."""
        reranker = KaLMReranker(str(self.folder), device="cpu", dtype=dtype, chunk_size=1)
        side, documents = reranker.query_side, list(dict.fromkeys(document for _, document in self.pairs))
        prompts = {query: side.tokenize(Prompt(query, INSTRUCTION, SYSTEM)) for query, _ in self.pairs}
        states, margins = reranker.encode(documents), {}
        for ratio in self.ratios:
            pooled = mean_pool(torch.cat(states), [len(one) for one in states], ratio)
            passages = dict(zip(documents, pooled, strict=True))
            margins[ratio] = side.margins(
                [prompts[query] for query, _ in self.pairs], [passages[document] for _, document in self.pairs], 32
            )
        return margins

    def _margins(self, dtype: torch.dtype) -> dict[int, list[float]]:
        oracle = MarginOracle(load_slow_reference(self.folder, dtype))
        return {ratio: [oracle.margin(*pair, ratio) for pair in self.pairs] for ratio in self.ratios}


@pytest.fixture(scope="module", params=["nano", "small", "large"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    shape = {"nano": NANO, "small": SMALL, "large": LARGE}[request.param]
    ratios = (1, 4, 32) if request.param == "nano" else (4,)  # pooling is the same at every width
    folder = make_checkpoint(tmp_path_factory.mktemp(request.param), shape, dtype=torch.bfloat16)
    yield Model(folder, PAIRS, ratios)
    (folder / "model.safetensors").unlink()  # hundreds of megabytes
    gc.collect()


@pytest.fixture(scope="module")
def tiny() -> Model:
    """A dozen questions of the demo, each with the passage that answers it and its nine neighbours, alike in matter."""
    lines = [line for line in read_corpus(BUNDLED_DEMO / "corpus.jsonl.zst") if isinstance(line, CorpusLine)]
    ids, texts = [line.passage.doc_id for line in lines], [line.passage.text for line in lines]
    task, pairs = load_beir(BUNDLED_DEMO), []
    for query_id, grades in list(task.qrels.items())[::5][:QUESTIONS]:
        (answer,) = grades
        start = min(max(ids.index(answer) - 4, 0), len(ids) - PASSAGES)
        pairs += [(task.queries[query_id], text) for text in texts[start : start + PASSAGES]]
    return Model(BUNDLED_TINY, pairs, (4,))


@pytest.fixture(scope="module")
def tiny_few(tiny: Model) -> Model:
    """The first questions alone: transformers' bfloat16 is very slow on processors that have none."""
    return Model(tiny.folder, tiny.pairs[: 2 * PASSAGES], tiny.ratios)


def flat(margins: dict[int, list[float]]) -> list[float]:
    return [margin for of_ratio in margins.values() for margin in of_ratio]


def largest_distance(margins: dict[int, list[float]], exact: dict[int, list[float]]) -> float:
    return max(abs(a - b) for a, b in zip(flat(margins), flat(exact), strict=True))


def mean(numbers: list[float]) -> float:
    return sum(numbers) / len(numbers)


def rankings(margins: list[float]) -> list[list[int]]:
    """Each question's passages by falling margin."""
    groups = [margins[start : start + PASSAGES] for start in range(0, len(margins), PASSAGES)]
    return [sorted(range(PASSAGES), key=lambda i: -group[i]) for group in groups]


def kendall(left: list[int], right: list[int]) -> float:
    """1 = the same order, −1 = the reverse."""
    pairs = [(i, j) for i in range(PASSAGES) for j in range(i)]
    agree = sum((left.index(i) < left.index(j)) == (right.index(i) < right.index(j)) for i, j in pairs)
    return 2 * agree / len(pairs) - 1


@pytest.mark.parametrize("kernels", ["native", "torch"])
def test_float32_margins_of_the_published_widths_equal_transformers(
    model: Model, kernels: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
):
    if kernels == "native":
        request.getfixturevalue("native")
    monkeypatch.setenv("KALM_CACHE_KERNELS", kernels)
    assert max(model.exact[4]) - min(model.exact[4]) > 2  # the agreement below means something
    assert largest_distance(model.ours("float32"), model.exact) <= 1e-4


@pytest.mark.parametrize("dtype", list(RANDOM_WITHIN), ids=dtype_name)
def test_reduced_precision_margins_of_random_weights_stay_near_the_exact_ones(model: Model, dtype: torch.dtype):
    assert rms_error(flat(model.ours(dtype_name(dtype))), flat(model.exact)) <= RANDOM_WITHIN[dtype]


def test_float32_margins_and_rankings_of_tiny_equal_transformers_on_real_questions(tiny: Model):
    ours = tiny.ours("float32")
    assert largest_distance(ours, tiny.exact) <= 1e-4
    for ratio in tiny.ratios:
        assert rankings(ours[ratio]) == rankings(tiny.exact[ratio])


def test_bfloat16_margins_of_tiny_are_as_near_the_exact_ones_as_transformers_own(tiny_few: Model):
    exact, theirs = flat(tiny_few.exact), flat(tiny_few.half)
    assert rms_error(flat(tiny_few.ours("bfloat16")), exact) <= BFLOAT16_TIMES * rms_error(theirs, exact)


def test_int8_margins_of_tiny_keep_the_rankings_of_real_questions(tiny: Model, tiny_few: Model):
    ours, exact = tiny.ours("int8"), flat(tiny_few.exact)
    theirs = rms_error(flat(tiny_few.half), exact)
    assert rms_error(flat(ours)[: len(exact)], exact) <= INT8_TIMES * theirs
    for ratio in tiny.ratios:
        pairs = list(zip(rankings(ours[ratio]), rankings(tiny.exact[ratio]), strict=True))
        assert sum(left[0] == right[0] for left, right in pairs) >= QUESTIONS - 2
        assert mean([kendall(left, right) for left, right in pairs]) >= 0.96
        assert min(kendall(left, right) for left, right in pairs) >= 0.9
