"""Named fields → the passage of a line, or the reason why it holds none. Knows nothing of files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from indexer.corpus.values import CorpusLine
from kalm_cache.passage import Passage, PassageTemplate, read_id
from kalm_cache.text.lines import BadLineError

EMPTY: tuple[object, ...] = (None, "", [], {})  # BEIR's files have an empty `metadata` in every line


def to_line(
    fields: Mapping[str, object], template: PassageTemplate, location: str, unread: Iterable[str] = ()
) -> CorpusLine:
    """The passage that the fields describe, and which of them are no part of it.

    Args:
        fields: of the line.
        template: how they make the passage.
        location: of the line.
        unread: names of fields that were not even read.

    Raises:
        BadLineError: the id, the text or a field of the template is missing, of another type, or cannot be stored.
    """
    doc_id: str | None = None
    try:
        doc_id = read_id(fields)
        passage = Passage(doc_id, template.text_of(fields))
    except ValueError as exc:
        raise BadLineError(str(exc), doc_id) from exc
    unused = (name for name in template.unused(fields) if fields[name] not in EMPTY)
    return CorpusLine(passage, location, (*unused, *unread))
