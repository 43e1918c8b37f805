"""A source name → the files to read, each with its format and compression. Opens no file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kalm_cache.errors import CorpusError
from kalm_cache.system import describe
from kalm_cache.text.streams import COMPRESSIONS, Compression

Format = Literal["jsonl", "tsv", "csv", "parquet"]

_FORMATS: dict[str, Format] = {
    ".jsonl": "jsonl",
    ".jsonlines": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".tsv": "tsv",
    ".csv": "csv",
    ".parquet": "parquet",
}
_ACCEPTED = f"{', '.join(_FORMATS)}; all but .parquet also with {', '.join(COMPRESSIONS)}"


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One file of a corpus and how to read it; `compression` is None for plain bytes and for Parquet."""

    path: Path
    format: Format
    compression: Compression | None


def find_files(source: Path) -> list[SourceFile]:
    """The file itself, or the folder's files in sorted order; hidden files and other suffixes are left out.

    In a folder laid out as BEIR does (corpus.jsonl beside queries.jsonl or qrels/) only corpus.* counts.

    Raises:
        CorpusError: the source is missing, cannot be listed, has an unknown suffix or holds no corpus file.
    """
    try:
        return _files_of_folder(source) if source.is_dir() else [_single_file(source)]
    except OSError as exc:
        raise CorpusError(f"cannot list {describe(exc)}") from exc


def _single_file(path: Path) -> SourceFile:
    if not path.exists():
        raise CorpusError(f"{path} does not exist; give a file, a folder, or - for standard input")
    if (file := _recognise(path)) is None:
        raise CorpusError(f"{path}: unknown suffix; accepted are {_ACCEPTED}, or - for JSON lines on standard input")
    return file


def _files_of_folder(folder: Path) -> list[SourceFile]:
    files = list(_walk(folder))
    if not files:
        raise CorpusError(f"{folder} holds no corpus file; accepted suffixes are {_ACCEPTED}")
    return files


def _walk(folder: Path) -> Iterator[SourceFile]:
    children = sorted(child for child in folder.iterdir() if not child.name.startswith("."))
    files = [file for child in children if child.is_file() and (file := _recognise(child))]
    if beir_corpus := _beir_corpus(children, files):
        yield from beir_corpus
        return
    recognised = {file.path: file for file in files}
    for child in children:
        if child in recognised:
            yield recognised[child]
        elif child.is_dir() and not child.is_symlink():  # a link to a parent would never end
            yield from _walk(child)


def _beir_corpus(children: list[Path], files: list[SourceFile]) -> list[SourceFile]:
    named = [(file.path.name.split(".")[0], file) for file in files]
    is_beir = any(stem == "queries" for stem, _ in named) or any(child.name == "qrels" for child in children)
    return [file for stem, file in named if stem == "corpus"] if is_beir else []


def _recognise(path: Path) -> SourceFile | None:
    inner = Path(path.name.lower())
    compression = COMPRESSIONS.get(inner.suffix)
    if compression is not None:
        inner = inner.with_suffix("")
    format_ = _FORMATS.get(inner.suffix)
    if format_ is None or (format_ == "parquet" and compression is not None):
        return None
    return SourceFile(path, format_, compression)
