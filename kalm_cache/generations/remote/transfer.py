"""Files to and from the store: in parts, several at once, each checked by its SHA-256. Knows no generations."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from kalm_cache.errors import StoreError
from kalm_cache.generations.manifest import FileReceipt
from kalm_cache.generations.remote.root import FILES, object_name
from kalm_cache.object_store.store import ObjectStore
from kalm_cache.process.stopping import stop_if_asked
from kalm_cache.storage.durable import publish_file

PART_BYTES = 8 << 20
THREADS = 8
ATTEMPTS = 3  # at a file whose bytes are not those of its digest
logger = logging.getLogger(__name__)
PARTIAL = ".part"  # suffix of a file that has not arrived yet


def download(
    store: ObjectStore, files: Sequence[tuple[Path, FileReceipt]], on_part: Callable[[int], None] = lambda count: None
) -> None:
    """Fetch files by their digests; each is in its place when it is complete, verified and durable.

    `on_part` is called with the bytes of every part that arrived, in this thread.

    Raises:
        FileNotFoundError: the store does not have one of them (any more).
        StoreError: the store fails, or what arrives is damaged.
    """
    small = [file for file in files if file[1].bytes <= PART_BYTES]
    with _threads() as threads:
        for count in _in_order(threads, lambda place: _download_small(store, *small[place]), range(len(small))):
            on_part(count)
        for path, receipt in files:
            if receipt.bytes > PART_BYTES:
                _download_large(store, path, receipt, threads, on_part)


def _download_small(store: ObjectStore, path: Path, receipt: FileReceipt) -> int:
    """A file of one part; its bytes."""
    for _ in range(ATTEMPTS):
        content = store.get_range(object_name(receipt.sha256), 0, receipt.bytes) if receipt.bytes else b""
        if hashlib.sha256(content).hexdigest() == receipt.sha256:
            arriving = _arriving(path)
            arriving.write_bytes(content)
            publish_file(arriving, path)
            return receipt.bytes
    raise _damaged(store, receipt)


def _download_large(
    store: ObjectStore, path: Path, receipt: FileReceipt, threads: ThreadPoolExecutor, on_part: Callable[[int], None]
) -> None:
    arriving = _arriving(path)
    for _ in range(ATTEMPTS):
        _fetch_parts(store, arriving, receipt, threads, on_part)
        if receipt.has_digest_of(arriving):
            publish_file(arriving, path)
            return
    arriving.unlink()
    raise _damaged(store, receipt)


def _arriving(path: Path) -> Path:
    """Where a file is until it is verified."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.with_name(path.name + PARTIAL)


def _damaged(store: ObjectStore, receipt: FileReceipt) -> StoreError:
    name = object_name(receipt.sha256)
    return StoreError(f"{store}/{name}: arrived damaged {ATTEMPTS} times: its SHA-256 is not its name")


def _fetch_parts(
    store: ObjectStore, path: Path, receipt: FileReceipt, threads: ThreadPoolExecutor, on_part: Callable[[int], None]
) -> None:
    name, size = object_name(receipt.sha256), receipt.bytes
    with path.open("wb") as file:

        def fetch(start: int) -> int:
            content = store.get_range(name, start, min(PART_BYTES, size - start))
            return os.pwrite(file.fileno(), content, start)

        for count in _in_order(threads, fetch, range(0, size, PART_BYTES)):
            on_part(count)


def _in_order(threads: ThreadPoolExecutor, work: Callable[[int], int], starts: Iterable[int]) -> Iterator[int]:
    """Results of `work`, a bounded number of calls ahead."""
    ahead: list[Future[int]] = []
    try:
        for start in starts:
            stop_if_asked()
            ahead.append(threads.submit(work, start))
            if len(ahead) > THREADS:
                yield ahead.pop(0).result()
        while ahead:
            yield ahead.pop(0).result()
    finally:
        for future in ahead:  # they write to a file that is about to be closed
            if not future.cancel():
                future.exception()


def upload(store: ObjectStore, files: Sequence[tuple[Path, FileReceipt]]) -> None:
    """Store files under their digests.

    Raises:
        StoreError: the store fails, or a file here is not what its receipt says.
    """

    def put(file: tuple[Path, FileReceipt]) -> None:
        path, receipt = file
        if path.stat().st_size != receipt.bytes or not receipt.has_digest_of(path):
            raise StoreError(f"{path}: its SHA-256 is not that of its receipt; run kalm-cache verify")
        store.put(object_name(receipt.sha256), path)

    with _threads() as threads:
        for _ in threads.map(put, files):
            stop_if_asked()


def upload_missing(store: ObjectStore, files: Sequence[tuple[Path, FileReceipt]]) -> list[FileReceipt]:
    """Store those of the files that the store lacks; returns theirs. Errors as of `upload`."""
    there = store.list(FILES)
    missing = {
        receipt.sha256: (path, receipt)
        for path, receipt in files
        if (listed := there.get(object_name(receipt.sha256))) is None or listed.bytes != receipt.bytes
    }
    if missing:
        moved = sum(receipt.bytes for _, receipt in missing.values())
        logger.info("uploading %.1f MiB to %s", moved / 2**20, store)
    upload(store, list(missing.values()))
    there = store.list(FILES) if missing else {}
    for _, receipt in missing.values():
        name = object_name(receipt.sha256)
        if name not in there or there[name].bytes != receipt.bytes:
            raise StoreError(f"{store}/{name}: did not arrive as it was sent; run the same command again")
    return [receipt for _, receipt in missing.values()]


@contextmanager
def _threads() -> Iterator[ThreadPoolExecutor]:
    """Threads that drop what they have not begun when something fails."""
    threads = ThreadPoolExecutor(THREADS, "kalm-cache-transfer")
    try:
        yield threads
    finally:
        threads.shutdown(cancel_futures=True)
