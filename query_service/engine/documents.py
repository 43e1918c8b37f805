"""Raw documents → pooled states, for passages that the index does not hold. Knows nothing of queries or of HTTP."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from threading import Lock

from kalm_cache.errors import IndexMismatchError
from kalm_cache.index.passage_index import PassageIndex
from kalm_cache.model.checkpoint import open_checkpoint
from kalm_cache.model.prompts import CutSide, Tokens
from kalm_cache.scoring.passage_side import PassageSide, load_passage_side
from kalm_cache.scoring.pooling import PooledPassage

logger = logging.getLogger(__name__)


class DocumentEncoder:
    """The encoder of the index's model. It loads on first use: until then the service is a decoder alone."""

    def __init__(
        self, index: PassageIndex, model: str | None = None, *, reuse_from: DocumentEncoder | None = None
    ) -> None:
        """Treat documents as the index's job treated its passages.

        Args:
            index: whose model and settings hold.
            model: where the model lies; `None` = what the manifest names.
            reuse_from: of an earlier generation: its weights are used again where the model is the same.
        """
        self._index = index
        self._model = model or index.generation.manifest.model
        self._passage_side = reuse_from._for(index) if reuse_from else None
        self._lock = Lock()

    @property
    def loaded(self) -> bool:
        """Whether the weights are in memory."""
        return self._passage_side is not None

    def tokenize(
        self, texts: Sequence[str], max_length: int | None = None, cut_side: CutSide = "right"
    ) -> list[Tokens]:
        """The tokens of each text that count; `max_length` may be below the index's. The first call loads the encoder.

        Raises:
            CheckpointError: the model is missing or incomplete.
            IndexMismatchError: it is no longer the model that built the index.
        """
        side = self._load()
        side = replace(side, max_length=min(max_length or side.max_length, side.max_length))
        return side.tokenize(texts, cut_side)

    def encode(self, batch: Sequence[Tokens], chunk_size: int | None = None) -> list[PooledPassage]:
        """The pooled states of one batch, in its order. Raises as `tokenize`."""
        side = self._load()
        states = replace(side, chunk_size=chunk_size or side.chunk_size).encode(batch)
        return [
            PooledPassage(len(tokens.ids), tokens.truncated, pooled)
            for tokens, pooled in zip(batch, states, strict=True)
        ]

    def _for(self, index: PassageIndex) -> PassageSide | None:
        """The loaded weights with another index's settings, where these were made by the same model."""
        ours, theirs = self._index.generation.manifest.fingerprint, index.generation.manifest.fingerprint
        if self._passage_side is None or ours.model != theirs.model:
            return None
        return replace(self._passage_side, max_length=theirs.max_length, chunk_size=index.chunk_size)

    def _load(self) -> PassageSide:
        with self._lock:
            if self._passage_side is None:
                self._passage_side = self._open()
                logger.info("loaded the encoder of %s: this service now encodes raw documents", self._model)
            return self._passage_side

    def _open(self) -> PassageSide:
        built = self._index.generation.manifest.fingerprint
        checkpoint = open_checkpoint(self._model)
        digest = checkpoint.digest()
        if digest != built.model:
            raise IndexMismatchError(
                f"the index was built with a model of digest {built.model[:12]}…, but {self._model!r} now has digest "
                f"{digest[:12]}…; restart the service with the model that built the index"
            )
        query_side = self._index.query_side
        return load_passage_side(
            checkpoint,
            device=query_side.device,
            dtype=query_side.dtype,
            max_length=built.max_length,
            chunk_size=self._index.chunk_size,
            tokenizer=query_side.tokenizer,
        )
