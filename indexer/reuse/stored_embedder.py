"""An embedder that loads only if a vector is asked for that is stored nowhere."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from kalm_cache.errors import IndexMismatchError
from kalm_cache.first_stage import DenseIndex, Embedder, load_embedder
from kalm_cache.generations.generation import Generation


class StoredEmbedder:
    """The embedder of a generation, whose vectors are in its first stage."""

    def __init__(self, generation: Generation) -> None:
        self._manifest = generation.manifest
        self._embedder: Embedder | None = None
        self.dimension = DenseIndex.open(generation.segment / "first_stage").dimension
        self.digest = self._manifest.fingerprint.embedder

    def embed_queries(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """See `Embedder.embed_queries`."""
        return self._loaded().embed_queries(texts)

    def embed_passages(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """See `Embedder.embed_passages`. Raises `IndexMismatchError` when the embedder is another one now."""
        return self._loaded().embed_passages(texts)

    def _loaded(self) -> Embedder:
        if self._embedder is None:
            manifest = self._manifest
            self._embedder = load_embedder(
                manifest.embedder,
                query_prompt=manifest.embedder_query_prompt,
                passage_prompt=manifest.embedder_passage_prompt,
            )
            if self._embedder.digest != self.digest:
                raise IndexMismatchError(
                    f"embedder {manifest.embedder!r} is not the one that built generation {manifest.generation}; "
                    "run: kalm-cache reindex CORPUS"
                )
        return self._embedder
