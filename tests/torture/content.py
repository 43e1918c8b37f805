"""All that a reader can find in the live generation, as one comparable value: states, texts, numbers, answers."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from kalm_cache import PassageIndex
from kalm_cache.errors import IndexNotFoundError
from kalm_cache.index.passage_index import Answer
from kalm_cache.storage.record import Record

QUERIES = ("When does the ferry to the island leave?", "honey bees", "capital of China in the north")
DEPTH = 60  # deeper than the corpora here
RERANKED = 4

Content = dict[str, Any]


def content(index: Path) -> Content | None:
    """`passages`, `first_stage`, `answer` and `counts` of the live generation; `None` when none is published."""
    try:
        opened = PassageIndex.open(index, device="cpu")
    except IndexNotFoundError:
        return None
    with opened:
        return {
            "passages": passages(opened),
            "first_stage": [first_stage(opened, query) for query in QUERIES],
            "answer": answer(opened.search(QUERIES[0], k=RERANKED)),
            "passages_counted": len(opened),
        }


def passages(opened: PassageIndex) -> dict[str, list[Any]]:
    """Doc id -> number, content hash, digest of the stored states, text."""
    store = opened.store
    ordinals = {doc_id: ordinal for ordinal, doc_id in store.ordinals()}
    doc_ids = sorted(key.decode() for key in store.keys())  # noqa: SIM118 (not a dict)
    assert ordinals.keys() == set(doc_ids)
    with store.snapshot() as snapshot:
        records = snapshot.records(doc_ids)
        states = [
            _digest(repr(one[:-1]).encode() + bytes(one.payload)) if isinstance(one, Record) else str(one)
            for one in records
        ]
    metas, texts = store.metas(doc_ids), store.texts(doc_ids)
    return {
        doc_id: [ordinals[doc_id], meta.content_hash.hex(), state, text]
        for doc_id, meta, state, text in zip(doc_ids, metas, states, texts, strict=True)
    }


def first_stage(opened: PassageIndex, query: str) -> dict[str, list[tuple[int, str]]]:
    """Mode -> numbers and scores, best first, to the last bit."""
    found = {mode: opened.first_stage.search(query, DEPTH, mode) for mode in opened.first_stage.modes}
    return {
        mode: [(int(ordinal), float(score).hex()) for ordinal, score in zip(one.ordinals, one.scores, strict=True)]
        for mode, one in found.items()
    }


def answer(said: Answer) -> list[list[Any]]:
    """What a search says of each result, to the last bit."""
    return [[one.rank, one.doc_id, one.margin.hex(), one.first_stage_rank, one.text] for one in said.results]


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
