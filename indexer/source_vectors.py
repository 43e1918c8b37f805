"""The first stage's vectors of an earlier generation, so that copied passages are not embedded again."""

from __future__ import annotations

import logging

from indexer.origins import Vectors
from kalm_cache.durable import file_digest
from kalm_cache.errors import StoreError
from kalm_cache.first_stage import DenseIndex
from kalm_cache.first_stage.dense import FILE_NAME
from kalm_cache.generation import Generation

logger = logging.getLogger(__name__)


def source_vectors(generation: Generation, *, inexact: bool = False) -> Vectors | None:
    """The vectors of a published generation, if its dense index keeps them as they were made and its file is whole.

    `inexact`: what 8 bits a number keep of them will do, since there is no text to embed again.
    They have no checksums of their own, so that the file's is compared first: what is copied gets a new one.
    """
    path = generation.shard / "first_stage" / FILE_NAME
    receipt = generation.manifest.files.get(path.relative_to(generation.folder).as_posix())
    try:
        if receipt is None or file_digest(path) != receipt.sha256:
            raise StoreError(f"{path}: its SHA-256 is not that of its receipt")
        index = DenseIndex.open(path.parent)
    except (OSError, StoreError) as exc:
        logger.warning("no vectors are copied from generation %s: %s", generation.manifest.generation, exc)
        return None
    return index.vectors if index.exact or inexact else None
