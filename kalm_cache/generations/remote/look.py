"""What a remote index says of itself and whether its files are there: nothing is pulled but manifests."""

from __future__ import annotations

from kalm_cache.errors import StoreError
from kalm_cache.generations.manifest import MANIFEST, Manifest
from kalm_cache.generations.remote.root import FILES, Root, object_name, read_remote_manifest, require_root
from kalm_cache.generations.remote.store import ObjectStore
from kalm_cache.generations.stats import IndexStats, stats_of


def remote_stats(store: ObjectStore) -> IndexStats:
    """As `index_stats`, by the manifest of the live generation and the store's own list. Raises as `require_root`."""
    root, _ = require_root(store)
    manifest = require_manifest(store, root, root.live)
    files = {path: receipt.bytes for path, receipt in manifest.files.items()}
    objects = store.list(FILES)
    files[MANIFEST] = objects[object_name(root.live_manifest)].bytes
    return stats_of(manifest, files, sum(listed.bytes for listed in objects.values()))


def damaged_files(store: ObjectStore) -> list[str]:
    """Files of the live generation that the store lacks, or has in another size, by path. Raises as `require_root`."""
    root, _ = require_root(store)
    return missing_files(store, require_manifest(store, root, root.live))


def require_manifest(store: ObjectStore, root: Root, name: str) -> Manifest:
    """The manifest of a generation that the root has. Raises `StoreError` where it is missing."""
    try:
        return read_remote_manifest(store, root.generations[name])[1]
    except FileNotFoundError as exc:
        raise StoreError(f"{store}: the manifest of generation {name} is missing: {exc}") from exc


def missing_files(store: ObjectStore, manifest: Manifest) -> list[str]:
    """Paths of a generation's files that the store lacks, or has in another size. Raises `StoreError`."""
    there = {name: listed.bytes for name, listed in store.list(FILES).items()}
    return [path for path, receipt in manifest.files.items() if there.get(object_name(receipt.sha256)) != receipt.bytes]
