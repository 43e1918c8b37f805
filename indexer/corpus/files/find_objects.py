"""A URL → the corpus files below it in an object store, listed once, each as it is at that moment."""

from __future__ import annotations

from functools import partial
from pathlib import PurePosixPath

from indexer.corpus.files.kinds import ACCEPTED, corpus_files, kind_of
from indexer.corpus.files.source_file import SourceFile
from kalm_cache.errors import CorpusError
from kalm_cache.object_store.backend import Listed
from kalm_cache.object_store.location import parse_location
from kalm_cache.object_store.object_file import open_object
from kalm_cache.object_store.store import ObjectStore, open_store


def find_objects(url: str) -> list[SourceFile]:
    """The object itself, or the corpus files below the URL. Errors as of `find_files`."""
    location = parse_location(url)
    store, name = open_store(location.parent), location.name
    try:
        return [_source_file(store, name, store.info(name))] if name else _files_below(store, name)
    except FileNotFoundError:
        return _files_below(store, name)


def _files_below(store: ObjectStore, folder: str) -> list[SourceFile]:
    listed = store.list(folder)
    paths = {PurePosixPath(path).relative_to(folder): path for path in listed}
    if not paths:
        raise CorpusError(f"{store}/{folder} does not exist; give the URL of a file, or of what lies below a prefix")
    files = [_source_file(store, paths[path], listed[paths[path]]) for path in corpus_files(paths)]
    if not files:
        raise CorpusError(f"{store}/{folder} holds no corpus file; accepted suffixes are {ACCEPTED}")
    return files


def _source_file(store: ObjectStore, path: str, listed: Listed) -> SourceFile:
    kind = kind_of(PurePosixPath(path).name)
    if kind is None:
        raise CorpusError(f"{store}/{path}: unknown suffix; accepted are {ACCEPTED}")
    return SourceFile(f"{store}/{path}", kind, partial(open_object, store, path, listed))
