"""Named fields → the passage of a line and its metadata, or the reason why it holds none. Knows nothing of files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from indexer.corpus.values import CorpusLine
from kalm_cache.metadata.column_types import NO_VALUES, Cell
from kalm_cache.metadata.fields import NESTED, MetadataFields
from kalm_cache.passage import Passage, PassageTemplate, read_id
from kalm_cache.text.lines import BadLineError


@dataclass(frozen=True, slots=True)
class RecordFields:
    """What becomes of the fields of a record: which make the passage, and which are kept as its metadata."""

    template: PassageTemplate = field(default_factory=PassageTemplate)
    metadata: MetadataFields = field(default_factory=MetadataFields)

    def line(
        self, fields: Mapping[str, object], location: str, unread: Iterable[str] = (), *, cells: bool = False
    ) -> CorpusLine:
        """The passage that the fields describe, their metadata, and which of them are no part of either.

        Args:
            fields: of the line.
            location: of the line.
            unread: names of fields that were not even read.
            cells: they are strings of a table, in which numbers and booleans may be written out.

        Raises:
            BadLineError: the id, the text or a field of the template is missing, of another type, or cannot be stored.
        """
        doc_id: str | None = None
        try:
            doc_id = read_id(fields)
            passage = Passage(doc_id, self.template.text_of(fields))
            metadata = self.metadata.values(fields, self.template)
        except ValueError as exc:
            raise BadLineError(str(exc), doc_id) from exc
        if cells:
            metadata = {name: Cell(value) for name, value in metadata.items()}
        unused = [
            name
            for name in self.template.unused(fields)
            if fields[name] not in NO_VALUES and name not in metadata and not (name == NESTED and metadata)
        ]
        return CorpusLine(passage, location, (*unused, *unread), metadata=metadata)
