"""Small steps for tests of the harness itself."""

from __future__ import annotations

import os
import time
from pathlib import Path


def write_and_rename(folder: Path) -> None:
    """One file, written in one call, synced, renamed, and its folder synced."""
    (folder / "beside").write_bytes(b"0123456789")
    for path, target in ((folder / "beside", None), (folder, folder / "file")):
        if target is not None:
            (folder / "beside").rename(target)
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def seconds_since_epoch() -> list[float]:
    """What the clock says, twice."""
    return [time.time(), time.time()]
