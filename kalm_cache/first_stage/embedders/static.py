"""The model2vec embedder: the mean of static token vectors. Needs no GPU and no network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from kalm_cache.errors import CheckpointError
from kalm_cache.first_stage.embedders.digest import model_digest
from kalm_cache.first_stage.embedders.vectors import l2_normalise
from kalm_cache.first_stage.normalisation import normalised
from kalm_cache.foreign_files import read_json_object
from kalm_cache.system import one_line

if TYPE_CHECKING:
    from model2vec import StaticModel

UNKNOWN = "\u2603 \u0378"  # what few vocabularies have
MODEL_FILES = ("config.json", "model.safetensors", "tokenizer.json")  # what `StaticModel.save_pretrained` writes


class StaticEmbedder:
    """An `Embedder` over a model2vec model."""

    def __init__(self, model: StaticModel, digest: str, *, query_prompt: str, passage_prompt: str) -> None:
        self._model = model
        self._lock = Lock()  # encode() reconfigures its tokenizer, which older tokenizers refuse while another encodes
        self._query_prompt = query_prompt
        self._passage_prompt = passage_prompt
        self.dimension = int(model.dim)
        self.digest = digest

    def embed_queries(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Texts (n,) -> vectors (n, E) float32 of length 1 or 0."""
        return self._embed([self._query_prompt + normalised(text) for text in texts])

    def embed_passages(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Texts (n,) -> vectors (n, E) float32 of length 1 or 0."""
        return self._embed([self._passage_prompt + normalised(text) for text in texts])

    def _embed(self, texts: list[str]) -> NDArray[np.float32]:
        if not texts:
            return np.empty((0, self.dimension), np.float32)
        with self._lock:
            vectors = self._model.encode(texts, use_multiprocessing=False)
        return l2_normalise(vectors)


def is_static_folder(folder: Path) -> bool:
    """Whether the folder holds a model2vec model: its three files, with a tensor called `embeddings`."""
    if not all((folder / name).is_file() for name in MODEL_FILES):
        return False
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(folder / "model.safetensors", framework="np") as tensors:
            return "embeddings" in tensors.keys()  # noqa: SIM118 (the handle is not a dict)
    except SafetensorError as exc:
        raise CheckpointError(f"{folder / 'model.safetensors'} cannot be read: {one_line(exc)}") from exc


def _check_tokens(folder: Path) -> None:
    """Raise `ValueError` where the tokenizer gives ids without a vector: model2vec takes memory up to the highest."""
    from safetensors import safe_open
    from tokenizers import Tokenizer

    highest = max(Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab().values())
    with safe_open(folder / "model.safetensors", framework="np") as tensors:
        name = "mapping" if "mapping" in tensors.keys() else "embeddings"  # noqa: SIM118 (the handle is not a dict)
        rows = tensors.get_slice(name).get_shape()[0]
    if highest >= rows:
        raise ValueError(f"{name} for {rows} tokens, the tokenizer gives {highest + 1}")


def _check_vectors(model: StaticModel) -> None:
    """Raise `ValueError` where a token that the tokenizer gives has no vector, or vectors are no rows of numbers."""
    vectors, tokens = model.embedding, max(model.tokenizer.get_vocab().values()) + 1
    if vectors.ndim != 2 or not vectors.size or not np.isfinite(vectors).all():
        raise ValueError(f"embeddings of shape {vectors.shape}: expected rows (tokens, width) of finite numbers")
    rows = np.arange(len(vectors)) if model.token_mapping is None else model.token_mapping
    if rows.ndim != 1 or rows.dtype.kind not in "iu" or len(rows) < tokens or rows.min() < 0:
        raise ValueError(f"embeddings for {len(rows)} tokens, the tokenizer gives {tokens}")
    if rows.max() >= len(vectors):
        raise ValueError(f"mapping leads to row {rows.max()} of {len(vectors)} embeddings")
    if model.weights is not None and (model.weights.ndim != 1 or len(model.weights) < tokens):
        raise ValueError(f"weights of shape {model.weights.shape}, the tokenizer gives {tokens} tokens")


def load_static(folder: Path, *, query_prompt: str, passage_prompt: str) -> StaticEmbedder:
    """Load the model2vec model in `folder`.

    Raises:
        CheckpointError: the folder's files do not make a model2vec model.
    """
    from model2vec import StaticModel

    try:
        read_json_object(folder / "config.json")  # bounded; model2vec reads it as it is
        _check_tokens(folder)
        model = StaticModel.from_pretrained(folder)
        _check_vectors(model)
        model.encode(
            ["a", UNKNOWN], use_multiprocessing=False
        )  # no token for what is not known, a limit that cannot be
    except Exception as exc:  # model2vec and tokenizers raise many kinds, bare Exception among them
        raise CheckpointError(f"{folder} is not a model2vec model: {one_line(exc)}") from exc
    files = [folder / name for name in MODEL_FILES]
    digest = model_digest(folder, files, query_prompt=query_prompt, passage_prompt=passage_prompt)
    return StaticEmbedder(model, digest, query_prompt=query_prompt, passage_prompt=passage_prompt)
