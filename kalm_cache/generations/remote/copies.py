"""Local copies of remote indexes, below one bounded folder: one to read from, one to change, for each URL.

CACHE/remote/KEY/LOCK      held (flock) by the one process here that changes the index
CACHE/remote/KEY/READING   held (flock) by the one process here that pulls for readers
CACHE/remote/KEY/reading/  an index folder: the live generation, and those that are being read
CACHE/remote/KEY/reading-0-3/  the same for readers of the shards 0 and 3, with their files alone
CACHE/remote/KEY/writing/  an index folder: all generations, earlier ones without their segments; unfinished builds

Files of both are linked, not copied. What was built and could not be pushed stays, and is pushed by the next change.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

from kalm_cache.errors import KalmCacheError, StoreError
from kalm_cache.generations.build_folders import unfinished_builds
from kalm_cache.generations.current import CURRENT, current_name
from kalm_cache.generations.generation import published_names
from kalm_cache.generations.manifest import MANIFEST
from kalm_cache.generations.remote.pull import PullReport, is_ahead, is_current, pull, recorded_root
from kalm_cache.generations.remote.push import PushReport, push
from kalm_cache.generations.remote.root import read_root, require_root
from kalm_cache.object_store.backend import require_obstore
from kalm_cache.object_store.location import Location
from kalm_cache.object_store.store import ObjectStore, open_store
from kalm_cache.process.system import file_system_of, is_network
from kalm_cache.storage.locks import build_lock, exclude, waiting_lock

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class CopyCache:
    """Where local copies are, and what they may take on disk together."""

    folder: Path
    max_bytes: int


class RemoteCopy:
    """The local copies of one remote index."""

    def __init__(
        self,
        location: Location,
        cache: CopyCache,
        store: ObjectStore | None = None,
        shards: tuple[int, ...] | None = None,
    ) -> None:
        """The copies, of which nothing is pulled yet.

        Args:
            location: where the index is.
            cache: where copies lie.
            store: that of the location, if it is open already.
            shards: those of the base that readers want; `None` = all.

        Raises:
            StoreError: the cache is on a network file system, where LMDB files cannot be opened.
        """
        kind = file_system_of(cache.folder)
        if is_network(kind):
            raise StoreError(f"cache_folder {cache.folder}: is on a network file system ({kind}); use a local disk")
        self.location, self.cache, self.shards, self._store = location, cache, shards, store
        self.home = cache.folder / "remote" / location.key
        self.reading = self.home / "-".join(["reading", *map(str, shards or ())])
        self.writing = self.home / "writing"

    def __reduce__(self) -> tuple[object, ...]:
        """In another process, the store is opened again."""
        return RemoteCopy, (self.location, self.cache, None, self.shards)

    def open_store(self, *, create: bool = False) -> ObjectStore:
        """The store of the location, opened once. Errors and `create` as in `open_backend`."""
        if self._store is None:
            self._store = open_store(self.location, create=create)
        return self._store

    def refresh(self) -> PullReport | None:
        """Bring the folder `reading` to the live generation; `None` where it was there. Errors as in `pull`."""
        store = self.open_store()
        root, _ = require_root(store)
        if is_current(self.reading, root, self.shards):
            return None
        self.home.mkdir(parents=True, exist_ok=True)
        with waiting_lock(self.home / "READING"):  # others may have pulled it meanwhile
            at_hand = [self.writing, *self.home.glob("reading*/")]
            return pull(store, self.reading, at_hand=at_hand, exact=True, shards=self.shards, make_room=self._make_room)

    @contextmanager
    def changing(self, *, create: bool = False) -> Iterator[Path]:
        """The folder `writing`, as the store is now; pushed at the end of the block, unless that raises.

        `create`: there need not be an index yet.

        Raises:
            IndexNotFoundError: nothing was published there.
            IndexLockedError: another process here is changing it.
            IndexConflictError: another writer published meanwhile.
            StoreError: the store fails; what was built stays here.
        """
        with build_lock(self.home):
            self._prepare(create)
            yield self.writing
            if (self.writing / CURRENT).exists():
                self._push()

    def _prepare(self, create: bool) -> None:
        store = self.open_store(create=create)
        root, _ = read_root(store)
        if root is None and create:
            if recorded_root(self.writing) is not None:
                shutil.rmtree(self.writing)  # of an index that is there no more
            elif published_names(self.writing):
                self._push()
            return
        root, _ = require_root(store)
        base = recorded_root(self.writing)
        if base is not None and base.index_id != root.index_id:
            shutil.rmtree(self.writing)
        elif is_ahead(self.writing, base):
            self._push_pending(root.follows(base))
        pull(store, self.writing, at_hand=[self.reading], every=True, exact=True, make_room=self._make_room)

    def _push_pending(self, is_base: bool) -> None:
        name = current_name(self.writing)
        if is_base:
            logger.info("%s: pushing generation %s, which was built and not published", self.location, name)
            self._push()
        else:
            logger.warning("%s: generation %s was built here and not published in time: dropped", self.location, name)

    def _push(self) -> PushReport:
        return push(self.open_store(create=True), self.writing)

    def _make_room(self, needed: int) -> None:
        """Drop copies of other indexes, those unused for longest first. Raises `StoreError` if that is not enough."""
        homes = sorted(self.home.parent.glob("*/"), key=lambda home: home.stat().st_mtime)
        for home in [None, *(home for home in homes if home != self.home)]:
            if home is not None:
                _drop_unused(home)
            if _bytes_below(self.home.parent) + needed <= self.cache.max_bytes:
                self.home.touch()
                return
        raise StoreError(
            f"{self.location}: {needed / 2**30:.2f} GiB more do not fit into the {self.cache.max_bytes / 2**30:.2f} "
            f"GiB of {self.cache.folder}; raise cache_gib, or name another cache_folder"
        )


def refresh_elsewhere(copy: RemoteCopy) -> None:
    """`refresh` in a process of its own: one that uses a store has threads, which do not survive a fork.

    Errors as in `RemoteCopy.refresh`.
    """
    require_obstore()
    with ProcessPoolExecutor(1, get_context("spawn")) as process:
        process.submit(_refresh, copy.location, copy.cache, copy.shards).result()


def _refresh(location: Location, cache: CopyCache, shards: tuple[int, ...] | None) -> None:
    RemoteCopy(location, cache, shards=shards).refresh()


def _drop_unused(home: Path) -> None:
    """Remove the copies of an index, unless somebody uses them, or they hold what is nowhere else."""
    writing = home / "writing"
    with suppress(KalmCacheError), build_lock(home):
        base = recorded_root(writing)
        if (
            unfinished_builds(writing)
            or is_ahead(writing, base)
            or any(_is_read(manifest) for manifest in home.glob(f"reading*/generations/*/{MANIFEST}"))
        ):
            return
        logger.info("dropping the local copy %s to make room", home)
        shutil.rmtree(home, ignore_errors=True)


def _is_read(manifest: Path) -> bool:
    with exclude(manifest) as is_free:
        return not is_free


def _bytes_below(folder: Path) -> int:
    """Of all files, each once however many names it has."""
    stats = (path.stat() for path in folder.rglob("*") if path.is_file())
    return sum({(stat.st_dev, stat.st_ino): stat.st_size for stat in stats}.values())
