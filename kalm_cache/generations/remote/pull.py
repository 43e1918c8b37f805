"""A remote index -> an index folder: what is not at hand is fetched, everything else is linked. Opens no segment."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from kalm_cache.errors import KalmCacheError, StoreError
from kalm_cache.generations.current import current_name, write_current
from kalm_cache.generations.generation import (
    REMOVING,
    Generation,
    open_generation,
    published_names,
    remove_unless_read,
)
from kalm_cache.generations.journal import JOURNAL
from kalm_cache.generations.manifest import MANIFEST, FileReceipt, Manifest, read_manifest
from kalm_cache.generations.remote.lease import leased
from kalm_cache.generations.remote.root import Root, parse_root, read_remote_manifest, require_root
from kalm_cache.generations.remote.transfer import PARTIAL, download
from kalm_cache.object_store.store import ObjectStore
from kalm_cache.storage.durable import file_digest, link_or_copy, rename_durably, sync_tree, write_atomically

REMOTE = "REMOTE"  # INDEX/REMOTE: the root that the folder was made from, or that was made from the folder
PULLING = ".pulling"  # suffix of the folder of a generation that has not arrived yet
LOOKS = 5  # at a root that changes, or whose files a gc removes meanwhile
logger = logging.getLogger(__name__)
Room = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class PullReport:
    """What arrived: `moved_bytes` over the network, of `bytes` in all files that are wanted of the live generation."""

    index: str
    url: str
    generation: str
    passages: int
    moved_bytes: int
    moved_files: int
    bytes: int
    seconds: float


@dataclass(slots=True)
class _Moved:
    files: int = 0
    bytes: int = 0


def pull(
    store: ObjectStore,
    folder: Path,
    *,
    at_hand: Sequence[Path] = (),
    every: bool = False,
    exact: bool = False,
    shards: Collection[int] | None = None,
    make_room: Room = lambda count: None,
) -> PullReport:
    """Make the live generation of a remote index the live one of a folder. The caller is alone in changing it.

    Args:
        store: of the index.
        folder: an index folder, made if it is not there.
        at_hand: other index folders whose files may be linked.
        every: the other generations, too, without their segments: their manifests and tombstones.
        exact: remove generations that the store does not have, unless somebody reads them.
        shards: those of the base that are wanted; `None` = all.
        make_room: called with the bytes that are going to be fetched.

    Raises:
        IndexNotFoundError: nothing was published there.
        StoreError: the store fails, what arrives is damaged, or the disk is full.
    """
    started = time.perf_counter()
    for _ in range(LOOKS):
        root, _found = require_root(store)
        try:
            moved = _pull_root(store, root, folder, at_hand, every, shards, make_room)
        except FileNotFoundError:  # gc removed it: another generation is live
            logger.info("%s changed during the pull: once more", store)
            continue
        if moved is not None:
            break
    else:
        raise StoreError(f"{store}: changed {LOOKS} times during the pull, or lacks files; run the same command again")
    if exact:
        _remove_others(folder, root.generations if every else {root.live})
    live = open_generation(folder / "generations" / root.live)
    return PullReport(
        index=str(folder),
        url=str(store),
        generation=root.live,
        passages=live.manifest.counts.passages,
        moved_bytes=moved.bytes,
        moved_files=moved.files,
        bytes=sum(receipt.bytes for receipt in live.files(live.segments_of(shards)).values()),
        seconds=round(time.perf_counter() - started, 3),
    )


def pull_part(
    store: ObjectStore, digest: str, folder: Path, wants: Callable[[Generation], bool], *, at_hand: Sequence[Path]
) -> None:
    """Some segments of a generation, and what is of none, into a folder of its own.

    Args:
        store: of the index.
        digest: of the generation's manifest.
        folder: of the generation alone, made anew.
        wants: whether a part of the generation is wanted.
        at_hand: index folders whose files may be linked.

    Raises:
        StoreError: the store fails, lacks a file, or what arrives is damaged.
    """
    shutil.rmtree(folder, ignore_errors=True)
    try:
        content, manifest = read_remote_manifest(store, digest)
        parts = Generation(folder, manifest, manifest.segments[0].name).parts()
        others = {part.segment_name for part in parts if not wants(part)}
        wanted = {
            folder / path: receipt
            for path, receipt in manifest.files.items()
            if not path.startswith(tuple(f"shards/{name}/" for name in others))
        }
        hands = _files_at_hand(at_hand)
        for path, receipt in wanted.items():
            if receipt.sha256 in hands:
                link_or_copy(hands[receipt.sha256], path)
        download(store, [(path, receipt) for path, receipt in wanted.items() if receipt.sha256 not in hands])
    except FileNotFoundError as exc:
        raise StoreError(f"{store}: a file of the generation that passages are taken from is missing: {exc}") from exc
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / MANIFEST, content)


def recorded_root(folder: Path) -> Root | None:
    """The root that the folder was pulled from, or pushed as, last. Raises `StoreError` where that cannot be read."""
    path = folder / REMOTE
    return parse_root(path.read_bytes(), str(path)) if path.is_file() else None


def record_root(folder: Path, root: Root) -> None:
    """Remember a root for `recorded_root`."""
    write_atomically(folder / REMOTE, root.to_bytes())


def pull_into(store: ObjectStore, folder: Path) -> PullReport:
    """`pull` into a folder of one's own, which then can be changed and pushed. The build lock is held.

    Raises:
        StoreError: the folder holds what the store does not have; and as `pull`.
    """
    root, _ = require_root(store)
    base = recorded_root(folder)
    if is_ahead(folder, root if base is None else base) or (base is not None and base.index_id != root.index_id):
        raise StoreError(
            f"{folder}: holds an index that {store} does not have: push it first, or pull into another folder"
        )
    return pull(store, folder, every=True, exact=True)


def is_ahead(folder: Path, base: Root | None) -> bool:
    """Whether the folder's live generation is none of `base`."""
    try:
        name = current_name(folder)
        digest = file_digest(folder / "generations" / name / MANIFEST)
    except (KalmCacheError, OSError):
        return False
    return base is None or base.generations.get(name) != digest


