"""Files that no checksum of their own vouches for, against the manifest's SHA-256, before anything is read from them.

Records and texts are checked one by one when they are read, and the pages that lead to them when they are opened. A
first stage is neither: a flipped bit in it would put other passages before the reranker, and nobody would know.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

from kalm_cache.errors import StoreError
from kalm_cache.generations.generation import FileReceipt, Generation
from kalm_cache.storage.durable import file_digest

FIRST_STAGE = "/first_stage/"


def require_sound_first_stage(generation: Generation) -> None:
    """Read every file of the first stages once: some 0.7 s a GB on one core, less on several.

    Raises:
        StoreError: one is damaged, or cannot be read.
    """
    files = [(name, receipt) for name, receipt in generation.manifest.files.items() if FIRST_STAGE in name]

    def check(file: tuple[str, FileReceipt]) -> None:
        path = generation.folder / file[0]
        try:
            found = file_digest(path)
        except OSError as exc:
            raise StoreError(f"{path}: cannot be read: {exc.strerror}; run kalm-cache verify") from exc
        if found != file[1].sha256:
            raise StoreError(f"{path}: its SHA-256 is not that of its receipt; run kalm-cache verify")

    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as threads:  # hashing lets other threads run
        for _ in threads.map(check, files):
            pass
