"""The open cache files of this process, each once: LMDB allows no second environment on a file."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from kalm_cache.storage.text_cache.cache_file import CacheFile


class OpenFiles:
    """Files by folder, and how many use each. In a forked child it starts empty: environments do not cross a fork."""

    def __init__(self) -> None:
        self._forget()

    def _forget(self) -> None:
        self._process, self._lock = os.getpid(), threading.Lock()
        self._files: dict[Path, CacheFile] = {}
        self._users: dict[CacheFile, int] = {}

    def use(self, folder: Path, max_bytes: int, *, writable: bool) -> CacheFile:
        """The file of a folder, opened if it is not; `leave` it once for each use. Raises as `CacheFile`."""
        if os.getpid() != self._process:
            for inherited in self._files.values():
                inherited.close()  # frees this process's map and descriptors; LMDB leaves the parent's slots alone
            self._forget()
        with self._lock:
            file = self._files.get(folder)
            if file is None:
                file = self._files[folder] = CacheFile(folder, max_bytes, writable=writable)
            self._users[file] = self._users.get(file, 0) + 1
            return file

    def leave(self, file: CacheFile) -> None:
        """End one use."""
        with self._lock:
            self._users[file] -= 1
            if not self._users[file]:
                del self._users[file], self._files[file.folder]
                file.close()


OPEN_FILES = OpenFiles()
