"""Vectors of a model2vec folder against those of model2vec itself, to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from model2vec import StaticModel
from tokenizers import Tokenizer
from tokenizers.models import Unigram, WordLevel
from tokenizers.pre_tokenizers import Whitespace

from kalm_cache.first_stage.embedders.embedder import BUNDLED_STATIC
from kalm_cache.first_stage.embedders.static_model import read_static_model

WORDS = ("[UNK]", "cat", "dog", "fish", "elephants")
TEXTS = ["cat", "dog fish", "fish dog", "", "zebra", "elephants and a cat", "cat " * 40, "cat " * 3 + "dog " * 90]
VECTORS = np.random.default_rng(0).normal(0, 40, (len(WORDS), 6))
WEIGHTS, MAPPING = np.linspace(0.1, 0.9, len(WORDS)), np.array([0, 2, 1, 1, 2])


def word_level() -> Tokenizer:
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    return tokenizer


def unigram() -> Tokenizer:
    return Tokenizer(Unigram([(word, -float(i)) for i, word in enumerate(WORDS)], unk_id=0))


@pytest.mark.parametrize(
    ("tokenizer", "dtype", "options"),
    [
        (word_level, np.float32, {}),
        (word_level, np.float32, {"normalize": True, "max_length": 7}),
        (word_level, np.float16, {"normalize": True, "max_length": None}),
        (word_level, np.int8, {"weights": WEIGHTS}),
        (word_level, np.float32, {"weights": WEIGHTS.astype(np.float32), "token_mapping": MAPPING}),
        (unigram, np.float32, {"normalize": True}),
    ],
)
def test_vectors_are_those_of_model2vec(tokenizer: Any, dtype: Any, options: dict[str, Any], tmp_path: Path) -> None:
    theirs = StaticModel(VECTORS.astype(dtype), tokenizer(), **options)
    theirs.save_pretrained(tmp_path)
    expected = StaticModel.from_pretrained(tmp_path).encode(TEXTS, use_multiprocessing=False)
    vectors = read_static_model(tmp_path).encode(TEXTS)
    assert vectors.dtype == expected.dtype
    assert vectors.tolist() == expected.tolist()
    assert np.abs(vectors).max() > 0


def test_vectors_of_the_bundled_model_are_those_of_model2vec() -> None:
    texts = ["Who was the V&A's first director?", "naïve café 東京 ☃", "x" * 3000, "a long text, cut " * 700]
    expected = StaticModel.from_pretrained(BUNDLED_STATIC).encode(texts)
    assert read_static_model(BUNDLED_STATIC).encode(texts).tolist() == expected.tolist()
