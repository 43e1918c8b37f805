"""Objects that no generation and no lease names -> free space. Which generations are kept, it does not decide.

While it deletes, `CURRENT` says so: a writer that looked at the store before that fails at its swap and looks again,
and one that comes meanwhile waits. So nothing is deleted that a writer counts on.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass

from kalm_cache.errors import IndexConflictError
from kalm_cache.generations.current import CURRENT
from kalm_cache.generations.remote.lease import read_leases
from kalm_cache.generations.remote.push import COLLECTING_SECONDS
from kalm_cache.generations.remote.root import (
    FILES,
    OPEN_PLAN,
    PARTITIONS,
    Root,
    new_token,
    object_name,
    read_remote_manifest,
    require_root,
)
from kalm_cache.object_store.store import DELETED_AT_ONCE, ObjectStore

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Collected:
    """What was removed; `leased`: generations that are gone from the index, and whose files somebody still pulls."""

    objects: int
    bytes: int
    leased: list[str]


def collect(store: ObjectStore) -> Collected:
    """Remove what no generation and no lease names.

    Raises:
        IndexNotFoundError: nothing was published there.
        IndexConflictError: a writer publishes at this moment, or another gc runs.
        StoreError: the store fails.
    """
    started = time.monotonic()
    root, found = require_root(store)
    collecting = root.changed(collecting=new_token())
    if root.collecting is not None or not store.swap(CURRENT, collecting.to_bytes(), found):
        raise IndexConflictError(f"{store}: is being changed; nothing was removed: run kalm-cache gc again")
    try:
        return _collect(store, root, started)
    finally:
        _end(store, collecting)


def _end(store: ObjectStore, collecting: Root) -> None:
    """Let writers go on; a rollback may have been made meanwhile."""
    while True:
        now, found = require_root(store)
        if now.collecting != collecting.collecting or store.swap(
            CURRENT, now.changed(collecting=None).to_bytes(), found
        ):
            return


def _collect(store: ObjectStore, root: Root, started: float) -> Collected:
    if store.get(OPEN_PLAN) is not None:
        logger.warning(
            "%s: partitions are planned, and what they need is not known yet: no file was removed; run kalm-cache "
            "partition commit, or partition drop, and gc again",
            store,
        )
        return Collected(0, 0, [])
    leases, over = read_leases(store, store.info(CURRENT).modified)
    needed = _objects_of(store, root.generations.values())
    leased = [lease for lease in leases if lease.manifest not in root.generations.values()]
    needed |= _objects_of(store, [lease.manifest for lease in leased], may_be_gone=True)
    unneeded = {name: listed.bytes for name, listed in store.list(FILES).items() if name not in needed}
    removed = _remove(store, sorted(unneeded), started)
    store.delete([*over, *store.list(PARTITIONS)])
    return Collected(len(removed), sum(unneeded[name] for name in removed), sorted({one.generation for one in leased}))


def _objects_of(store: ObjectStore, manifests: Iterable[str], *, may_be_gone: bool = False) -> set[str]:
    objects: set[str] = set()
    for digest in manifests:
        try:
            _, manifest = read_remote_manifest(store, digest)
        except FileNotFoundError:
            if not may_be_gone:
                logger.warning("%s: the manifest %s is missing; run kalm-cache verify", store, object_name(digest))
            continue
        objects |= {object_name(digest), *(object_name(receipt.sha256) for receipt in manifest.files.values())}
    return objects


def _remove(store: ObjectStore, names: list[str], started: float) -> list[str]:
    """Delete for as long as writers wait; what is left is for the next gc."""
    for start in range(0, len(names), DELETED_AT_ONCE):
        if time.monotonic() - started > COLLECTING_SECONDS / 2:
            return names[:start]
        store.delete(names[start : start + DELETED_AT_ONCE])
    return names
