"""Files that somebody else may have written: bounded before they are parsed, every field checked before it is used.

An index or a checkpoint may come from anywhere. What is read here is a regular file of a bounded size; JSON is of a
bounded depth, its numbers are finite and fit into 64 bits; a dataclass says of what type and in which range each field
is; names are digits, and paths are relative and stay inside their folder. Knows nothing of what the files hold.
"""

from __future__ import annotations

import errno
import functools
import json
import math
import os
import stat
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError

MAX_BYTES = 16 << 20  # of a JSON file; parsed, it may take 25 times as much
MAX_DEPTH = 64
MAX_PATH_BYTES, MAX_PART_BYTES = 1024, 255
STRICT = ConfigDict(extra="forbid", strict=True)  # a dataclass names it `__pydantic_config__`

T = TypeVar("T")


def read_bounded(path: Path, max_bytes: int = MAX_BYTES) -> bytes:
    """A whole file. Raises `OSError`, and `ValueError` for one that is larger, or a pipe or a device."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe without a writer would block
    try:
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("it is no regular file")
        if status.st_size > max_bytes:
            raise ValueError(f"it has {status.st_size} bytes, expected {max_bytes} at most")
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            return file.read(max_bytes)
    finally:
        os.close(descriptor)


def read_json(path: Path, max_bytes: int = MAX_BYTES) -> Any:
    """The value of a JSON file. Raises `OSError`, and `ValueError` that says in one line what is wrong."""
    return parse_json(read_bounded(path, max_bytes))


def read_json_object(path: Path, max_bytes: int = MAX_BYTES) -> dict[str, Any]:
    """As `read_json`, of a file that must hold an object."""
    value = read_json(path, max_bytes)
    if not isinstance(value, dict):
        raise ValueError("it is not a JSON object")
    return value


def parse_json(content: bytes) -> Any:
    """JSON, bounded as the module says. Raises `ValueError`."""
    try:
        value = json.loads(content, parse_int=_whole, parse_float=_finite, parse_constant=_no_number)
    except RecursionError:
        raise ValueError(f"it is nested more than {MAX_DEPTH} deep") from None
    _check_depth(value)
    return value


def _whole(digits: str) -> int:
    if len(digits) > 20 or not -(1 << 63) <= int(digits) < 1 << 63:
        raise ValueError(f"a number of {len(digits)} digits is in it")
    return int(digits)


def _finite(digits: str) -> float:
    number = float(digits)
    return number if math.isfinite(number) else _no_number(digits[:20])


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is in it, which is no number")


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [item for value in level for item in _items(value)]
        if not level:
            return
    raise ValueError(f"it is nested more than {MAX_DEPTH} deep")


def _items(value: Any) -> list[Any]:
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [item for item in items if isinstance(item, (dict, list))]


def checked_fields(kind: type[T], fields: Any) -> T:
    """A dataclass from a parsed JSON object. Raises `ValueError` that names the first field that is wrong."""
    adapter: TypeAdapter[T] = _adapter(kind)  # type: ignore[arg-type]  # a type is hashable
    try:
        return adapter.validate_json(json.dumps(fields))  # strict, and yet objects become dataclasses
    except ValidationError as exc:
        error = exc.errors(include_url=False)[0]
        where = ".".join(_shown(str(part)) for part in error["loc"]) or "it"
        raise ValueError(f"{where}: {error['msg'].removeprefix('Value error, ')}") from exc


@functools.cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def is_generation_name(name: str) -> bool:
    """Whether a name is digits, as those of generations and segments are: never a path."""
    return name.isascii() and name.isdigit() and len(name) <= 18


def relative_path(name: str) -> str:
    """The name itself. Raises `ValueError` where it is not relative, or leaves the folder that it is relative to."""
    parts = name.split("/")
    if name.startswith("/"):
        problem = "is absolute"
    elif any(part in ("", ".", "..") for part in parts):
        problem = "does not stay inside its folder"
    elif not name.isprintable():  # line ends, NUL, halves of surrogate pairs
        problem = "holds characters that are not printable"
    elif len(name.encode()) > MAX_PATH_BYTES or any(len(part.encode()) > MAX_PART_BYTES for part in parts):
        problem = "is too long"
    else:
        return name
    raise ValueError(f"the name {_shown(name)} {problem}")


def foreign_link(folder: Path) -> Path | None:
    """A symbolic link in a folder, or the folder itself, that leads out of it, if there is one. Raises `OSError`."""
    home = os.path.realpath(folder)
    if Path(home).parent != Path(os.path.realpath(folder.parent)):
        return folder
    pending = [home]
    while pending:
        with os.scandir(pending.pop()) as entries:
            for entry in entries:
                if entry.is_symlink() and not os.path.realpath(entry.path).startswith(home + os.sep):
                    return Path(entry.path)
                if entry.is_dir(follow_symlinks=False):
                    pending.append(entry.path)
    return None


def _shown(name: str) -> str:
    return ascii(name if len(name) <= 60 else f"{name[:60]}…") if not name.isidentifier() else name[:60]


Count = Annotated[int, Field(ge=0, lt=3 << 61)]  # those that are counted next fit into 64 bits, too
Positive = Annotated[int, Field(ge=1, lt=1 << 31)]
GenerationName = Annotated[str, Field(pattern=r"^[0-9]{1,18}$")]
RelativePath = Annotated[str, AfterValidator(relative_path)]
