"""Columns → passages: what CSV, TSV and Parquet share. Knows nothing of files, quotes or tabs."""

from __future__ import annotations

from collections.abc import Sequence

from indexer.corpus.fields import RecordFields
from indexer.corpus.values import CorpusLine
from kalm_cache.errors import CorpusError
from kalm_cache.passage import ID_NAMES, TEXT_NAMES, first_present
from kalm_cache.text.lines import BadLineError

UNUSED = "-"  # the name of a column that is not read


def has_header(cells: Sequence[str]) -> bool:
    """Whether the first row names an id or a text column, and so is no passage."""
    return any(first_present(accepted, cells) is not None for accepted in (ID_NAMES, TEXT_NAMES))


def require_columns(names: Sequence[str], file_name: str) -> None:
    """Check that an id and a text column are among the names.

    Raises:
        CorpusError: one of them is not; names the columns found and the names accepted.
    """
    for kind, accepted in (("id", ID_NAMES), ("text", TEXT_NAMES)):
        if first_present(accepted, names) is None:
            raise CorpusError(
                f"{file_name}: no {kind} column among {', '.join(map(repr, names)) or 'none'}; "
                f"name one {' or '.join(map(repr, accepted))}, or say which is which (--columns, --no-header)"
            )


def row_line(names: Sequence[str], cells: Sequence[str], record: RecordFields, location: str) -> CorpusLine:
    """The passage of one row; empty cells beyond the last column are ignored.

    Raises:
        BadLineError: too few or too many columns, or fields that make no passage.
    """
    if len(cells) < len(names):
        raise BadLineError(f"{len(cells)} of {len(names)} columns; add the missing ones")
    if any(cells[len(names) :]):
        raise BadLineError(f"{len(cells)} columns, expected {len(names)}; a separator inside a field splits it")
    fields = {name: cell for name, cell in zip(names, cells, strict=False) if name != UNUSED}
    return record.line(fields, location, cells=True)
