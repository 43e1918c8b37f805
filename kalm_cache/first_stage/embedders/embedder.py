"""Text → vector, for the dense first stage: what an embedder is; `load_embedder` picks the class for a name.

To add an embedder: write a class that follows `Embedder` in a file beside this one, and name it in `load_embedder`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from kalm_cache.errors import CheckpointError
from kalm_cache.first_stage.embedders.sentence_transformer import load_sentence_transformer
from kalm_cache.first_stage.embedders.static import is_static_folder, load_static

BUNDLED_STATIC = Path(__file__).parents[2] / "bundled" / "embedder"


class Embedder(Protocol):
    """A text embedder whose inner product is the similarity. Safe to call from several threads."""

    @property
    def dimension(self) -> int:
        """E, the width of the vectors."""

    @property
    def digest(self) -> str:
        """SHA-256 (hex) over the model's files and the prompts; part of the index's fingerprint."""

    def embed_queries(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Texts (n,) -> vectors (n, E) float32 of length 1, or 0 for a text without known tokens."""

    def embed_passages(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Texts (n,) -> vectors (n, E) float32 of length 1, or 0 for a text without known tokens."""


def load_embedder(
    name: str, *, query_prompt: str = "", passage_prompt: str = "", device: str | None = None
) -> Embedder:
    """Load the embedder called `name`: `"static"` (bundled), a model2vec folder, or a sentence-transformers model.

    A prompt is put in front of each text. Without one, a sentence-transformers model uses those of its own
    configuration, if it has any. `device`: where such a model computes, as torch names it; static ones need none.

    Raises:
        CheckpointError: the folder or the model does not exist or cannot be read.
        MissingExtraError: sentence-transformers is needed and not installed.
    """
    folder = BUNDLED_STATIC if name == "static" else Path(name)
    if is_static_folder(folder):
        return load_static(folder, query_prompt=query_prompt, passage_prompt=passage_prompt)
    if name == "static":
        raise CheckpointError(f"the bundled embedder is missing from {BUNDLED_STATIC}; reinstall kalm-cache")
    return load_sentence_transformer(name, query_prompt=query_prompt, passage_prompt=passage_prompt, device=device)
