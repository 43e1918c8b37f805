"""The languages of a corpus, found in its first lines before anything is built. Knows nothing of indexes."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable, Iterator

from indexer.corpus.values import CorpusLine, RejectedLine
from kalm_cache.errors import CorpusError
from kalm_cache.languages import AUTO, languages_of, only_english
from kalm_cache.settings import Settings

logger = logging.getLogger(__name__)
READ_CHARS = 8 << 20  # of the corpus, at most: what is read before the build waits in memory
LINE_CHARS = 100  # what a line takes beside its text
SAMPLED = 500  # passages of these, evenly spread


def with_language(
    lines: Iterable[CorpusLine | RejectedLine], settings: Settings
) -> tuple[Settings, Iterable[CorpusLine | RejectedLine]]:
    """Settings whose `language` is no longer `auto`, and the same lines from their beginning.

    Logs what was found, and a warning for the model and the embedder where they know English alone.
    """
    if settings.language == AUTO:
        read, lines = _beginning(lines)
        texts = [line.passage.text for line in read if isinstance(line, CorpusLine)]
        language = languages_of(texts[:: max(1, len(texts) // SAMPLED)])
        logger.info("language: %s, by the first %d passages; --language names another", language, len(texts))
        settings, lines = settings.model_copy(update={"language": language}), _put_back(read, lines)
    for problem in only_english(settings.model, settings.embedder, settings.language):
        logger.warning("%s", problem)
    return settings, lines


def _put_back(
    read: deque[CorpusLine | RejectedLine], others: Iterable[CorpusLine | RejectedLine]
) -> Iterator[CorpusLine | RejectedLine]:
    """All of them in order; what is taken no longer waits in memory."""
    while read:
        yield read.popleft()
    yield from others


def _beginning(
    lines: Iterable[CorpusLine | RejectedLine],
) -> tuple[deque[CorpusLine | RejectedLine], Iterable[CorpusLine | RejectedLine]]:
    """The first lines, and the others. Where the corpus breaks off among the first, the others are its error."""
    others, read, chars = iter(lines), deque[CorpusLine | RejectedLine](), 0
    try:
        for line in others:
            read.append(line)
            chars += LINE_CHARS + len(line.passage.text if isinstance(line, CorpusLine) else line.raw)
            if chars >= READ_CHARS:
                break
    except CorpusError as exc:
        others = _broken(exc)
    return read, others


def _broken(problem: CorpusError) -> Iterator[CorpusLine | RejectedLine]:
    raise problem
    yield
