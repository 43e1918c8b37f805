"""The first stage of an earlier generation, so that copied passages are neither embedded nor analysed again.

Its files have no checksums within, so that each is compared with its receipt first: what is copied gets a new one.
"""

from __future__ import annotations

import logging
from pathlib import Path

from indexer.reuse.origins import Vectors
from kalm_cache.errors import IndexMismatchError, StoreError
from kalm_cache.first_stage import BM25Index, CollectionStatistics, DenseIndex
from kalm_cache.first_stage.bm25.analysis import PLAIN, Analysis
from kalm_cache.first_stage.bm25.bm25_index import FOLDER_NAME
from kalm_cache.first_stage.dense.dense_index import FILE_NAME
from kalm_cache.generations.generation import Generation, segment_folder

logger = logging.getLogger(__name__)


def source_vectors(generation: Generation, *, inexact: bool = False) -> Vectors | None:
    """The vectors of a published generation, if its dense index keeps them as they were made and its file is valid.

    Vectors of texts that were not in their normal form will do where the generation keeps none to embed again.
    `inexact`: 8 bits a dimension will do, since there is no text to embed again.
    """
    path = generation.segment / "first_stage" / FILE_NAME
    try:
        _require_valid(generation, path)
        index = DenseIndex.open(path.parent)
    except (OSError, StoreError) as exc:
        logger.warning("no vectors are copied from generation %s: %s", generation.manifest.generation, exc)
        return None
    outdated = not index.normalised and generation.manifest.fingerprint.store_text
    return index.vectors if (index.exact or inexact) and not outdated else None


def base_statistics(generation: Generation) -> CollectionStatistics | None:
    """What BM25 knows of the collection: the statistics of the base, all its shards together.

    `None` where there is no BM25. Raises `StoreError` when a file cannot be read.
    """
    if not generation.manifest.fingerprint.bm25:
        return None
    names = [segment.name for segment in generation.manifest.base]
    return BM25Index.collection([segment_folder(generation.folder, name) / "first_stage" for name in names])


def source_postings(generation: Generation, analysis: Analysis) -> BM25Index | None:
    """The BM25 index of a published generation, if its files are valid and its documents were analysed so.

    One whose words are not in their normal form will do where the generation keeps no texts to analyse again.
    """
    folder = generation.segment / "first_stage"
    if not generation.manifest.fingerprint.bm25:
        return None
    try:
        index = BM25Index.open(folder)
        for path in (folder / FOLDER_NAME).iterdir():
            _require_valid(generation, path)
    except (OSError, StoreError, IndexMismatchError) as exc:
        logger.warning("no postings are copied from generation %s: %s", generation.manifest.generation, exc)
        return None
    may_differ = analysis == PLAIN and not index.normalised and not generation.manifest.fingerprint.store_text
    return index if index.has_counts and (index.analysis == analysis or may_differ) else None


def _require_valid(generation: Generation, path: Path) -> None:
    receipt = generation.manifest.files.get(path.relative_to(generation.folder).as_posix())
    if receipt is None or not receipt.has_digest_of(path):
        raise StoreError(f"{path}: its SHA-256 is not that of its receipt")
