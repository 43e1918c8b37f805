"""A corpus by name → its lines, whatever the format. Knows nothing of a line's fields."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, cast

from indexer.corpus.csv_rows import read_csv
from indexer.corpus.fields import RecordFields
from indexer.corpus.files import SourceFile, find_files
from indexer.corpus.jsonl import read_jsonl
from indexer.corpus.layout import TableFormat, find_layout
from indexer.corpus.parquet import read_parquet, require_pyarrow
from indexer.corpus.tsv import read_tsv
from indexer.corpus.values import CorpusLine, RejectedLine
from kalm_cache.errors import UsageError
from kalm_cache.metadata.fields import MetadataFields
from kalm_cache.passage import PassageTemplate
from kalm_cache.text.lines import read_lines
from kalm_cache.text.streams import decompressed, open_stdin


def read_corpus(
    source: str | Path,
    *,
    stdin: BinaryIO | None = None,
    tables: TableFormat | None = None,
    template: PassageTemplate | None = None,
    metadata: str = "",
    say: bool = True,
) -> Iterator[CorpusLine | RejectedLine]:
    """Read a file, a folder of files, or standard input (`-`, JSON lines) as far as the iterator is taken.

    Args:
        source: a path, or the URL of a file or a prefix in an object store; looked up at the call.
        stdin: stands in for the process's own, and stays open.
        tables: how CSV and TSV files are laid out; `None` = guessed from their data.
        template: how fields make a passage; `None` = the title in front of the text.
        metadata: which other fields are kept, see `MetadataFields`; they are typed by `TypedMetadata`.
        say: log what was guessed.

    Raises:
        UsageError: something is said of tables, and there are none; or `metadata` cannot be read.
        CorpusError: the source is missing, damaged or of an unknown kind; names the file and the line reached.
        StoreError: an object store fails, or what is read there was replaced meanwhile.
        MissingExtraError: there is Parquet in it, and pyarrow is not installed; or it is a URL, and obstore is not.
    """
    record = RecordFields(template or PassageTemplate(), MetadataFields.parse(metadata))
    has_format = tables is not None and tables != TableFormat()
    if str(source) == "-":
        _require_tables(has_format, [], source)
        return _read_stdin(sys.stdin.buffer if stdin is None else stdin, record)
    files = find_files(source)
    if any(file.kind.format == "parquet" for file in files):
        require_pyarrow()
    _require_tables(has_format, files, source)
    return _read_files(files, tables or TableFormat(), record, say)


def _require_tables(has_format: bool, files: Iterable[SourceFile], source: str | Path) -> None:
    if has_format and not any(file.kind.format in ("csv", "tsv") for file in files):
        raise UsageError(f"{source} holds no CSV or TSV file: columns, header, delimiter and quotes say nothing of it")


def _read_stdin(stdin: BinaryIO, record: RecordFields) -> Iterator[CorpusLine | RejectedLine]:
    with open_stdin(stdin) as stream:
        yield from read_jsonl(read_lines(stream, "<stdin>"), record)


def _read_files(
    files: Iterable[SourceFile], tables: TableFormat, record: RecordFields, say: bool
) -> Iterator[CorpusLine | RejectedLine]:
    for file in files:
        with file.open() as stream:
            if file.kind.format == "parquet":
                yield from read_parquet(cast(io.RawIOBase, stream.raw), file.name, record)
                continue
            lines = read_lines(decompressed(stream, file.name, file.kind.compression), file.name)
            if file.kind.format == "jsonl":
                yield from read_jsonl(lines, record)
                continue
            layout, lines = find_layout(lines, file.kind.format, tables, say)
            if layout is not None:
                yield from (read_csv if layout.quotes else read_tsv)(lines, layout, record)