def is_current(folder: Path, root: Root, shards: Collection[int] | None = None) -> bool:
    """Whether the folder's live generation is the root's, and complete, as far as `shards` go."""
    try:
        return current_name(folder) == root.live and _has(folder, root, root.live, shards)
    except KalmCacheError:
        return False


def _pull_root(
    store: ObjectStore,
    root: Root,
    folder: Path,
    at_hand: Sequence[Path],
    every: bool,
    shards: Collection[int] | None,
    make_room: Room,
) -> _Moved | None:
    """Bring the folder to a root; `None` where the root lost its live generation before the lease held."""
    wanted = sorted(root.generations) if every else [root.live]
    missing = [name for name in wanted if not _has(folder, root, name, shards)]
    moved = _Moved()
    if missing:
        with leased(store, root.live, root.live_manifest) as lease:
            now, _ = require_root(store)
            if now.generations.get(root.live) != root.live_manifest:
                return None

            def on_part(count: int) -> None:
                moved.bytes += count
                lease.renew()

            hands = _files_at_hand([folder, *at_hand])
            for name in missing:
                moved.files += _fetch(store, root, name, folder, shards, hands, make_room, on_part)
    if not is_current(folder, root, shards) or recorded_root(folder) != root:
        write_atomically(folder / JOURNAL, root.journal().to_json())
        write_current(folder, root.live)
        record_root(folder, root)
    return moved


