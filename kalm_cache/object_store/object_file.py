"""An object as a file to read: in ranges, each tried again where it fails, and all of one version."""

from __future__ import annotations

import io

from kalm_cache.errors import StoreError
from kalm_cache.object_store.backend import Listed
from kalm_cache.object_store.store import ObjectStore

BUFFER_BYTES = 8 << 20  # of a request while the object is read from end to end


class ObjectFile(io.RawIOBase):
    """The bytes of an object as it was when it was listed. Each read is one request, and nothing is kept."""

    def __init__(self, store: ObjectStore, path: str, listed: Listed) -> None:
        """`listed`: what is to be there; another version is an error."""
        self._store, self._path, self._listed = store, path, listed
        self._at = 0

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def tell(self) -> int:
        """Where the next read begins."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """As of any file."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._listed.bytes}[whence]
        self._at = max(0, start + offset)
        return self._at

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]  # typeshed's Buffer is 3.12's
        """Fill the start of `buffer`; 0 at the end.

        Raises:
            StoreError: the store fails, or has another object there by now.
        """
        count = min(len(buffer), self._listed.bytes - self._at)
        if count <= 0:
            return 0
        buffer[:count] = self._read(count)
        self._at += count
        return count

    def _read(self, count: int) -> bytes:
        from obstore.exceptions import PreconditionError

        try:
            return self._store.get_range(self._path, self._at, count, self._listed.tag)
        except (PreconditionError, FileNotFoundError):
            raise StoreError(
                f"{self._store}/{self._path}: was replaced or removed while it was read; run the same command again"
            ) from None


def open_object(store: ObjectStore, path: str, listed: Listed) -> io.BufferedReader:
    """An object that is read from end to end with few requests; `raw` reads what is asked for and no more."""
    return io.BufferedReader(ObjectFile(store, path, listed), BUFFER_BYTES)
