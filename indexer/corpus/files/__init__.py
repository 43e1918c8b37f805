"""A source name → the corpus files that it stands for, here or in an object store. Knows nothing of what they hold."""

from __future__ import annotations

from indexer.corpus.files.find_files import find_files
from indexer.corpus.files.source_file import SourceFile

__all__ = ["SourceFile", "find_files"]
