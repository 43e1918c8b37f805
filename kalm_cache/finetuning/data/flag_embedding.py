"""FlagEmbedding's JSON lines → examples, one a line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from kalm_cache.finetuning.data.example import Example, Rejected, read_record
from kalm_cache.text.lines import MAX_RAW_CHARS, read_lines
from kalm_cache.text.streams import COMPRESSIONS, open_file


def read_flag_embedding(path: Path) -> Iterator[Example | Rejected]:
    """Each line that is not blank as an example, or why it is none. Raises `CorpusError` for an unreadable file."""
    with open_file(path, COMPRESSIONS.get(path.suffix)) as stream:
        for line in read_lines(stream, str(path)):
            try:
                text = line.text()
                if text.strip():
                    yield read_record(_object(text), line.location)
            except (ValueError, RecursionError) as exc:
                yield Rejected(line.location, str(exc), line.raw[:MAX_RAW_CHARS])


def _object(text: str) -> dict[str, object]:
    fields = json.loads(text)
    if not isinstance(fields, dict):
        raise ValueError(f"a JSON {type(fields).__name__}; write one object on each line")
    return fields
