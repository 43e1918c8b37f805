"""What is done to an index, and disturbed: a function of the index's folder for each. Runs in a worker's children."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import indexer.change.fold
import kalm_cache.generations.current
import kalm_cache.generations.publish
import kalm_cache.storage.durable
from indexer.build.index_job import run_index_job
from indexer.change.add_delete import add_passages, delete_passages
from indexer.change.fold_job import run_fold
from indexer.change.gc import collect_garbage
from indexer.change.reindex import run_reindex
from indexer.change.rollback import roll_back
from indexer.corpus import RejectedLine
from indexer.integrity.repair import repair_index
from indexer.integrity.verify import verify_index
from kalm_cache.errors import UnknownIdError
from kalm_cache.generations.generation import open_current
from kalm_cache.storage.passage_store import STATES_FILE, PassageStore
from kalm_cache.storage.record import Record
from tests.indexes import lines_of
from tests.texts import long_text
from tests.torture import models

BASE = {f"p{i:02}": long_text(5 + 7 * i % 40, seed=100 + i) for i in range(48)}  # three windows
EDITED = {doc_id: f"{BASE[doc_id]} edited" for doc_id in ("p05", "p20", "p21", "p40")}
NEW = {f"n{i:02}": long_text(8 + i, seed=300 + i) for i in range(10)}
SINGLE = {f"s{i}": long_text(6 + i, seed=500 + i) for i in range(8)}
REMOVED = ("p07", "p30", "p31")
ADDED = EDITED | NEW
CHANGED = {doc_id: text for doc_id, text in (BASE | EDITED | NEW).items() if doc_id not in REMOVED}

Report = dict[str, Any]


def build(index: Path, texts: dict[str, str] = BASE, **changes: Any) -> Report:
    """`kalm-cache index`: build the next generation of a corpus and publish it."""
    said = models.settings(**changes), models.encoders(**changes)
    return asdict(run_index_job(lines_of(texts), index, *said, on_reject=_no_reject, on_progress=_silent))


def build_changed(index: Path) -> Report:
    """The same of another corpus."""
    return build(index, CHANGED)


def reindex(index: Path, texts: dict[str, str] = CHANGED, **changes: Any) -> Report:
    """`kalm-cache reindex`: bring the index to another corpus."""
    said = models.settings(**changes), models.encoders(**changes)
    return asdict(run_reindex(lines_of(texts), index, *said, on_reject=_no_reject, on_progress=_silent))


def recode(index: Path) -> Report:
    """`kalm-cache reindex` with another codec: stored states are recoded."""
    return reindex(index, CHANGED, codec="int8")


def add(index: Path) -> Report:
    """`kalm-cache add`: new passages, and new texts of old ones."""
    said = models.settings(), models.encoders()
    return asdict(add_passages(lines_of(ADDED), index, *said, on_reject=_no_reject, on_progress=_silent))


def add_seven(index: Path) -> Report:
    """`kalm-cache add`, seven times one passage: with one more, they are folded."""
    for doc_id in list(SINGLE)[:7]:
        _add_one(index, doc_id)
    return {}


def add_eighth(index: Path) -> Report:
    """`kalm-cache add` of one passage, which folds what the others left."""
    return _add_one(index, list(SINGLE)[7])


def add_unfolded(index: Path) -> Report:
    """Eight additions of an index that was never folded, as earlier versions left them."""
    limit, indexer.change.fold.FOLD_BYTES = indexer.change.fold.FOLD_BYTES, 0
    try:
        add_seven(index)
        return add_eighth(index)
    finally:
        indexer.change.fold.FOLD_BYTES = limit


def fold(index: Path) -> Report:
    """`kalm-cache fold`."""
    return asdict(run_fold(index, on_progress=_silent))


def fold_everything(index: Path) -> Report:
    """`kalm-cache fold --all`."""
    return asdict(run_fold(index, everything=True, on_progress=_silent))


def _add_one(index: Path, doc_id: str) -> Report:
    said = models.settings(), models.encoders()
    lines = lines_of({doc_id: SINGLE[doc_id]})
    return asdict(add_passages(lines, index, *said, on_reject=_no_reject, on_progress=_silent))


def delete(index: Path) -> Report:
    """`kalm-cache delete`; when that is done already, nothing."""
    try:
        return asdict(delete_passages(REMOVED, index))
    except UnknownIdError:
        return {}


def gc(index: Path) -> Report:
    """`kalm-cache gc`, keeping no generation but the live one: all bytes of deleted passages are gone."""
    return asdict(collect_garbage(index, keep=0))


def rollback(index: Path) -> Report:
    """`kalm-cache rollback` to the first generation."""
    return asdict(roll_back(index, "000001"))


def build_unsynced(index: Path) -> Report:
    """Not what the code does: `build` by someone who forgot to sync."""
    for module in (kalm_cache.storage.durable, kalm_cache.generations.publish):
        for name in ("sync", "sync_tree"):
            setattr(module, name, lambda path: None)
    return build(index)


def rebuild_in_place(index: Path) -> Report:
    """Not what the code does: `build_changed` by someone who writes over files."""
    kalm_cache.generations.publish.write_atomically = _write_in_place
    kalm_cache.generations.current.write_atomically = _write_in_place
    return build_changed(index)


def _write_in_place(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def damage(index: Path) -> Report:
    """Not a command: one byte of a stored passage's states is another one."""
    segment = open_current(index).segment
    with PassageStore(segment) as store, store.snapshot() as snapshot:
        (record,) = snapshot.records(["p05"])
        assert isinstance(record, Record)
        payload = bytes(record.payload)
    path = segment / STATES_FILE
    at = path.read_bytes().index(payload)
    with path.open("r+b") as file:
        file.seek(at)
        file.write(bytes([payload[0] ^ 1]))
    return {}


def repair(index: Path) -> Report:
    """`kalm-cache verify --repair`."""
    if verify_index(index).ok:
        return {}
    return asdict(repair_index(index, models.settings()))


def _no_reject(line: RejectedLine) -> None:
    raise AssertionError(line)


def _silent(progress: object) -> None:
    pass
