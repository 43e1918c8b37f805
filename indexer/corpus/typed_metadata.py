"""Metadata as a corpus has it → typed values, as its lines pass by. Knows nothing of formats or files.

Types that are not known yet follow from the values of up to 2,048 lines, those with which a field comes first. What
does not fit a type makes its line a bad one.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import islice
from typing import Any

from indexer.corpus.values import CorpusLine, RejectedLine
from kalm_cache.metadata.column_types import (
    MAX_COLUMNS,
    MAX_NAME_CHARS,
    ColumnType,
    Schema,
    Value,
    converted,
    described,
    guess_type,
)
from kalm_cache.metadata.fields import MetadataFields

GUESSED_LINES = 2048
logger = logging.getLogger(__name__)


class TypedMetadata:
    """`schema` has the columns that are known so far: all of them when the lines have been read."""

    def __init__(self, setting: str, stored: Mapping[str, ColumnType] | None = None) -> None:
        """`setting`: `metadata`, see `MetadataFields`. `stored`: the columns of an index, whose types stay.

        Raises `UsageError` for a setting that cannot be read.
        """
        self._fields = MetadataFields.parse(setting)
        self.schema: Schema = self._fields.schema(stored or {})

    def watch(self, lines: Iterable[CorpusLine | RejectedLine]) -> Iterator[CorpusLine | RejectedLine]:
        """The lines, typed as they are taken."""
        if not self._fields:
            yield from lines
            return
        seen, rest = set(self.schema), iter(lines)
        while window := list(islice(rest, GUESSED_LINES)):
            self._guess([line.metadata for line in window if isinstance(line, CorpusLine)])
            for line in window:
                if isinstance(line, CorpusLine):
                    seen.update(line.metadata)
                    yield self._typed(line)
                else:
                    yield line
        for name in self._fields.types.keys() - seen:
            logger.warning("metadata: no line of the corpus has the field %r", name)

    def _guess(self, records: list[Mapping[str, Any]]) -> None:
        """Add the columns that these lines are the first to have."""
        values: dict[str, list[object]] = {}
        for record in records:
            for name in record.keys() - self.schema.keys():
                values.setdefault(name, []).append(record[name])
        new: Schema = {}
        for name in sorted(values):
            found = guess_type(values[name])
            if found is not None and len(name) <= MAX_NAME_CHARS and len(self.schema) + len(new) < MAX_COLUMNS:
                new[name] = found
        self.schema |= new
        if new:
            logger.info("metadata: %s; --metadata NAME:TYPE says otherwise", described(new))

    def _typed(self, line: CorpusLine) -> CorpusLine | RejectedLine:
        values: dict[str, Value] = {}
        for name, raw in line.metadata.items():
            problem = self._problem_with(name)
            if problem is None:
                try:
                    value = converted(raw, self.schema[name])
                except ValueError as exc:
                    problem = f"{exc}; correct it, or give the column another type (--metadata {name}:TYPE)"
                else:
                    if value is not None:
                        values[name] = value
            if problem is not None:
                passage = line.passage
                return RejectedLine(
                    line.location, f"the field {name[:MAX_NAME_CHARS]!r} {problem}", passage.doc_id, passage.text[:200]
                )
        return replace(line, metadata=values)

    def _problem_with(self, name: str) -> str | None:
        if name in self.schema:
            return None
        if len(name) > MAX_NAME_CHARS:
            return f"has a name of {len(name)} characters, at most {MAX_NAME_CHARS} can be kept"
        if len(self.schema) >= MAX_COLUMNS:
            return f"would be column {len(self.schema) + 1}, at most {MAX_COLUMNS} can be kept; name those to keep"
        return "holds no text, number, boolean, date or list of these; leave it out (--metadata names what is kept)"
