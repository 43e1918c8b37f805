"""Small real models for the first stage."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

STATIC_VECTORS = np.array([[0, 0], [3, 4], [0, 2], [-1, 0]], np.float32)  # [UNK], cat, dog, fish


@pytest.fixture
def static_folder(tmp_path: Path) -> Path:
    """A model2vec model of three words in two dimensions."""
    from model2vec import StaticModel
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    tokenizer = Tokenizer(WordLevel({"[UNK]": 0, "cat": 1, "dog": 2, "fish": 3}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    folder = tmp_path / "static"
    StaticModel(STATIC_VECTORS, tokenizer).save_pretrained(folder)
    return folder
