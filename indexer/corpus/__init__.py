"""Corpus files → passages, one at a time, in constant memory. Knows nothing of tokens, models or duplicate ids."""

from __future__ import annotations

from indexer.corpus.layout import TableFormat
from indexer.corpus.reader import read_corpus
from indexer.corpus.typed_metadata import TypedMetadata
from indexer.corpus.unused_fields import UnusedFields
from indexer.corpus.values import CorpusLine, RejectedLine

__all__ = ["CorpusLine", "RejectedLine", "TableFormat", "TypedMetadata", "UnusedFields", "read_corpus"]
