"""The indexes that `kalm-cache eval` measures: one for each collection, built once."""

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
    from kalm_cache.passage import Passage, PassageTemplate
    from kalm_cache.settings import Settings

Corpus = Path | Callable[["PassageTemplate"], Iterable["Passage"]]
logger = logging.getLogger(__name__)


class EvaluationIndexes:
    """Indexes with the same settings, one folder each. The models are loaded once, at the first use."""

    def __init__(self, settings: Settings, chunk_sizes: Sequence[int]) -> None:
        """`chunk_sizes`: all that the indexes must serve; states are stored at their greatest common divisor."""
        self.settings = settings.model_copy(update={"chunk_size": math.gcd(*chunk_sizes)})
        self._chunk_sizes = chunk_sizes
        self._latest: PassageIndex | None = None

    @cached_property
    def _template(self) -> PassageTemplate:
        from kalm_cache.passage import PassageTemplate

        return PassageTemplate(self.settings.passage_template)

    @cached_property
    def encoders(self) -> Encoders:
        """The passage side and the embedder."""
        from indexer.build.index_job import load_encoders

        return load_encoders(self.settings)

    def open(self, name: str, corpus: Corpus, folder: Path) -> PassageIndex:
        """The opened index of a corpus, built first unless `folder` has one that fits. The caller closes it.

        Args:
            name: of the corpus, in log lines.
            corpus: a file or folder that `kalm-cache index` takes, or a function that yields the passages.
            folder: where the index is or goes.
        """
        from kalm_cache.index.passage_index import PassageIndex

        if self._fits(folder):
            logger.info("using the index in %s as it is; remove it to index again", folder)
        else:
            self._build(name, corpus, folder)
        self._latest = PassageIndex.open(
            folder,
            decoder=self.settings.model,
            device=self.settings.device,
            dtype=self.settings.dtype,
            query_max_length=self.settings.query_max_length,
            reuse_from=self._latest,  # even closed: its decoder and embedder are used again
        )
        return self._latest

    def _fits(self, folder: Path) -> bool:
        """Whether the live generation has these settings, and all chunk sizes are multiples of its own."""
        from kalm_cache.generations.generation import open_current

        try:
            manifest = open_current(folder).updated(self.encoders.checkpoint).manifest
        except KalmCacheError:  # no index there, or a damaged one
            return False
        stored = manifest.fingerprint
        same = (
            manifest.passage_template == self.settings.passage_template
            and replace(stored, chunk_size=self.settings.chunk_size) == self.encoders.fingerprint
        )
        return same and all(chunk_size % stored.chunk_size == 0 for chunk_size in self._chunk_sizes)

    def _build(self, name: str, corpus: Corpus, folder: Path) -> None:
        from indexer.build.index_job import run_index_job

        total = sum(1 for _ in _lines(name, corpus, self._template)) if isinstance(corpus, Path) else None
        with show_progress(total) as on_progress:
            run_index_job(
                _lines(name, corpus, self._template),
                folder,
                self.settings,
                self.encoders,
                on_reject=lambda line: logger.warning("rejected %s: %s", line.location, line.reason),
                on_progress=on_progress,
            )


def _lines(name: str, corpus: Corpus, template: PassageTemplate) -> Iterable[CorpusLine | RejectedLine]:
    from indexer.corpus import CorpusLine, read_corpus

    if isinstance(corpus, Path):
        yield from read_corpus(corpus, template=template)
    else:
        for line, passage in enumerate(corpus(template), start=1):
            yield CorpusLine(passage, f"{name}:{line}")
