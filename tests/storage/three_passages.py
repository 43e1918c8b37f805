"""A store of three passages, and what of it is compared."""

from __future__ import annotations

from kalm_cache.errors import DamagedRecordError
from kalm_cache.storage.passage_store import PassageMeta, PassageStore
from kalm_cache.storage.record import Record
from tests.stores import Stored, record

HASHES = {doc_id: doc_id.encode() * 16 for doc_id in "abc"}
PASSAGES = {
    "b": Stored(record(b"states of b"), PassageMeta(0, HASHES["b"]), "text b"),
    "ü": Stored(record(b"states of u", tokens=4, truncated=True), PassageMeta(1, bytes(16)), ""),
    "a": Stored(record(b"states of a"), PassageMeta(2, HASHES["a"]), "text a"),
}


def records(store: PassageStore, *doc_ids: str) -> list[object]:
    """Records with their payloads copied, and errors as their messages."""
    with store.snapshot() as snapshot:
        found = snapshot.records(doc_ids)
        return [one._replace(payload=bytes(one.payload)) if isinstance(one, Record) else _shown(one) for one in found]


def _shown(found: object) -> object:
    return str(found) if isinstance(found, DamagedRecordError) else found
