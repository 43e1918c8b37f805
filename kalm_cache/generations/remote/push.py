"""An index folder -> a remote index: what the store lacks is uploaded, then `CURRENT` is swapped. Builds nothing."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from kalm_cache.errors import IndexConflictError, StoreError
from kalm_cache.generations.current import CURRENT
from kalm_cache.generations.generation import open_current, published_names
from kalm_cache.generations.journal import read_journal
from kalm_cache.generations.manifest import MANIFEST, FileReceipt, read_manifest
from kalm_cache.generations.remote.pull import record_root, recorded_root
from kalm_cache.generations.remote.root import Root, new_token, read_root
from kalm_cache.generations.remote.transfer import upload_missing
from kalm_cache.object_store.store import ObjectStore
from kalm_cache.process.stopping import stop_if_asked
from kalm_cache.storage.durable import file_digest

ATTEMPTS = 20  # at a swap that a gc, which publishes nothing, was faster with
COLLECTING_SECONDS = 120.0  # a gc deletes for half of this; then it is dead
LOOK_SECONDS = 0.2
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PushReport:
    """What was uploaded: `moved_bytes` over the network, of `bytes` in all files of the live generation."""

    index: str
    url: str
    generation: str
    passages: int
    moved_bytes: int
    moved_files: int
    bytes: int
    seconds: float


def push(store: ObjectStore, folder: Path) -> PushReport:
    """Make a remote index what a folder is: its live generation, and the others that it has. All at once, or not.

    The caller is alone in changing the folder.

    Raises:
        IndexNotFoundError: nothing was published in the folder.
        IndexConflictError: another writer published since the folder was pulled, or pushed.
        StoreError: the store fails, or a file of the folder is damaged.
    """
    started = time.perf_counter()
    live = open_current(folder)
    uploaded: list[FileReceipt] = []
    for _ in range(ATTEMPTS):
        root, found = read_root(store)
        if root is not None and root.collecting is not None and gc_ends(store, root):
            continue
        _require_base(store, folder, root)
        new = _root_of(folder, root)
        if root is not None and replace(new, revision=root.revision) == root:
            new = root
            break
        uploaded += _upload_missing(store, folder, root, new)
        if store.swap(CURRENT, new.to_bytes(), found):
            break
    else:
        raise StoreError(f"{store}: changed {ATTEMPTS} times during the push; run the same command again")
    record_root(folder, new)
    return PushReport(
        index=str(folder),
        url=str(store),
        generation=new.live,
        passages=live.manifest.counts.passages,
        moved_bytes=sum(receipt.bytes for receipt in uploaded),
        moved_files=len(uploaded),
        bytes=sum(receipt.bytes for receipt in live.manifest.files.values()),
        seconds=round(time.perf_counter() - started, 3),
    )


def _require_base(store: ObjectStore, folder: Path, root: Root | None) -> None:
    """Raise `IndexConflictError` unless what the store has is what the folder was made from."""
    if root is None:
        return
    base = recorded_root(folder)
    if base is None:
        digest = _manifests(folder).get(root.live)
        is_base = digest == root.live_manifest
    else:
        is_base = root.follows(base)
    if not is_base:
        raise IndexConflictError(
            f"{store}: another writer made generation {root.live} live meanwhile, and it won; nothing of this one was "
            "published: run the same command again"
        )


def _root_of(folder: Path, root: Root | None) -> Root:
    names, live, journal = _manifests(folder), open_current(folder).manifest, read_journal(folder)
    highest = max(journal.generation, *map(int, names))
    next_ordinal = max(journal.next_ordinal, live.next_ordinal)
    return Root(
        index_id=new_token() if root is None else root.index_id,
        live=live.generation,
        generations=names,
        highest_generation=highest if root is None else max(highest, root.highest_generation),
        next_ordinal=next_ordinal if root is None else max(next_ordinal, root.next_ordinal),
        revision=new_token(),
    )


def _manifests(folder: Path) -> dict[str, str]:
    """The digest of every published generation's manifest."""
    return {name: file_digest(folder / "generations" / name / MANIFEST) for name in published_names(folder)}


def _upload_missing(store: ObjectStore, folder: Path, root: Root | None, new: Root) -> list[FileReceipt]:
    """Upload what the new generations have and the store has not; returns the receipts of what was."""
    known = {} if root is None else root.generations
    files: list[tuple[Path, FileReceipt]] = []
    for name, digest in new.generations.items():
        if known.get(name) != digest:
            files += _files_of(folder / "generations" / name, digest)
    return upload_missing(store, files)


def _files_of(generation: Path, digest: str) -> Iterator[tuple[Path, FileReceipt]]:
    """The files of a generation, its manifest among them."""
    for path, receipt in read_manifest(generation).files.items():
        yield generation / path, receipt
    yield generation / MANIFEST, FileReceipt((generation / MANIFEST).stat().st_size, digest)


def gc_ends(store: ObjectStore, root: Root) -> bool:
    """Wait for a gc to end; false where it had more time than it takes, and is dead."""
    logger.info("%s: waiting for a gc to end", store)
    until = time.monotonic() + COLLECTING_SECONDS
    while time.monotonic() < until:
        stop_if_asked()
        time.sleep(LOOK_SECONDS)
        now, _ = read_root(store)
        if now is None or now.collecting != root.collecting:
            return True
    return False
