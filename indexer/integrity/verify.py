"""A published index -> everything that is damaged in it. Goes on after damage, and raises for none."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from indexer.integrity.damage import IndexDamage
from indexer.integrity.verify_store import STORE_FILES, StoreTally, check_store
from indexer.integrity.verify_tombstones import check_tombstones
from kalm_cache.errors import KalmCacheError, StoreError
from kalm_cache.first_stage import BM25Index
from kalm_cache.first_stage.bm25.bm25_index import FOLDER_NAME as BM25_FOLDER
from kalm_cache.first_stage.dense.dense_index import FILE_NAME as DENSE_FILE
from kalm_cache.first_stage.dense.faiss_layout import check_length
from kalm_cache.generations.current import CURRENT, current_name
from kalm_cache.generations.generation import Generation, open_current, open_generation
from kalm_cache.generations.journal import JOURNAL, journal_problem
from kalm_cache.generations.manifest import MANIFEST, FileReceipt
from kalm_cache.generations.tombstones import TOMBSTONES_FILE
from kalm_cache.metadata import COLUMNS, Columns
from kalm_cache.process.system import way_out


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """`checked` counts what was found valid: `files`, `bytes`, `records`, `texts`, `vectors`, `bm25_documents`, and
    `metadata`, passages that have a row of it.

    These are of all that is stored; `tombstones` of the records are not shown.
    """

    ok: bool
    checked: dict[str, int]
    damaged: list[IndexDamage]


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
        name = current_name(index)
    except KalmCacheError as exc:
        return _report({}, [IndexDamage(CURRENT, None, str(exc))])
    if name not in published:
        return _report({}, [IndexDamage(CURRENT, None, f"names {name!r}, which is not one of {sorted(published)}")])
    try:
        generation = open_generation(generations / name)
    except KalmCacheError as exc:
        return _report({}, [IndexDamage(MANIFEST, None, str(exc))])
    report = verify_generation(generation)
    problem = journal_problem(index)
    return _report(report.checked, [*([IndexDamage(JOURNAL, None, problem)] if problem else []), *report.damaged])


def verify_generation(generation: Generation) -> VerifyReport:
    """Check every file, record, text and tombstone, and that the stores and first stages of segments agree."""
    checked: Counter[str] = Counter()
    damaged = [*_check_manifest(generation), *_check_files(generation, checked)]
    broken = {damage.file for damage in damaged}
    for part in generation.parts():
        damaged += _check_part(part, broken, checked)
    if TOMBSTONES_FILE not in broken:
        damaged += check_tombstones(generation, checked, is_valid=not damaged)
    return _report(dict(checked), damaged)


def _check_part(part: Generation, broken: set[str], checked: Counter[str]) -> Iterator[IndexDamage]:
    """One segment, by itself."""
    tally = StoreTally()
    store_files = {_in_segment(part, name) for name in STORE_FILES}
    is_valid = broken.isdisjoint(store_files)
    if is_valid:
        for file, doc_id, problem in check_store(part, tally):
            yield IndexDamage(_in_segment(part, file), doc_id, problem)
        checked.update(records=tally.passages, texts=tally.texts)
    else:
        yield from _check_store_apart(part, broken, checked)
    ordinals = np.frombuffer(tally.ordinals, np.int64) if is_valid else None
    if ordinals is not None and len(ordinals):
        yield from _check_range(part, ordinals[0], ordinals[-1])
    yield from _check_first_stage(part, ordinals, broken, checked)
    yield from _check_columns(part, ordinals, broken, checked)


def _check_columns(
    part: Generation, ordinals: NDArray[np.int64] | None, broken: set[str], checked: Counter[str]
) -> Iterator[IndexDamage]:
    """The metadata of one segment; arguments as of `_check_first_stage`."""
    folder = _in_segment(part, COLUMNS)
    if any(name.startswith(folder + "/") for name in broken):
        return  # reported already
    try:
        columns = Columns.open(part.segment)
    except StoreError as exc:
        yield IndexDamage(folder, None, str(exc))
        return
    if columns is None:
        if part.manifest.columns:
            yield IndexDamage(folder, None, "is missing, and the manifest names columns")
        return
    checked["metadata"] += len(columns)
    if ordinals is not None and not np.array_equal(columns.ordinals, ordinals):
        yield IndexDamage(folder, None, "its ordinals are not those of the store")
    for name, type in columns.schema.items():
        if part.manifest.columns.get(name) != type:
            yield IndexDamage(folder, None, f"column {name!r} is {type}, which the manifest does not say")


def _check_range(part: Generation, lowest: int, highest: int) -> Iterator[IndexDamage]:
    """Ordinals of a segment against the range that the manifest gives it."""
    (receipt,) = part.manifest.segments
    first, last = receipt.first_ordinal, receipt.next_ordinal - 1
    if not first <= lowest <= highest <= last:
        problem = f"segment {receipt.name} has ordinals {lowest} to {highest}, not {first} to {last}"
        yield IndexDamage(MANIFEST, None, problem)


def _report(checked: dict[str, int], damaged: list[IndexDamage]) -> VerifyReport:
    return VerifyReport(ok=not damaged, checked=checked, damaged=damaged)


def _check_manifest(generation: Generation) -> Iterator[IndexDamage]:
    if generation.folder.name != generation.manifest.generation:
        yield IndexDamage(MANIFEST, None, f"is that of generation {generation.manifest.generation}")
    try:
        if (generation.folder / MANIFEST).read_bytes() != generation.manifest.to_json():
            yield IndexDamage(MANIFEST, None, "was changed after it was published")
    except OSError as exc:
        yield IndexDamage(MANIFEST, None, f"cannot be read: {exc}")


def _check_files(generation: Generation, checked: Counter[str]) -> Iterator[IndexDamage]:
    receipts = generation.manifest.files
    checked.update(files=0, bytes=0)
    for name, receipt in receipts.items():
        problem = _file_problem(generation.folder / name, receipt)
        if problem is not None:
            yield IndexDamage(name, None, problem)
        else:
            checked["files"] += 1
            checked["bytes"] += receipt.bytes
    present = {_relative(generation, path) for path in generation.folder.rglob("*") if not path.is_dir()}
    for name in sorted(present - receipts.keys() - {MANIFEST}):
        yield IndexDamage(name, None, "is not named by the manifest")


def _file_problem(path: Path, receipt: FileReceipt) -> str | None:
    try:
        size = path.stat().st_size
        if size != receipt.bytes:
            return f"has {size} bytes, its receipt says {receipt.bytes}"
        return None if receipt.has_digest_of(path) else "its SHA-256 is not that of its receipt"
    except OSError as exc:
        if exc.errno != errno.EIO and (advice := way_out(exc, path)) is not None:  # says nothing of the file
            raise StoreError(f"{path}: cannot be read: {exc.strerror}; {advice}") from exc
        return f"cannot be read: {exc.strerror}"


def _check_store_apart(generation: Generation, broken: set[str], checked: Counter[str]) -> Iterator[IndexDamage]:
    """Name the records of a damaged store, as far as its pages let themselves be read, in a process of its own."""
    walk = subprocess.run(
        [sys.executable, "-m", "indexer.integrity.verify_store", str(generation.folder), generation.segment_name],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(entry or "." for entry in sys.path)},
        capture_output=True,
        check=False,
    )
    for line in walk.stdout.splitlines():
        message: dict[str, Any] = json.loads(line)
        if "problem" in message:
            yield IndexDamage(_in_segment(generation, message["file"]), message["doc_id"], message["problem"])
        else:
            checked.update(message)
    names = [name for name in STORE_FILES[:2] if _in_segment(generation, name) in broken]
    for name in names if walk.returncode else ():
        how = walk.stderr.decode(errors="replace").strip()[-200:]
        if walk.returncode < 0:
            how = f"reading on ended the process with {signal.Signals(-walk.returncode).name}"
        yield IndexDamage(_in_segment(generation, name), None, f"its pages are damaged: {how}")


def _check_first_stage(
    generation: Generation, ordinals: NDArray[np.int64] | None, broken: set[str], checked: Counter[str]
) -> Iterator[IndexDamage]:
    """`ordinals`: the store's, rising, or None when it is damaged; then only the counts are compared."""
    folder = generation.segment / "first_stage"
    dense, bm25 = _relative(generation, folder / DENSE_FILE), _relative(generation, folder / BM25_FOLDER)
    readers = {dense: ("vectors", _dense_ordinals)}
    if generation.manifest.fingerprint.bm25:
        readers[bm25] = ("bm25_documents", _bm25_ordinals)
    for file, (what, read) in readers.items():
        if any(name.startswith(file) for name in broken):
            continue  # reported already, and there are no records in it to name
        try:
            indexed = np.sort(read(folder))
        except Exception as exc:  # readers raise many kinds for a file that is not what it should be
            yield IndexDamage(file, None, f"cannot be read: {exc}")
            continue
        checked[what] += len(indexed)
        if len(indexed) != generation.manifest.counts.passages:
            yield IndexDamage(
                file, None, f"holds {len(indexed)} passages, expected {generation.manifest.counts.passages}"
            )
        elif ordinals is not None and not np.array_equal(indexed, ordinals):
            odd = np.setxor1d(indexed, ordinals)[:5].tolist()
            yield IndexDamage(file, None, f"its ordinals are not those of the store, the first to differ: {odd}")


def _dense_ordinals(folder: Path) -> NDArray[np.int64]:
    import faiss

    check_length(folder / DENSE_FILE)
    index: Any = faiss.read_index(str(folder / DENSE_FILE))
    ordinals = np.asarray(faiss.vector_to_array(index.id_map), np.int64)
    if index.ntotal != len(ordinals):
        raise ValueError(f"it says that it holds {index.ntotal} vectors, and it has {len(ordinals)} ordinals")
    return ordinals


def _bm25_ordinals(folder: Path) -> NDArray[np.int64]:
    documents = BM25Index.open(folder).ntotal
    ordinals = np.load(folder / BM25_FOLDER / "numbers.npy")
    if documents != len(ordinals):
        raise ValueError(f"it says that it holds {documents} documents, and it has {len(ordinals)} ordinals")
    return np.asarray(ordinals, np.int64)


def _relative(generation: Generation, path: Path) -> str:
    return path.relative_to(generation.folder).as_posix()


def _in_segment(generation: Generation, name: str) -> str:
    return _relative(generation, generation.segment / name)
