"""What is done to a remote index without pulling it: its stats, a look for missing files, a rollback by one swap."""

from __future__ import annotations

from kalm_cache.errors import IndexConflictError, StoreError, UsageError
from kalm_cache.foreign_files import is_generation_name
from kalm_cache.generations.current import CURRENT
from kalm_cache.generations.manifest import MANIFEST, Manifest
from kalm_cache.generations.remote.root import FILES, Root, object_name, read_remote_manifest, require_root
from kalm_cache.generations.stats import IndexStats, stats_of
from kalm_cache.object_store.store import ObjectStore


def remote_stats(store: ObjectStore) -> IndexStats:
    """As `index_stats`, by the manifest of the live generation and the store's own list. Raises as `require_root`."""
    root, _ = require_root(store)
    manifest = _manifest(store, root, root.live)
    files = {path: receipt.bytes for path, receipt in manifest.files.items()}
    objects = store.list(FILES)
    files[MANIFEST] = objects[object_name(root.live_manifest)].bytes
    return stats_of(manifest, files, sum(listed.bytes for listed in objects.values()))


def damaged_files(store: ObjectStore) -> list[str]:
    """Files of the live generation that the store lacks, or has in another size, by path. Raises as `require_root`."""
    root, _ = require_root(store)
    return _missing_files(store, _manifest(store, root, root.live))


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
    manifest = _manifest(store, root, name)
    missing = _missing_files(store, manifest)
    if missing:
        raise StoreError(f"{store}: of generation {name}, {len(missing)} files are missing, {missing[0]} among them")
    if name != root.live and not store.swap(CURRENT, root.changed(live=name).to_bytes(), found):
        raise IndexConflictError(f"{store}: another writer was faster; nothing was changed: run the same command again")
    return root.live, manifest


def _target(store: ObjectStore, root: Root, to: str | None) -> str:
    shown = ", ".join(sorted(root.generations))
    if to is None:
        to = _manifest(store, root, root.live).parent
        if to is None:
            raise UsageError(f"{store}: generation {root.live} has no parent to go back to; published: {shown}")
    name = f"{int(to):06d}" if is_generation_name(to) else to
    if name not in root.generations:
        raise UsageError(f"{store}: there is no generation {name} (any more); published: {shown}")
    return name


def _manifest(store: ObjectStore, root: Root, name: str) -> Manifest:
    """The manifest of a generation that the root has. Raises `StoreError` where it is missing."""
    try:
        return read_remote_manifest(store, root.generations[name])[1]
    except FileNotFoundError as exc:
        raise StoreError(f"{store}: the manifest of generation {name} is missing: {exc}") from exc


def _missing_files(store: ObjectStore, manifest: Manifest) -> list[str]:
    """Paths of a generation's files that the store lacks, or has in another size. Raises `StoreError`."""
    there = {name: listed.bytes for name, listed in store.list(FILES).items()}
    return [path for path, receipt in manifest.files.items() if there.get(object_name(receipt.sha256)) != receipt.bytes]
