"""JSON lines → passages. Knows nothing of files."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator

from indexer.corpus.fields import RecordFields
from indexer.corpus.values import CorpusLine, RejectedLine
from kalm_cache.text.lines import BadLineError, TextLine


def read_jsonl(lines: Iterable[TextLine], record: RecordFields) -> Iterator[CorpusLine | RejectedLine]:
    """One value for each line that is not blank."""
    return (_read_line(line, record) for line in lines if line.data.strip())


def _read_line(line: TextLine, record: RecordFields) -> CorpusLine | RejectedLine:
    try:
        return record.line(_parse_object(line.text()), line.location)
    except BadLineError as exc:
        return RejectedLine.of(exc, line.location, line.raw)


def _parse_object(text: str) -> dict[str, object]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as exc:
        column = min(exc.pos, len(text.rstrip())) + 1  # of a line cut short, its end and not the next line's start
        raise BadLineError(f"bad JSON at column {column}: {exc.msg}; write one whole object on one line") from exc
    except (ValueError, RecursionError) as exc:  # an integer of thousands of digits; brackets nested thousands deep
        raise BadLineError(f"JSON that cannot be read: {exc}; write numbers as strings and nest less") from exc
    if not isinstance(value, dict):
        raise BadLineError(f"a JSON {type(value).__name__}, not an object; write one object on each line")
    return value
