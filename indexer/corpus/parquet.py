"""Parquet rows → passages, batch by batch, only the columns needed. Needs the extra `parquet`."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from indexer.corpus.columns import require_columns
from indexer.corpus.fields import RecordFields
from indexer.corpus.values import CorpusLine, RejectedLine
from kalm_cache.errors import CorpusError, MissingExtraError
from kalm_cache.passage import ID_NAMES, TEXT_NAMES, first_present
from kalm_cache.text.lines import MAX_RAW_CHARS, BadLineError

if TYPE_CHECKING:
    import pyarrow

_BATCH_ROWS = 256
_BUFFER_BYTES = 2**20  # of each column; without it pyarrow loads a row group's whole columns


def require_pyarrow() -> None:
    """Check that Parquet can be read.

    Raises:
        MissingExtraError: pyarrow is not installed.
    """
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError as exc:
        raise MissingExtraError("pyarrow", "parquet") from exc


def read_parquet(file: io.RawIOBase, name: str, record: RecordFields) -> Iterator[CorpusLine | RejectedLine]:
    """One value for each row; its location is `name:row`, from 1.

    Args:
        file: can be read anywhere.
        name: its path or URL.
        record: what becomes of the columns.

    Raises:
        CorpusError: the file is damaged or unreadable, or has no id or no text column.
    """
    import pyarrow

    row = 0
    try:
        for batch, unread in _batches(file, name, record):
            for fields in _rows(batch):
                row += 1
                yield _read_row(fields, f"{name}:{row}", record, unread)
    except (OSError, pyarrow.ArrowException) as exc:
        raise CorpusError(f"cannot read {name} beyond row {row}: {exc}; write or download it again") from exc


def _batches(file: io.RawIOBase, name: str, record: RecordFields) -> Iterator[tuple[pyarrow.RecordBatch, list[str]]]:
    """The rows with the columns that count, and the names of the others."""
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(file, buffer_size=_BUFFER_BYTES) as table:
        names = table.schema_arrow.names
        require_columns(names, name)
        found = [first_present(accepted, names) for accepted in (ID_NAMES, TEXT_NAMES)]
        wanted = {*found, *record.template.fields, *record.metadata.columns_to_read(names)}
        unread = [name for name in record.template.unused(names) if name not in wanted]
        for batch in table.iter_batches(_BATCH_ROWS, columns=[name for name in names if name in wanted]):
            yield batch, unread


def _rows(batch: pyarrow.RecordBatch) -> Iterator[dict[str, Any]]:
    try:
        yield from batch.to_pylist()
    except UnicodeDecodeError:  # before the first row: to_pylist makes them all
        for row in range(batch.num_rows):
            yield {name: _value(batch.column(name)[row]) for name in batch.schema.names}


def _value(scalar: pyarrow.Scalar) -> object:
    try:
        return scalar.as_py()
    except UnicodeDecodeError as exc:
        return exc


def _read_row(
    fields: dict[str, Any], location: str, record: RecordFields, unread: list[str]
) -> CorpusLine | RejectedLine:
    try:
        for name, value in fields.items():
            if isinstance(value, UnicodeDecodeError):
                raise BadLineError(f"{name!r} is not UTF-8: {value.reason} at offset {value.start}")
        return record.line(fields, location, unread)
    except BadLineError as exc:
        return RejectedLine.of(exc, location, _shown(fields))


def _shown(fields: dict[str, Any]) -> str:
    cut = {name: value[:MAX_RAW_CHARS] if isinstance(value, str) else value for name, value in fields.items()}
    return json.dumps(cut, ensure_ascii=False, default=str)
