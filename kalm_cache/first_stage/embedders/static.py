"""The model2vec embedder: the mean of static token vectors. Needs no GPU and no network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from kalm_cache.errors import CheckpointError
from kalm_cache.first_stage.embedders.digest import model_digest
from kalm_cache.first_stage.embedders.vectors import l2_normalise
from kalm_cache.first_stage.normalisation import normalised
from kalm_cache.process.system import one_line

if TYPE_CHECKING:
    from kalm_cache.first_stage.embedders.static_model import StaticModel

MODEL_FILES = ("config.json", "model.safetensors", "tokenizer.json")  # what `StaticModel.save_pretrained` writes
UNKNOWN = "\u2603 \u0378"  # what few vocabularies have


class StaticEmbedder:
    """An `Embedder` over a model2vec model."""

    def __init__(self, model: StaticModel, digest: str, *, query_prompt: str, passage_prompt: str) -> None:
        self._model = model
        self._query_prompt = query_prompt
        self._passage_prompt = passage_prompt
        self.dimension = int(model.vectors.shape[1])
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
        return l2_normalise(self._model.encode(texts))


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


def load_static(folder: Path, *, query_prompt: str, passage_prompt: str) -> StaticEmbedder:
    """Load the model2vec model in `folder`.

    Raises:
        CheckpointError: the folder's files do not make a model2vec model.
    """
    from kalm_cache.first_stage.embedders.static_model import read_static_model

    try:
        model = read_static_model(folder)
        model.encode(["a", UNKNOWN])  # no token for what is not known, a limit that cannot be
    except Exception as exc:  # tokenizers raises bare Exception
        raise CheckpointError(f"{folder} is not a model2vec model: {one_line(exc)}") from exc
    files = [folder / name for name in MODEL_FILES]
    digest = model_digest(folder, files, query_prompt=query_prompt, passage_prompt=passage_prompt)
    return StaticEmbedder(model, digest, query_prompt=query_prompt, passage_prompt=passage_prompt)
