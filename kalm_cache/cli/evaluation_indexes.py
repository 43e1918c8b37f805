"""The indexes that `kalm-cache eval` measures: built once for each collection, and used again."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from kalm_cache.cli.progress import show_progress
from kalm_cache.errors import KalmCacheError

if TYPE_CHECKING:
    from indexer.build.index_job import Encoders
    from indexer.corpus import CorpusLine, RejectedLine
    from kalm_cache.index.passage_index import PassageIndex
    from kalm_cache.passage import Passage
    from kalm_cache.settings import Settings

Corpus = Path | Callable[[], Iterable["Passage"]]
logger = logging.getLogger(__name__)


class EvaluationIndexes:
    """Indexes of one group of settings, one folder each. The models are loaded once, when the first is needed."""

    def __init__(self, settings: Settings, chunk_sizes: Sequence[int]) -> None:
        """`chunk_sizes`: those that the indexes must serve; they are stored at their greatest common divisor."""
        self.settings = settings.model_copy(update={"chunk_size": math.gcd(*chunk_sizes)})
        self._chunk_sizes = chunk_sizes
        self._latest: PassageIndex | None = None

    @cached_property
    def encoders(self) -> Encoders:
        """The passage side and the embedder."""
        from indexer.build.index_job import load_encoders

        return load_encoders(self.settings)

    def open(self, name: str, corpus: Corpus, folder: Path) -> PassageIndex:
        """The index of a corpus in `folder`, built first where there is none that serves; whoever asks closes it.

        Args:
            name: what log lines call the corpus.
            corpus: a file or folder that `kalm-cache index` takes, or a function that yields the passages.
            folder: where the index is or goes.
        """
        from kalm_cache.index.passage_index import PassageIndex

        if self._serves(folder):
            logger.info("using the index in %s as it is; remove it to index again", folder)
        else:
            self._build(name, corpus, folder)
        self._latest = PassageIndex.open(
            folder,
            model=self.settings.model,
            device=self.settings.device,
            dtype=self.settings.dtype,
            query_max_length=self.settings.query_max_length,
            reuse_from=self._latest,  # even closed: its decoder and embedder are used again
        )
        return self._latest

    def _serves(self, folder: Path) -> bool:
        """Whether the live generation has these settings, and a chunk size that all ratios are multiples of."""
        from kalm_cache.generations.generation import open_current

        try:
            stored = open_current(folder).manifest.fingerprint
        except KalmCacheError:  # nothing there, or nothing that could be used
            return False
        alike = replace(stored, chunk_size=self.settings.chunk_size) == self.encoders.fingerprint
        return alike and all(chunk_size % stored.chunk_size == 0 for chunk_size in self._chunk_sizes)

    def _build(self, name: str, corpus: Corpus, folder: Path) -> None:
        from indexer.build.index_job import run_index_job

        total = sum(1 for _ in _lines(name, corpus)) if isinstance(corpus, Path) else None
        with show_progress(total) as on_progress:
            run_index_job(
                _lines(name, corpus),
                folder,
                self.settings,
                self.encoders,
                on_reject=lambda line: logger.warning("rejected %s: %s", line.location, line.reason),
                on_progress=on_progress,
            )


def _lines(name: str, corpus: Corpus) -> Iterable[CorpusLine | RejectedLine]:
    from indexer.corpus import CorpusLine, read_corpus

    if isinstance(corpus, Path):
        yield from read_corpus(corpus)
    else:
        for number, passage in enumerate(corpus(), start=1):
            yield CorpusLine(passage, f"{name}:{number}")
