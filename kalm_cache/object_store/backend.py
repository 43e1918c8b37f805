"""obstore, as far as it is used: one class for every kind of store. Raises obstore's own errors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import unquote

from kalm_cache.errors import MissingExtraError, StoreError
from kalm_cache.object_store.location import Location
from kalm_cache.storage.locks import build_lock

if TYPE_CHECKING:
    from obstore import ObjectMeta, PutMode
    from obstore.store import ObjectStore as AnyStore

RETRIES = {"max_retries": 4, "retry_timeout": timedelta(seconds=60)}  # within each of our own attempts
LEAST_PART_BYTES, MOST_PARTS = 8 << 20, 9_000  # of a large object; S3 takes 10,000
_memory: dict[str, Any] = {}  # stores of this process by URL, for tests


@dataclass(frozen=True, slots=True)
class Found:
    """An object's content, and the tag by which it is told from a later one."""

    content: bytes
    tag: Any


@dataclass(frozen=True, slots=True)
class Listed:
    """An object: its size, when it was written, by the store's clock, and the tag of this version."""

    bytes: int
    modified: datetime
    tag: str | None


class Backend:
    """One object store, from its prefix on."""

    def __init__(self, store: AnyStore) -> None:
        self._store = store

    def read(self, path: str, max_bytes: int) -> Found:
        """A small object. Raises `FileNotFoundError`."""
        import obstore

        result = obstore.get(self._store, path)
        meta = result.meta
        tag = {name: meta[name] for name in ("e_tag", "version") if meta[name] is not None}
        if meta["size"] > max_bytes:
            raise StoreError(f"{path}: has {meta['size']} bytes, expected {max_bytes} at most")
        return Found(bytes(result.bytes()), tag)

    def read_range(self, path: str, start: int, length: int, tag: str | None = None) -> bytes:
        """Bytes of an object. Raises `FileNotFoundError`; obstore's `PreconditionError` where its tag is not `tag`."""
        import obstore

        if tag is None:
            return bytes(obstore.get_range(self._store, path, start=start, length=length))
        found = obstore.get(self._store, path, options={"range": (start, start + length), "if_match": tag})
        return bytes(found.bytes())

    def write(self, path: str, content: bytes) -> None:
        """A small object, whatever was there."""
        self._put(path, content, "overwrite")

    def write_file(self, path: str, file: Path) -> None:
        """A file as an object, in parts where it is large."""
        import obstore

        part = max(LEAST_PART_BYTES, file.stat().st_size // MOST_PARTS + 1)
        obstore.put(self._store, path, file, chunk_size=part, max_concurrency=4)

    def swap(self, path: str, content: bytes, expected: Found | None) -> None:
        """Write if what is there is `expected` (`None`: nothing). Raises obstore's errors where it is not."""
        self._put(path, content, "create" if expected is None else expected.tag)

    def _put(self, path: str, content: bytes, mode: PutMode) -> None:
        import obstore

        obstore.put(self._store, path, content, mode=mode)

    def list(self, folder: str) -> dict[str, Listed]:
        """Every object below a folder, by path."""
        import obstore

        pages = obstore.list(self._store, folder)
        return {one["path"]: _listed(one) for page in pages for one in page}

    def info(self, path: str) -> Listed:
        """What a list would say of one object. Raises `FileNotFoundError`."""
        import obstore

        return _listed(obstore.head(self._store, path))

    def delete(self, paths: Sequence[str]) -> None:
        """Remove objects; one that is not there may raise `FileNotFoundError`."""
        import obstore

        obstore.delete(self._store, list(paths))


def _listed(meta: ObjectMeta) -> Listed:
    return Listed(meta["size"], meta["last_modified"], meta["e_tag"])


class FolderBackend(Backend):
    """A folder as an object store. obstore has no if-match for one: `swap` compares under a lock of the folder."""

    def __init__(self, store: AnyStore, folder: Path) -> None:
        super().__init__(store)
        self._folder = folder

    def swap(self, path: str, content: bytes, expected: Found | None) -> None:
        """See `Backend.swap`."""
        from obstore.exceptions import PreconditionError

        if expected is None:
            return super().swap(path, content, None)
        with build_lock(self._folder):
            if self.read(path, 1 << 30).content != expected.content:
                raise PreconditionError(f"{path}: is another one by now")
            self.write(path, content)


def require_obstore() -> None:
    """Raise `MissingExtraError` where obstore is not installed."""
    try:
        import obstore  # noqa: F401
    except ImportError as exc:
        raise MissingExtraError("obstore", "cloud") from exc


def open_backend(location: Location, *, create: bool = False) -> Backend:
    """The store of a location, with credentials and options from the environment, as obstore takes them.

    Args:
        location: where.
        create: make the folder of a `file://` URL.

    Raises:
        MissingExtraError: obstore is not installed.
        StoreError: the environment does not fit the store, or the folder of a `file://` URL is not there.
    """
    require_obstore()
    from obstore.exceptions import BaseError
    from obstore.store import LocalStore, MemoryStore, from_url

    if location.scheme == "memory":
        return Backend(_memory.setdefault(location.url, MemoryStore()))
    if location.scheme == "file":
        folder = Path(unquote(location.path))
        if not create and not folder.is_dir():
            raise StoreError(f"{location}: there is no such folder")
        return FolderBackend(LocalStore(folder, mkdir=create), folder)
    try:
        return Backend(from_url(location.url, retry_config=cast(Any, RETRIES)))
    except (BaseError, ValueError) as exc:
        from kalm_cache.object_store.store import one_line_of

        raise StoreError(f"{location}: cannot be opened: {one_line_of(exc)}") from None
