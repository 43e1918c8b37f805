"""An object store with its faults handled: tried again, told in one line, without secrets. Knows nothing of indexes."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TypeVar

from kalm_cache.errors import StoreError
from kalm_cache.foreign_files import MAX_BYTES
from kalm_cache.object_store.backend import Backend, Found, Listed, open_backend
from kalm_cache.object_store.location import Location, redacted

PAUSES = (0.2, 1.0, 3.0)  # seconds before each further attempt, beside those that obstore makes itself
DELETED_AT_ONCE = 500
_CODE = re.compile(r"<Code>(\w+)</Code>")
_T = TypeVar("_T")


class AccessRefusedError(StoreError):
    """The store does not take the credentials, or does not let them do this."""


class ObjectStore:
    """The objects below one URL. Every operation may be repeated: whoever was cut off does it again."""

    def __init__(self, location: Location, backend: Backend, pauses: Sequence[float] = PAUSES) -> None:
        """`pauses`: seconds to wait before each further attempt."""
        self.location, self._backend, self._pauses = location, backend, pauses

    def __str__(self) -> str:
        return str(self.location)

    def get(self, path: str, max_bytes: int = MAX_BYTES) -> Found | None:
        """A small object, `None` where there is none. Raises `StoreError`."""
        try:
            return self._try(path, lambda: self._backend.read(path, max_bytes))
        except FileNotFoundError:
            return None

    def get_range(self, path: str, start: int, length: int, tag: str | None = None) -> bytes:
        """Bytes of an object, all of them, of the version with a tag where one is given.

        Raises:
            FileNotFoundError: there is no such object.
            obstore's PreconditionError: it has another tag.
            StoreError: the store fails.
        """

        def read() -> bytes:
            content = self._backend.read_range(path, start, length, tag)
            if len(content) != length:
                raise ConnectionError(f"{len(content)} bytes of {length} arrived")
            return content

        return self._try(path, read)

    def put(self, path: str, content: bytes | Path) -> None:
        """An object that is always the same under this name, or whose writer is alone. Raises `StoreError`."""
        write: Callable[[], None]
        if isinstance(content, Path):
            write = partial(self._backend.write_file, path, content)
        else:
            write = partial(self._backend.write, path, content)
        with self._in_a_bucket():
            self._try(path, write)

    def swap(self, path: str, content: bytes, expected: Found | None) -> bool:
        """Put an object in the place of `expected` (`None`: of nothing); false where another one is there by now.

        An answer that is lost changes nothing: what stands there then says whose it is.

        Raises:
            StoreError: it cannot be said whether it was written.
        """
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        try:
            with self._in_a_bucket():
                self._try(path, lambda: self._backend.swap(path, content, expected))
        except (AlreadyExistsError, PreconditionError):
            found = self.get(path)
            return found is not None and found.content == content
        return True

    def list(self, folder: str) -> dict[str, Listed]:
        """Every object below a folder, by path. Raises `StoreError`."""
        try:
            return self._try(folder, lambda: self._backend.list(folder))
        except FileNotFoundError:
            return {}

    def info(self, path: str) -> Listed:
        """What a list would say of one object. Raises `FileNotFoundError`, `StoreError`."""
        return self._try(path, lambda: self._backend.info(path))

    def delete(self, paths: Sequence[str]) -> None:
        """Remove objects; those that are not there are no error. Raises `StoreError`."""
        for start in range(0, len(paths), DELETED_AT_ONCE):
            some = paths[start : start + DELETED_AT_ONCE]
            try:
                self._try(some[0], lambda some=some: self._backend.delete(some))  # type: ignore[misc]
            except FileNotFoundError:
                for path in some if len(some) > 1 else ():
                    self.delete([path])

    @contextmanager
    def _in_a_bucket(self) -> Iterator[None]:
        """Nothing else can be missing where something is written."""
        try:
            yield
        except FileNotFoundError as exc:
            raise StoreError(f"{self}: there is no such bucket or container: {one_line_of(exc)}") from None

    def _try(self, path: str, operation: Callable[[], _T]) -> _T:
        """Do it, some times over where the store or the network fails."""
        from obstore.exceptions import (
            AlreadyExistsError,
            BaseError,
            PermissionDeniedError,
            PreconditionError,
            UnauthenticatedError,
        )

        for pause in (*self._pauses, None):
            try:
                return operation()
            except (FileNotFoundError, AlreadyExistsError, PreconditionError):
                raise
            except (PermissionDeniedError, UnauthenticatedError) as exc:
                way_out = "check the credentials in the environment, and what they may do"
                raise AccessRefusedError(f"{self}/{path}: access refused: {one_line_of(exc)}; {way_out}") from None
            except (BaseError, OSError, TimeoutError) as exc:
                if pause is None:
                    raise StoreError(
                        f"{self}/{path}: the store failed {len(self._pauses) + 1} times: {one_line_of(exc)}; run the "
                        "same command again"
                    ) from None  # the cause may hold what must not be shown
                time.sleep(pause)
        raise AssertionError


def open_store(location: Location, *, create: bool = False) -> ObjectStore:
    """The store of a location; arguments and errors as of `open_backend`."""
    return ObjectStore(location, open_backend(location, create=create))


def one_line_of(exc: BaseException) -> str:
    """What a store says of a failure: its first line, without secrets, and the code in its answer."""
    text = str(exc)
    code = _CODE.search(text)
    line = redacted(text.split("\n")[0].split("<?xml")[0].split("<Error>")[0]).rstrip(" :")
    return (line if len(line) <= 300 else f"{line[:300]}…") + (f" ({code[1]})" if code else "")
