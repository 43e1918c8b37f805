"""What the tests of corpus readers share."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import zstandard

from indexer.corpus import CorpusLine, read_corpus
from kalm_cache.passage import Passage

COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".zst": zstandard.compress,
    ".zstd": zstandard.compress,
}
TWO = {
    ".jsonl": b'{"_id": "d1", "title": "Sun", "text": "It shines."}\n{"_id": 2, "text": "caf\xc3\xa9"}\n',
    ".ndjson": b'{"id": "d1", "title": "Sun", "text": "It shines."}\n{"id": 2, "contents": "caf\xc3\xa9"}',
    ".jsonlines": b'{"docid": "d1", "contents": "Sun It shines."}\r\n{"doc_id": "2", "text": "caf\xc3\xa9"}\r\n',
    ".json": b'{"doc_id": "d1", "title": null, "text": "Sun It shines."}\n{"docid": 2, "text": "caf\xc3\xa9"}\n',
}
TWO_PASSAGES = [Passage("d1", "Sun It shines."), Passage("2", "café")]


def write(path: Path, data: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def passages(source: Path) -> list[Passage]:
    return [line.passage for line in read_corpus(source) if isinstance(line, CorpusLine)]
