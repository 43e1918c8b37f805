"""What the operating system allows and refuses: the limit of open files, its errors with a way out, file systems.

Knows nothing of indexes and services. A library must not change the limits of a process that is not its own: only the
command line and the service call `raise_open_files_limit`.
"""

from __future__ import annotations

import errno
import os
import pwd
import resource
import shutil
from contextlib import suppress
from pathlib import Path

MOUNTS = Path("/proc/self/mountinfo")
NETWORK = {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "ceph", "lustre", "glusterfs", "afs", "gpfs", "beegfs"}
NETWORK_FUSE = ("fuse.sshfs", "fuse.s3fs", "fuse.gcsfuse", "fuse.glusterfs", "fuse.ceph", "fuse.rclone", "fuse.juicefs")
FULL_BELOW_BYTES = 1 << 20  # free bytes of a disk on which a write is cut short because it is full
FOLD = "raise the limit (ulimit -n), or fold the segments: kalm-cache fold"
_PERMISSION = "permission is missing: check the owner and mode of the folder"
_WAYS_OUT = {
    errno.ENOSPC: "the disk is full: free some space",
    errno.EDQUOT: "the quota is used up: free some space",
    errno.EIO: "the disk fails: check it (dmesg) before anything else",
    errno.EROFS: "the file system is read-only: mount it writable, or copy the index elsewhere",
    errno.EACCES: _PERMISSION,
    errno.EPERM: _PERMISSION,
    errno.EMFILE: FOLD,
    errno.ENFILE: "the machine's files are used up: sysctl fs.file-max, or fold the segments: kalm-cache fold",
    errno.ENOMEM: "memory or memory maps are used up: free memory, raise the limit (sysctl vm.max_map_count), or fold "
    "the segments: kalm-cache fold",
}


def raise_open_files_limit() -> int:
    """Raise this process's soft limit of open files to its hard one, where the system lets it; returns what holds now.

    Shells still set it to 1,024 for programs that call select(); none of ours does. `RLIM_INFINITY`: there is no limit.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with suppress(OSError, ValueError):  # macOS takes less than the hard limit that it names
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def way_out(exc: BaseException, path: Path | None = None) -> str | None:
    """What to do about an error that is the machine's and not the data's; `None` for every other one.

    Args:
        exc: an `OSError`, or a library's error that quotes the system.
        path: what was read or written, where the error does not say.
    """
    number, where = _errno_of(exc, path), _path_of(exc, path)
    if number in (errno.EACCES, errno.EPERM) and where is not None:
        return _way_to_permission(where)
    return _WAYS_OUT.get(number)


def explained(exc: BaseException, path: Path | None = None) -> str:
    """The error in words, and what to do where it is the machine's; arguments as in `way_out`."""
    advice = way_out(exc, path)
    return _words_of(exc, path) + (f"; {advice}" if advice else "")


def refused(exc: BaseException, path: Path | None = None) -> str:
    """The same of something that could not be read: what is not the machine's is for `verify` to look at."""
    return explained(exc, path) if way_out(exc, path) else f"run kalm-cache verify: {one_line(exc)}"


def describe(exc: OSError) -> str:
    """An `OSError` in one line: the file, what the system says, and what to do."""
    where = "" if exc.filename is None else f"{os.fsdecode(exc.filename)}: "
    return where + explained(exc)


def _words_of(exc: BaseException, path: Path | None) -> str:
    number = _errno_of(exc, path)
    return os.strerror(number) if number in _WAYS_OUT else (getattr(exc, "strerror", None) or one_line(exc))


def one_line(error: BaseException) -> str:
    """What a library says, which may repeat much of a file: on one line, and not all of it."""
    words = "".join(char if char.isprintable() else " " for char in " ".join(str(error).split()))
    return words if len(words) <= 300 else f"{words[:300]}…"


def _errno_of(exc: BaseException, path: Path | None) -> int:
    """The system's number; of a library's error (FAISS, LMDB, torch), by the words that it quotes."""
    if isinstance(exc, OSError) and exc.errno:
        number = exc.errno
    else:
        number = next((number for number in _WAYS_OUT if os.strerror(number) in str(exc)), 0)
    where = _path_of(exc, path)
    if number == errno.EIO and where is not None and _is_full(where):
        return errno.ENOSPC  # LMDB calls a write that was cut short an input/output error
    return number


def _path_of(exc: BaseException, path: Path | None) -> Path | None:
    name = getattr(exc, "filename", None)
    return Path(os.fsdecode(name)) if isinstance(name, str | bytes) else path


def _is_full(path: Path) -> bool:
    with suppress(OSError):
        return shutil.disk_usage(_nearest(path)).free < FULL_BELOW_BYTES
    return False


def _way_to_permission(path: Path) -> str:
    """Who owns what is in the way, and who asks."""
    blocked = _nearest(path)
    with suppress(OSError):
        stat, asks = blocked.stat(), os.geteuid()
        return (
            f"permission is missing: {blocked} belongs to {_user(stat.st_uid)} (mode {stat.st_mode & 0o7777:04o}), "
            f"this process is {_user(asks)}: chown or chmod it, or run as its owner"
        )
    return _PERMISSION


def _nearest(path: Path) -> Path:
    """The path, or the first folder above it that is there."""
    for place in (path, *path.parents):
        with suppress(OSError):
            if place.exists():
                return place
    return Path.cwd()


def _user(number: int) -> str:
    try:
        return f"{pwd.getpwuid(number).pw_name} (uid {number})"
    except KeyError:
        return f"uid {number}"


def file_system_of(path: Path) -> str:
    """The kind of file system that a path is on, as /proc/self/mountinfo names it; empty where it does not."""
    resolved, best, kind = path.resolve(), -1, ""
    mounts = MOUNTS.read_text("utf-8", "replace") if MOUNTS.is_file() else ""
    for line in mounts.splitlines():
        before, _, after = line.partition(" - ")
        fields = before.split(" ")
        if len(fields) < 5 or not after:
            continue
        mounted = Path(fields[4].encode().decode("unicode_escape").encode("latin-1").decode("utf-8", "replace"))
        if resolved.is_relative_to(mounted) and len(mounted.parts) >= best:
            best, kind = len(mounted.parts), after.split(" ")[0]
    return kind


def is_network(kind: str) -> bool:
    """Whether a kind of file system is shared by machines."""
    return kind in NETWORK or kind.startswith(NETWORK_FUSE)
