"""A published index -> everything that is damaged in it. Goes on after damage, and raises for none."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from indexer.verify_store import Tally, check_store
from kalm_cache.durable import file_digest
from kalm_cache.errors import KalmCacheError
from kalm_cache.first_stage import BM25Index
from kalm_cache.first_stage.bm25 import FOLDER_NAME as BM25_FOLDER
from kalm_cache.first_stage.dense import FILE_NAME as DENSE_FILE
from kalm_cache.generation import MANIFEST, FileReceipt, Generation, open_current, open_generation


@dataclass(frozen=True, slots=True)
class Damage:
    """One thing that is wrong: in which file (relative to the generation), and for which passage, if it is one's."""

    file: str
    doc_id: str | None
    problem: str


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """`checked` counts what was found whole: `files`, `bytes`, `records`, `texts`, `vectors`, `bm25_documents`."""

    ok: bool
    checked: dict[str, int]
    damaged: list[Damage]


def verify_index(index: Path) -> VerifyReport:
    """Verify the live generation of an index folder, `CURRENT` included.

    Raises:
        IndexNotFoundError: nothing has been published there.
    """
    generations = index / "generations"
    published = {path.name for path in generations.glob("[0-9]*[0-9]")}
    if not published:
        open_current(index)  # raises: there is nothing to verify
    try:
        name = (index / "CURRENT").read_bytes().decode("utf-8", "replace").removesuffix("\n")
    except OSError as exc:
        return _report({}, [Damage("CURRENT", None, f"cannot be read: {exc.strerror}")])
    if name not in published:
        return _report({}, [Damage("CURRENT", None, f"names {name!r}, which is not one of {sorted(published)}")])
    try:
        generation = open_generation(generations / name)
    except KalmCacheError as exc:
        return _report({}, [Damage(MANIFEST, None, str(exc))])
    return verify_generation(generation)


def verify_generation(generation: Generation) -> VerifyReport:
    """Check every file, every record and text, and that store and first stage hold the same passages."""
    checked: dict[str, int] = {}
    damaged = [*_check_manifest(generation), *_check_files(generation, checked)]
    broken = {damage.file for damage in damaged}
    tally = Tally()
    store_file = _relative(generation, generation.shard / "passages.lmdb")
    if store_file not in broken:
        problems = check_store(generation, tally)
        damaged += [Damage(store_file, doc_id, problem) for doc_id, problem in problems]
        checked |= {"records": tally.whole, "texts": tally.texts}
    elif (generation.folder / store_file).is_file():
        damaged += _check_store_apart(generation, store_file, checked)
    numbers = None if store_file in broken else np.sort(np.frombuffer(tally.numbers, np.int64))
    damaged += _check_first_stage(generation, numbers, broken, checked)
    return _report(checked, damaged)


def _report(checked: dict[str, int], damaged: list[Damage]) -> VerifyReport:
    return VerifyReport(ok=not damaged, checked=checked, damaged=damaged)


def _check_manifest(generation: Generation) -> Iterator[Damage]:
    if generation.folder.name != generation.manifest.generation:
        yield Damage(MANIFEST, None, f"is that of generation {generation.manifest.generation}")
    try:
        if (generation.folder / MANIFEST).read_bytes() != generation.manifest.to_json():
            yield Damage(MANIFEST, None, "was changed after it was published")
    except OSError as exc:
        yield Damage(MANIFEST, None, f"cannot be read: {exc}")


def _check_files(generation: Generation, checked: dict[str, int]) -> Iterator[Damage]:
    receipts = generation.manifest.files
    checked |= {"files": 0, "bytes": 0}
    for name, receipt in receipts.items():
        problem = _file_problem(generation.folder / name, receipt)
        if problem is not None:
            yield Damage(name, None, problem)
        else:
            checked["files"] += 1
            checked["bytes"] += receipt.bytes
    present = {_relative(generation, path) for path in generation.folder.rglob("*") if not path.is_dir()}
    for name in sorted(present - receipts.keys() - {MANIFEST}):
        yield Damage(name, None, "is not named by the manifest")


def _file_problem(path: Path, receipt: FileReceipt) -> str | None:
    try:
        size = path.stat().st_size
        if size != receipt.bytes:
            return f"has {size} bytes, its receipt says {receipt.bytes}"
        return None if file_digest(path) == receipt.sha256 else "its SHA-256 is not that of its receipt"
    except OSError as exc:
        return f"cannot be read: {exc.strerror}"


def _check_store_apart(generation: Generation, store_file: str, checked: dict[str, int]) -> Iterator[Damage]:
    """Name the records of a damaged store, as far as its pages let themselves be read, in a process of its own."""
    walk = subprocess.run(
        [sys.executable, "-m", "indexer.verify_store", str(generation.folder)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(entry or "." for entry in sys.path)},
        capture_output=True,
        check=False,
    )
    for line in walk.stdout.splitlines():
        said: dict[str, Any] = json.loads(line)
        if "problem" in said:
            yield Damage(store_file, said["doc_id"], said["problem"])
        else:
            checked |= said
    if walk.returncode < 0:
        name = signal.Signals(-walk.returncode).name
        yield Damage(store_file, None, f"its pages are damaged: reading on ended the process with {name}")
    elif walk.returncode > 0:
        yield Damage(store_file, None, f"its pages are damaged: {walk.stderr.decode(errors='replace').strip()[-200:]}")


def _check_first_stage(
    generation: Generation, numbers: NDArray[np.int64] | None, broken: set[str], checked: dict[str, int]
) -> Iterator[Damage]:
    """`numbers`: sorted numbers of the store, or None when it is damaged; then only the counts are compared."""
    folder = generation.shard / "first_stage"
    dense, bm25 = _relative(generation, folder / DENSE_FILE), _relative(generation, folder / BM25_FOLDER)
    readers = {dense: ("vectors", _dense_numbers)}
    if generation.manifest.fingerprint.bm25:
        readers[bm25] = ("bm25_documents", _bm25_numbers)
    for file, (what, read) in readers.items():
        if any(name.startswith(file) for name in broken):
            continue  # said already, and there are no records in it to name
        try:
            found = np.sort(read(folder))
        except Exception as exc:  # readers raise many kinds for a file that is not what it should be
            yield Damage(file, None, f"cannot be read: {exc}")
            continue
        checked[what] = len(found)
        if len(found) != generation.manifest.counts.passages:
            yield Damage(file, None, f"holds {len(found)} passages, expected {generation.manifest.counts.passages}")
        elif numbers is not None and not np.array_equal(found, numbers):
            odd = np.setxor1d(found, numbers)[:5].tolist()
            yield Damage(file, None, f"its numbers are not those of the store, the first to differ: {odd}")


def _dense_numbers(folder: Path) -> NDArray[np.int64]:
    import faiss

    index: Any = faiss.read_index(str(folder / DENSE_FILE))
    numbers = np.asarray(faiss.vector_to_array(index.id_map), np.int64)
    if index.ntotal != len(numbers):
        raise ValueError(f"it says that it holds {index.ntotal} vectors, and it has {len(numbers)} numbers")
    return numbers


def _bm25_numbers(folder: Path) -> NDArray[np.int64]:
    documents = BM25Index.open(folder).ntotal
    numbers = np.load(folder / BM25_FOLDER / "numbers.npy")
    if documents != len(numbers):
        raise ValueError(f"it says that it holds {documents} documents, and it has {len(numbers)} numbers")
    return np.asarray(numbers, np.int64)


def _relative(generation: Generation, path: Path) -> str:
    return path.relative_to(generation.folder).as_posix()
