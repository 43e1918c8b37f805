"""The disk under an index: room, kind of file system, locks."""

from __future__ import annotations

import fcntl
import os
import shutil
from pathlib import Path

from kalm_cache.doctor.check import Check, verdict

NETWORK = {"nfs", "nfs4", "cifs", "smb3", "9p", "afs", "ceph", "lustre", "glusterfs", "fuse.sshfs", "fuse.s3fs"}
LEAST_FREE_BYTES = 64 << 20
USUAL_PAGE_BYTES = 4096


def check_disk(index: Path) -> Check:
    """Where an index lies, or would lie."""
    folder = next(parent for parent in (index.absolute(), *index.absolute().parents) if parent.is_dir())
    free, kind, page = shutil.disk_usage(folder).free, file_system(folder), os.sysconf("SC_PAGE_SIZE")
    size = sum(path.stat().st_size for path in index.rglob("*") if path.is_file())
    fail, warn = [], []
    if not _has_locks(folder):
        fail.append("its file system refuses locks: use a local disk, or mount NFS with its lock service (not nolock)")
    if free < LEAST_FREE_BYTES:
        fail.append("the disk is full: free some space")
    elif free < size:
        warn.append("a re-index builds the next generation beside this one: free as much as the index takes")
    if kind in NETWORK:
        warn.append(f"{kind}: LMDB maps and locks its files, which is slow or unsafe over a network; use a local disk")
    elif kind == "tmpfs":
        warn.append("tmpfs: the index takes memory, and is gone after a restart")
    elif kind == "overlay":
        warn.append("overlay: the index goes with its container; mount a volume")
    if page != USUAL_PAGE_BYTES:
        warn.append(f"memory pages of {page:,} bytes: a look-up reads more than it needs")
    if not os.access(folder, os.W_OK):
        warn.append("the folder cannot be written: it can be searched, but not changed")
    found = (
        f"{folder} on {kind}, {free / 2**30:,.1f} GiB free, the index takes {size / 2**30:,.2f} GiB; pages {page:,} B"
    )
    return verdict("disk", found, fail=fail, warn=warn)


def file_system(path: Path) -> str:
    """The kind of file system that holds a path, as /proc/self/mountinfo names it."""
    kind, longest = "unknown", -1
    for line in Path("/proc/self/mountinfo").read_text("utf-8").splitlines():
        before, _, after = line.partition(" - ")
        mount = Path(before.split()[4].replace("\\040", " "))
        if path.resolve().is_relative_to(mount) and len(mount.parts) >= longest:
            kind, longest = after.split()[0], len(mount.parts)
    return kind


def _has_locks(folder: Path) -> bool:
    """A shared lock on the folder itself: nothing is written for it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:  # held by somebody: there are locks
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True
