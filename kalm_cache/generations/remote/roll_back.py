"""`CURRENT` of a remote index back to an earlier generation: one swap. Nothing is pulled or removed."""

from __future__ import annotations

from dataclasses import replace

from kalm_cache.errors import IndexConflictError, StoreError, UsageError
from kalm_cache.foreign_files import is_generation_name
from kalm_cache.generations.current import CURRENT
from kalm_cache.generations.manifest import Manifest
from kalm_cache.generations.remote.look import missing_files, require_manifest
from kalm_cache.generations.remote.root import Root, require_root
from kalm_cache.generations.remote.store import ObjectStore


def roll_back_remote(store: ObjectStore, to: str | None = None) -> tuple[str, Manifest]:
    """Make another generation live: the parent of the live one, or `to`.

    Returns which one was live, and the manifest of the one that is now.

    Raises:
        IndexNotFoundError: nothing was published there.
        IndexConflictError: another writer publishes at this moment.
        UsageError: there is no such generation, or no parent.
        StoreError: the store lacks files of the other generation; the live one stays.
    """
    root, found = require_root(store)
    name = _target(store, root, to)
    manifest = require_manifest(store, root, name)
    missing = missing_files(store, manifest)
    if missing:
        raise StoreError(f"{store}: of generation {name}, {len(missing)} files are missing, {missing[0]} among them")
    if name != root.live and not store.swap(CURRENT, replace(root, live=name).to_bytes(), found):
        raise IndexConflictError(f"{store}: another writer was faster; nothing was changed: run the same command again")
    return root.live, manifest


def _target(store: ObjectStore, root: Root, to: str | None) -> str:
    shown = ", ".join(sorted(root.generations))
    if to is None:
        to = require_manifest(store, root, root.live).parent
        if to is None:
            raise UsageError(f"{store}: generation {root.live} has no parent to go back to; published: {shown}")
    name = f"{int(to):06d}" if is_generation_name(to) else to
    if name not in root.generations:
        raise UsageError(f"{store}: there is no generation {name} (any more); published: {shown}")
    return name
