"""What is done to a text cache, and disturbed; what must be found in it then. Runs in a worker's children.

    python -m tests.torture.caching FOLDER SEED     writes, reads and trims until it is killed

A record's payload is drawn from its name, so that whoever finds it knows what it must be.
"""

from __future__ import annotations

import logging
import os
import random
import sys
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from kalm_cache.errors import IndexLockedError
from kalm_cache.storage.record import Record
from kalm_cache.storage.text_cache import upkeep
from kalm_cache.storage.text_cache.place import folder_of, live_number
from kalm_cache.storage.text_cache.text_cache import Namespace, TextCache, TextCacheOptions

MIB = 1 << 20
LIMIT = 16 * MIB
BATCH, BYTES = 16, 32 << 10  # records and bytes of what the writer takes at once: it never waits for more
FILLED, ADDED, TRIMMED_TO = 32, 3, 8 * MIB  # batches; more than the file holds, so that the oldest leave
UNIVERSE = [f"u{i}" for i in range(2000)]  # names of two that write at once; four times what the file holds


def batch(number: int) -> list[str]:
    """The names of a batch."""
    return [f"{number}-{i}" for i in range(BATCH)]


NAMES = [name for number in range(FILLED + 2 * ADDED + 1) for name in batch(number)]


def record_of(name: str) -> Record:
    """The record that only this name can have."""
    return Record(3, 4, 64, 100, False, random.Random(name).randbytes(BYTES - 1000))


def open_cache(folder: Path) -> tuple[TextCache, Namespace]:
    """The cache of a folder, and what its keys are of."""
    cache = TextCache(TextCacheOptions(folder, LIMIT))
    return cache, cache.namespace({"model": "a" * 64})


def put(cache: TextCache, namespace: Namespace, names: Sequence[str]) -> None:
    """Queue the records of names."""
    for name in names:
        cache.put(namespace.key(b"t", name.encode()), BYTES, partial(record_of, name))


def found(cache: TextCache, namespace: Namespace, names: Sequence[str] = NAMES) -> tuple[list[str], list[str]]:
    """The names whose record is there, and those of them whose record is another one."""
    there = dict(zip(names, cache.find([namespace.key(b"t", name.encode()) for name in names]), strict=True))
    wrong = [name for name, record in there.items() if record is not None and record != record_of(name)]
    return [name for name, record in there.items() if record is not None], wrong


def fill(folder: Path) -> None:
    """The state to begin with: a full cache, from which the oldest have left."""
    _write(folder, range(FILLED), [])


def use(folder: Path) -> dict[str, Any]:
    """Batches that make others leave, a trim, more of them, a clear, one more. Returns the names after each step."""
    warnings = _Warnings()
    states = [_names(folder)]
    _write(folder, range(FILLED, FILLED + ADDED), states)
    upkeep.trim(folder, TRIMMED_TO) if live_number(folder) else None
    states.append(_names(folder))
    _write(folder, range(FILLED + ADDED, FILLED + 2 * ADDED), states)
    upkeep.trim(folder, 0)
    states.append(_names(folder))
    _write(folder, [FILLED + 2 * ADDED], states)
    return {"states": states, "warnings": warnings.said}


def answer(folder: Path) -> dict[str, Any]:
    """What a service does with its cache, and no more: find, put, find again. Never raises."""
    warnings = _Warnings()
    cache, namespace = open_cache(folder)
    wrong = found(cache, namespace)[1]
    for number in range(FILLED, FILLED + ADDED):
        put(cache, namespace, batch(number))
        cache.flush()
        wrong += found(cache, namespace)[1]
    cache.close()
    return {"wrong": wrong, "off": cache.counts.off, "warnings": warnings.said}


def look(folder: Path, *, universe: bool = False) -> dict[str, Any]:
    """What a cache holds, whether it takes one record more, and what lies in its folder that should not.

    `universe`: look for the names of two that write at once.
    """
    cache, namespace = open_cache(folder)
    names, wrong = found(cache, namespace, UNIVERSE if universe else NAMES)
    put(cache, namespace, ["new"])
    cache.close()
    again, namespace = open_cache(folder)
    kept = found(again, namespace, ["new"]) == (["new"], [])
    again.close()
    return {
        "names": names,
        "wrong": wrong,
        "kept": kept,
        "off": cache.counts.off or again.counts.off,
        "damaged": cache.counts.damaged,
        "problems": upkeep.verify(folder).problems,
        "strays": _strays(folder),
        "bytes": sum(map(_size, _below(folder))),
    }


def _write(folder: Path, numbers: Sequence[int], states: list[list[str]]) -> None:
    cache, namespace = open_cache(folder)
    for number in numbers:
        put(cache, namespace, batch(number))
        cache.flush()
        states.append(_held(cache, namespace))
    cache.close()


def _names(folder: Path) -> list[str]:
    cache, namespace = open_cache(folder)
    held = _held(cache, namespace)
    cache.close()
    return held


def _held(cache: TextCache, namespace: Namespace) -> list[str]:
    """The names that the index has: reading records would write the oldest of them again."""
    return [name for name in NAMES if cache.holds([namespace.key(b"t", name.encode())])]


def _strays(folder: Path) -> list[str]:
    number = live_number(folder)
    live = [] if number is None else [folder_of(folder, number)]
    known = {folder / "LOCK", *live, *(one / name for one in live for name in ("data.mdb", "lock.mdb"))}
    return sorted(str(path.relative_to(folder)) for path in _below(folder) if path not in known)


def _below(folder: Path) -> list[Path]:
    """What is below a folder; what another process removes meanwhile is left out, which `rglob` does not bear."""
    return [Path(root) / name for root, folders, files in os.walk(folder) for name in (*folders, *files)]


def _size(path: Path) -> int:
    with suppress(FileNotFoundError):
        return path.stat().st_size if path.is_file() else 0
    return 0


class _Warnings(logging.Handler):
    """Counts what the cache warns of."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.said: list[str] = []
        logging.disable(logging.NOTSET)  # models.py did, for the worker
        logging.getLogger("kalm_cache.storage.text_cache").addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage())


def main() -> None:
    """One of two that write at once."""
    folder, draw = Path(sys.argv[1]), random.Random(sys.argv[2])
    cache, namespace = open_cache(folder)
    while True:
        names = draw.sample(UNIVERSE, BATCH)
        there, wrong = found(cache, namespace, names)
        if wrong or cache.counts.off:
            print(wrong or cache.counts.off, flush=True)
            sys.exit(3)
        put(cache, namespace, [name for name in names if name not in there])
        if draw.random() < 0.02 and live_number(folder):
            with suppress(IndexLockedError):  # the other one is at it
                upkeep.trim(folder, draw.choice((0, TRIMMED_TO)))


if __name__ == "__main__":
    main()