def _has(folder: Path, root: Root, name: str, shards: Collection[int] | None) -> bool:
    """Whether the folder has a generation of the root; the live one with all files that are wanted, in their sizes."""
    generation = folder / "generations" / name
    if not (generation / MANIFEST).is_file() or file_digest(generation / MANIFEST) != root.generations[name]:
        return False
    if name != root.live:
        return True
    wanted = _wanted(open_generation(generation), shards, whole=True)
    return all(_size(generation / path) == receipt.bytes for path, receipt in wanted.items())


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


def _files_at_hand(folders: Sequence[Path]) -> dict[str, Path]:
    """Files of published generations by their digests, as far as they have their sizes."""
    by_digest: dict[str, Path] = {}
    for folder in folders:
        for name in published_names(folder):
            generation = folder / "generations" / name
            try:
                files = read_manifest(generation).files
            except KalmCacheError:
                continue
            for path, receipt in files.items():
                if receipt.sha256 not in by_digest and _size(generation / path) == receipt.bytes:
                    by_digest[receipt.sha256] = generation / path
    return by_digest


def _fetch(
    store: ObjectStore,
    root: Root,
    name: str,
    folder: Path,
    shards: Collection[int] | None,
    hands: dict[str, Path],
    make_room: Room,
    on_part: Callable[[int], None],
) -> int:
    """Put a generation into the folder, the live one with its segments; the number of files that were fetched."""
    target = folder / "generations" / name
    pulling = target.with_name(name + PULLING)
    content, manifest = read_remote_manifest(store, root.generations[name])
    if manifest.generation != name:
        raise StoreError(f"{store}: the manifest of generation {name} is that of generation {manifest.generation}")
    _begin(pulling, content)
    wanted = _wanted(open_generation(pulling), shards, whole=name == root.live)
    missing: list[tuple[Path, FileReceipt]] = []
    for path, receipt in wanted.items():
        if (pulling / path).is_file():
            continue  # arrived before an interruption, verified
        if receipt.sha256 in hands:
            link_or_copy(hands[receipt.sha256], pulling / path)
        else:
            missing.append((pulling / path, receipt))
    make_room(sum(receipt.bytes for _, receipt in missing))
    if name == root.live and missing:
        _say(store, manifest, missing)
    download(store, missing, on_part)
    sync_tree(pulling)
    _put_in_place(pulling, target)
    return len(missing)


def _wanted(generation: Generation, shards: Collection[int] | None, *, whole: bool) -> dict[str, FileReceipt]:
    return generation.files(generation.segments_of(shards) if whole else ())


def _begin(pulling: Path, manifest: bytes) -> None:
    """Make the folder ready; what arrived of the same generation stays."""
    path = pulling / MANIFEST
    if not path.is_file() or path.read_bytes() != manifest:
        shutil.rmtree(pulling, ignore_errors=True)
        pulling.mkdir(parents=True)
        write_atomically(path, manifest)
    for partial in pulling.rglob(f"*{PARTIAL}"):
        partial.unlink()


def _put_in_place(pulling: Path, target: Path) -> None:
    """Publish what arrived; what has the name already is incomplete, or another's. Who reads that goes on with it."""
    removing = target.with_name(target.name + REMOVING)
    shutil.rmtree(removing, ignore_errors=True)
    if target.exists():
        rename_durably(target, removing)
    rename_durably(pulling, target)
    shutil.rmtree(removing, ignore_errors=True)


def _remove_others(folder: Path, wanted: Collection[str]) -> None:
    for name in published_names(folder):
        if name not in wanted:
            remove_unless_read(folder / "generations" / name)
    for pulling in (folder / "generations").glob(f"*{PULLING}"):
        shutil.rmtree(pulling, ignore_errors=True)


def _say(store: ObjectStore, manifest: Manifest, missing: Sequence[tuple[Path, FileReceipt]]) -> None:
    moved, total = sum(receipt.bytes for _, receipt in missing), sum(one.bytes for one in manifest.files.values())
    logger.info(
        "pulling generation %s of %s: %.1f of %.1f MiB", manifest.generation, store, moved / 2**20, total / 2**20
    )
