"""A source name → the files to read, from a folder or an object store. Opens none of them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from indexer.corpus.files.find_objects import find_objects
from indexer.corpus.files.kinds import ACCEPTED, corpus_files, kind_of
from indexer.corpus.files.source_file import SourceFile
from kalm_cache.errors import CorpusError
from kalm_cache.object_store.location import is_remote
from kalm_cache.process.system import describe
from kalm_cache.text.streams import open_path


def find_files(source: str | Path) -> list[SourceFile]:
    """The file itself, or the corpus files of a folder or below a URL, in sorted order, as `corpus_files` has it.

    Raises:
        CorpusError: the source is missing, cannot be listed, has an unknown suffix or holds no corpus file.
        UsageError: the URL cannot be one.
        StoreError: the object store fails.
        MissingExtraError: it is a URL, and obstore is not installed.
    """
    if isinstance(source, str) and is_remote(source):
        return find_objects(source)
    path = Path(source)
    try:
        return _files_of_folder(path) if path.is_dir() else [_single_file(path)]
    except OSError as exc:
        raise CorpusError(f"cannot list {describe(exc)}") from exc


def _single_file(path: Path) -> SourceFile:
    if not path.exists():
        raise CorpusError(f"{path} does not exist; give a file, a folder, or - for standard input")
    kind = kind_of(path.name)
    if kind is None:
        raise CorpusError(f"{path}: unknown suffix; accepted are {ACCEPTED}, or - for JSON lines on standard input")
    return SourceFile(str(path), kind, partial(open_path, path))


def _files_of_folder(folder: Path) -> list[SourceFile]:
    found = [folder / path for path in corpus_files(_walk(folder))]
    files = [_single_file(path) for path in found if path.is_file()]
    if not files:
        raise CorpusError(f"{folder} holds no corpus file; accepted suffixes are {ACCEPTED}")
    return files


def _walk(folder: Path) -> Iterator[Path]:
    """Every file below a folder, relative to it. Links to folders are not followed: one to a parent would never end."""

    def give_up(error: OSError) -> None:
        raise error

    for parent, folders, names in os.walk(folder, onerror=give_up):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(parent, name).relative_to(folder) for name in names)
