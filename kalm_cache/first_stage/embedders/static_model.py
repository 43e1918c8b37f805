"""A model2vec model from its files, and the mean of its token vectors. Knows nothing of prompts, digests or indexes.

The files and the arithmetic are those of model2vec 0.10 (`StaticModel.encode`), to the bit. Its package is not
imported: it imports a model hub's client, which takes a search more time than its decoder.
"""

from __future__ import annotations

import functools
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from kalm_cache.foreign_files import read_json_object

BATCH = 1024  # texts tokenised together
MAX_LENGTH = 512  # where the configuration says nothing


@dataclass(frozen=True)
class StaticModel:
    """Vectors of tokens. Safe to use from several threads.

    vectors (R, E) of any dtype; mapping (V,): the row of each token id, `None`: the id itself; weights (V,) of ids.
    `max_length`: tokens of a text that count, `None`: all; `normalize`: means are scaled to length 1.
    """

    tokenizer: Tokenizer
    vectors: NDArray[Any]
    mapping: NDArray[Any] | None
    weights: NDArray[Any] | None
    max_length: int | None
    unknown_id: int | None
    normalize: bool

    def encode(self, texts: Sequence[str]) -> NDArray[Any]:
        """Texts (n,) -> the means (n, E) of their tokens' vectors; zeros for a text without known tokens."""
        counted = [self._counted(text) for text in texts]
        batches = [counted[start : start + BATCH] for start in range(0, len(counted), BATCH)]
        means = np.concatenate([self._means(self._ids(batch)) for batch in batches])
        if not self.normalize:
            return means
        rows = means.astype(np.float32)
        lengths = np.linalg.norm(rows, axis=1, keepdims=True) + 1e-32
        return np.asarray(rows / lengths, means.dtype)

    def _counted(self, text: str) -> str:
        """model2vec cuts a text before it is tokenised: tokens that count × the median length of a token."""
        if self.max_length is None or len(text) <= self.max_length:
            return text
        return text[: self.max_length * self._median_chars]

    @functools.cached_property
    def _median_chars(self) -> int:
        return int(np.median([len(token) for token in self.tokenizer.get_vocab()]))

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        encoded = self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [[token for token in encoding.ids if token != self.unknown_id] for encoding in encoded]

    def _means(self, ids: list[list[int]]) -> NDArray[Any]:
        dtype = np.dtype(np.float32) if self.vectors.dtype == np.int8 else self.vectors.dtype
        means = np.zeros((len(ids), self.vectors.shape[1]), dtype)  # (n, E)
        of_length: dict[int, list[int]] = defaultdict(list)
        for i, each in enumerate(ids):
            of_length[len(each)].append(i)
        for length, texts in of_length.items():
            if length:
                tokens = np.array([ids[i] for i in texts], np.int64)  # (m, length)
                rows = tokens if self.mapping is None else self.mapping[tokens]
                vectors = self.vectors[rows]  # (m, length, E)
                if self.weights is not None:
                    vectors = vectors * self.weights[tokens][..., None]
                means[texts] = vectors.mean(axis=1)
        return means


def read_static_model(folder: Path) -> StaticModel:
    """The model of a folder.

    Raises:
        ValueError: tokenizer, vectors and configuration do not fit each other.
        Exception: a file cannot be read; safetensors and tokenizers raise many kinds.
    """
    config, tokenizer = read_json_object(folder / "config.json"), Tokenizer.from_file(str(folder / "tokenizer.json"))
    vectors, mapping, weights = _tensors(folder / "model.safetensors")
    _check(tokenizer, vectors, mapping, weights)
    max_length = config.get("max_length", MAX_LENGTH)
    tokenizer.no_padding()
    if max_length is None:
        tokenizer.no_truncation()
    else:
        tokenizer.enable_truncation(max_length)
    normalize = bool(config.get("normalize", False))
    return StaticModel(tokenizer, vectors, mapping, weights, max_length, _unknown_id(tokenizer), normalize)


def _tensors(file: Path) -> tuple[NDArray[Any], NDArray[Any] | None, NDArray[Any] | None]:
    from safetensors import safe_open

    with safe_open(file, framework="np") as tensors:
        names = set(tensors.keys())
        others = [tensors.get_tensor(name) if name in names else None for name in ("mapping", "weights")]
        return tensors.get_tensor("embeddings"), others[0], others[1]


def _check(
    tokenizer: Tokenizer, vectors: NDArray[Any], mapping: NDArray[Any] | None, weights: NDArray[Any] | None
) -> None:
    """Raise `ValueError` where a token that the tokenizer gives has no vector, or vectors are no rows of numbers."""
    tokens = max(tokenizer.get_vocab().values()) + 1
    if vectors.ndim != 2 or not vectors.size or not np.isfinite(vectors).all():
        raise ValueError(f"embeddings of shape {vectors.shape}: expected rows (tokens, width) of finite numbers")
    if mapping is None and len(vectors) != tokens:
        raise ValueError(f"embeddings for {len(vectors)} tokens, the tokenizer gives {tokens}")
    if mapping is not None:
        _check_mapping(mapping, len(vectors), tokens)
    if weights is not None and (weights.ndim != 1 or len(weights) < tokens):
        raise ValueError(f"weights of shape {weights.shape}, the tokenizer gives {tokens} tokens")


def _check_mapping(mapping: NDArray[Any], rows: int, tokens: int) -> None:
    if mapping.ndim != 1 or mapping.dtype.kind not in "iu" or len(mapping) < tokens:
        raise ValueError(f"mapping for {len(mapping)} tokens, the tokenizer gives {tokens}")
    if mapping.min() < 0 or mapping.max() >= rows:
        raise ValueError(f"mapping leads to row {mapping.max() if mapping.min() >= 0 else mapping.min()} of {rows}")


def _unknown_id(tokenizer: Tokenizer) -> int | None:
    model = tokenizer.model
    if hasattr(model, "unk_token"):  # WordPiece, BPE, WordLevel
        return None if model.unk_token is None else tokenizer.token_to_id(model.unk_token)
    unknown: int | None = json.loads(tokenizer.to_str())["model"].get("unk_id")  # Unigram
    return unknown
