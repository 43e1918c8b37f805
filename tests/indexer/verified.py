"""What the tests of verification share: file names, and problems as values."""

from __future__ import annotations

from pathlib import Path

from indexer.integrity.verify import verify_index

STATES = "shards/00000/states.lmdb"
PASSAGES = "shards/00000/passages.lmdb"
SEAL = "shards/00000/store.json"
CONTENTS = "shards/00000/contents.bin"
DENSE = "shards/00000/first_stage/dense.faiss"
BM25 = "shards/00000/first_stage/bm25"


def problems(index: Path) -> list[tuple[str, str | None, str]]:
    report = verify_index(index)
    assert report.ok == (not report.damaged)
    return [(damage.file, damage.doc_id, damage.problem) for damage in report.damaged]
