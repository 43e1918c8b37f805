"""Paths → which of them are corpus files, and of what kind. Touches no disk."""

from __future__ import annotations

from collections.abc import Iterable, Set
from dataclasses import dataclass
from pathlib import PurePath
from typing import Literal, TypeVar

from kalm_cache.text.streams import COMPRESSIONS, Compression

Format = Literal["jsonl", "tsv", "csv", "parquet"]
P = TypeVar("P", bound=PurePath)

_FORMATS: dict[str, Format] = {
    ".jsonl": "jsonl",
    ".jsonlines": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".tsv": "tsv",
    ".csv": "csv",
    ".parquet": "parquet",
}
ACCEPTED = f"{', '.join(_FORMATS)}; all but .parquet also with {', '.join(COMPRESSIONS)}"


@dataclass(frozen=True, slots=True)
class Kind:
    """How a file is read; `compression` is None for plain bytes and for Parquet."""

    format: Format
    compression: Compression | None


def kind_of(name: str) -> Kind | None:
    """The kind of file that a name's suffixes tell; `None` = no corpus file."""
    inner = PurePath(name.lower())
    compression = COMPRESSIONS.get(inner.suffix)
    if compression is not None:
        inner = inner.with_suffix("")
    format_ = _FORMATS.get(inner.suffix)
    if format_ is None or (format_ == "parquet" and compression is not None):
        return None
    return Kind(format_, compression)


def corpus_files(paths: Iterable[P]) -> list[P]:
    """The corpus files among all files below a folder, given relative to it, in sorted order.

    Hidden files and other suffixes are left out. Of a folder laid out as BEIR does (corpus.jsonl beside queries.jsonl
    or qrels/) only corpus.* counts.
    """
    visible = [path for path in paths if not any(part.startswith(".") for part in path.parts)]
    files = sorted((path for path in visible if kind_of(path.name)), key=lambda path: path.parts)
    beir = {path.parent for path in files if _stem(path) == "corpus"}
    beir &= {path.parent for path in files if _stem(path) == "queries"} | _parents_of_qrels(visible)
    return [path for path in files if _counts(path, beir)]


def _counts(path: PurePath, beir: Set[PurePath]) -> bool:
    """Whether no folder above the file is BEIR's, or the uppermost of these has it as its corpus."""
    uppermost = next((folder for folder in reversed(path.parents) if folder in beir), None)
    return uppermost is None or (path.parent == uppermost and _stem(path) == "corpus")


def _parents_of_qrels(paths: Iterable[PurePath]) -> set[PurePath]:
    return {step.parent for path in paths for step in (path, *path.parents) if step.name == "qrels"}


def _stem(path: PurePath) -> str:
    return path.name.split(".")[0]
