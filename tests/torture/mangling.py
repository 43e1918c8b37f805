"""Changes to a file that somebody might send: absurd values where the file has a structure, and damaged bytes.

Knows JSON, the header of a safetensors file, and bytes. What is drawn depends on the seed alone.
"""

from __future__ import annotations

import copy
import json
import math
import random
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

DEEP = "[" * 200_000
ABSURD: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2, 7, 255, 2**31, -(2**31), 2**53, 2**63 - 1, 2**63, -(2**63) - 1, 10**9, 10**30),
    *(0.5, -0.0, 1e300, math.nan, math.inf, -math.inf),
    *("", "x", "5", "../../../../etc/passwd", "/etc/passwd", "..", ".", "a\nb", "a\0b", "\ud800", "²", "x" * 100_000),
    *([], {}, [[]], [None], {"": None}, ["x"] * 1000, list(range(1000))),
)
Change = Callable[[random.Random, Path], None]


def mangle(pick: random.Random, path: Path) -> None:
    """Change a file in one or two places: where it has a structure, mostly there."""
    for _ in range(pick.choice((1, 1, 1, 2))):
        if not is_readable(path):
            return
        structured = _STRUCTURED.get(path.suffix, _json if path.name in ("JOURNAL",) else None)
        if structured is not None and pick.random() < 0.75:
            structured(pick, path)
        else:
            pick.choice(_RAW)(pick, path)


def is_readable(path: Path) -> bool:
    """Whether a file may be read whole: it is no link, which may lead to an endless one, and not huge."""
    return not path.is_symlink() and path.stat().st_size < 64 << 20


def _json(pick: random.Random, path: Path) -> None:
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return
    path.write_bytes(_dumped(changed(pick, value), pick))


def changed(pick: random.Random, value: Any) -> Any:
    """A JSON value with one change anywhere in it."""
    value = copy.deepcopy(value)
    places = list(_places(value))
    if not places or pick.random() < 0.02:
        return pick.choice(ABSURD)
    parent, key = pick.choice(places)
    kind = pick.randrange(6)
    if kind == 0:
        del parent[key]
    elif kind == 1 and isinstance(parent, dict):
        parent[pick.choice(("unknown", "..", "", "/etc/passwd", "a\nb"))] = parent.pop(key)
    elif kind == 2 and isinstance(parent[key], int):
        parent[key] += pick.choice((-1, 1, 1000, 10**9))
    elif kind == 3:
        parent[key] = pick.choice(places)[0]
        value = json.loads(json.dumps(_without_cycles(value, 0)))
    else:
        parent[key] = pick.choice(ABSURD)
    return value


def _places(value: Any, most: int = 400) -> Iterator[tuple[Any, Any]]:
    """Parent and key of what is in a value; of a long list or object, its beginning and its end."""
    keys = list(value) if isinstance(value, dict) else list(range(len(value))) if isinstance(value, list) else []
    for key in keys if len(keys) <= most else (*keys[: most // 2], *keys[-most // 2 :]):
        yield value, key
        yield from _places(value[key], most)


def _without_cycles(value: Any, depth: int) -> Any:
    if depth > 12:
        return None
    if isinstance(value, dict):
        return {key: _without_cycles(item, depth + 1) for key, item in value.items()}
    return [_without_cycles(item, depth + 1) for item in value] if isinstance(value, list) else value


def _dumped(value: Any, pick: random.Random) -> bytes:
    text = json.dumps(value)
    chance = pick.random()
    if chance < 0.04:
        text = text.replace(":", ":" + DEEP, 1)
    elif chance < 0.08:
        text = text.replace("}", f', "n": {"9" * 1_000_000}}}', 1)
    return text.encode("utf-8", "surrogatepass")


def _header(pick: random.Random, path: Path) -> None:
    """The header of a safetensors file; now and then its length says something else."""
    content = path.read_bytes()
    (size,) = struct.unpack_from("<Q", content)
    try:
        header = _dumped(changed(pick, json.loads(content[8 : 8 + size])), pick)
    except (ValueError, RecursionError):
        return
    said = len(header) if pick.random() < 0.9 else pick.choice((0, 1, len(content) * 2, 2**40, 2**63, 2**64 - 1))
    path.write_bytes(struct.pack("<Q", said) + header + content[8 + size :])


def _cut(pick: random.Random, path: Path) -> None:
    path.write_bytes(path.read_bytes()[: pick.randrange(path.stat().st_size + 1)])


def _number(pick: random.Random, path: Path) -> None:
    """An absurd number in the first part of a file, where headers are."""
    content = bytearray(path.read_bytes())
    at = pick.randrange(max(1, min(len(content), 400)))
    said = struct.pack("<q", pick.choice((0, -1, 1, 2**31 - 1, 2**31, 2**40, 2**62, -(2**63))))
    content[at : at + 8] = said[: pick.choice((1, 2, 4, 8))]
    path.write_bytes(content)


def _splice(pick: random.Random, path: Path) -> None:
    content = path.read_bytes()
    at, other = (pick.randrange(len(content) + 1) for _ in range(2))
    inserted = pick.choice((b"\0", b"\n", b"\xff\xfe", DEEP.encode(), b'"', b"{", content[other : other + 64]))
    path.write_bytes(content[:at] + inserted + content[at + pick.choice((0, len(inserted))) :])


def _other_kind(pick: random.Random, path: Path) -> None:
    """Empty, brackets alone, sparse and huge, or a link that leads out."""
    path.unlink()
    kind = pick.randrange(4)
    if kind == 3:
        path.symlink_to(pick.choice(("/etc/passwd", "/dev/zero", "nowhere", "..")))
        return
    path.write_bytes((b"", DEEP.encode(), b"{")[kind])
    if kind == 2:
        with path.open("r+b") as file:
            file.truncate(4 << 30)


_RAW: tuple[Change, ...] = (_cut, _number, _number, _splice, _other_kind)
_STRUCTURED: dict[str, Change] = {".json": _json, ".safetensors": _header}
