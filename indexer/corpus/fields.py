"""Named fields → Passage, or the reason why a line holds none. Knows nothing of files."""

from __future__ import annotations

from collections.abc import Mapping

from kalm_cache.passage import Passage, PassageTemplate, read_id
from kalm_cache.text.lines import BadLineError


def to_passage(fields: Mapping[str, object], template: PassageTemplate) -> Passage:
    """The passage that the fields describe; fields that the template does not name are ignored.

    Raises:
        BadLineError: the id, the text or a field of the template is missing, of another type, or cannot be stored.
    """
    doc_id: str | None = None
    try:
        doc_id = read_id(fields)
        return Passage(doc_id, template.text_of(fields))
    except ValueError as exc:
        raise BadLineError(str(exc), doc_id) from exc
