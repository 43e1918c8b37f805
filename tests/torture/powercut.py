"""What a disk may hold after a power cut, from the trace of one undisturbed run: what was not synced is gone.

Two disks, the worst of their kind. The strict one keeps what POSIX promises: a file's content as it was when the file
was synced last, and a folder's names as they were when the folder was. The hasty one writes names at once and contents
late, as file systems do that journal metadata alone: a file that was renamed and never synced is empty.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Literal

from tests.torture.shim import Call

Disk = Literal["strict", "hasty"]


@dataclass(slots=True)
class File:
    """`synced`: where its content is kept as it was synced last, `None` if it never was; `cut`: truncated since."""

    synced: Path | None = None
    cut: bool = False

    def describe(self, disk: Disk) -> str:
        """What is left of it."""
        return "" if self.synced is None or (self.cut and disk == "hasty") else str(self.synced)


@dataclass(slots=True)
class Folder:
    """Its names now, and as they were synced last."""

    names: dict[str, File | Folder] = field(default_factory=dict)
    synced: dict[str, File | Folder] = field(default_factory=dict)

    def left(self, disk: Disk) -> dict[str, File | Folder]:
        """The names that are left."""
        return self.synced if disk == "strict" else self.names

    def describe(self, disk: Disk) -> dict[str, object]:
        """All that is left below it."""
        return {name: node.describe(disk) for name, node in sorted(self.left(disk).items())}


class Replay:
    """A folder's tree, followed through a trace."""

    def __init__(self, start: Path, shadow: Path) -> None:
        """`start`: the folder before the run; `shadow`: what each file held when it was synced, see shim.py."""
        self._root, self._shadow = _read(start), shadow

    def states(self, calls: Sequence[Call], disk: Disk) -> Iterator[tuple[int, dict[str, object]]]:
        """How many calls were done, and what a cut right then leaves; only where that is another than before."""
        last = None
        for nth, call in enumerate(calls, start=1):
            self._follow(nth, call)
            left = self._root.describe(disk)
            if left != last:
                last = left
                yield nth, left

    def _follow(self, nth: int, call: Call) -> None:
        kept = self._shadow / str(nth)
        if call.kind == "sync" or (call.kind == "write" and kept.exists()):
            self._sync(self._node(call.path), kept)
        elif call.kind == "open":
            self._open(call)
        elif call.kind == "truncate":
            node = self._node(call.path)
            if isinstance(node, File):
                node.cut = True
        elif call.kind in ("rename", "link"):
            self._move(call)
        elif call.kind in ("unlink", "rmdir"):
            parent, name = self._place(call.path)
            parent.names.pop(name, None)
        elif call.kind == "mkdir":
            parent, name = self._place(call.path)
            parent.names.setdefault(name, Folder())

    def _sync(self, node: File | Folder | None, kept: Path) -> None:
        if isinstance(node, Folder):
            node.synced = dict(node.names)
        elif node is not None and kept.exists():
            node.synced, node.cut = kept, False

    def _open(self, call: Call) -> None:
        if call.detail == "nameless":
            return
        parent, name = self._place(call.path)
        if "create" in call.detail:
            parent.names.setdefault(name, File())
        node = parent.names.get(name)
        if "truncate" in call.detail and isinstance(node, File):
            node.cut = True

    def _move(self, call: Call) -> None:
        node = self._node(call.detail)
        if node is None:
            return
        if call.kind == "rename":
            parent, name = self._place(call.detail)
            del parent.names[name]
        parent, name = self._place(call.path)
        parent.names[name] = node

    def _place(self, path: str) -> tuple[Folder, str]:
        if not path:
            return Folder(), ""  # the watched folder itself is taken as given
        *above, name = PurePosixPath(path).parts
        node: File | Folder | None = self._root
        for part in above:
            node = node.names.get(part) if isinstance(node, Folder) else None
        return (node, name) if isinstance(node, Folder) else (Folder(), name)  # a nameless file is nowhere

    def _node(self, path: str) -> File | Folder | None:
        if not path:
            return self._root
        parent, name = self._place(path)
        return parent.names.get(name)


def restore(left: dict[str, object], folder: Path) -> None:
    """Write what a cut leaves."""
    folder.mkdir()
    for name, node in left.items():
        if isinstance(node, dict):
            restore(node, folder / name)
        elif node:
            shutil.copyfile(str(node), folder / name)
        else:
            (folder / name).touch()


def _read(path: Path) -> Folder:
    names: dict[str, File | Folder] = {
        one.name: _read(one) if one.is_dir() else File(synced=one) for one in path.iterdir()
    }
    return Folder(names, dict(names))
