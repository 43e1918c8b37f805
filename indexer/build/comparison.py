"""Which ids of a generation a new base segment does not have. Both are walked once, in order of keys."""

from __future__ import annotations

import logging
from pathlib import Path

from kalm_cache.errors import KalmCacheError
from kalm_cache.generations.generation import Generation, segment_folder
from kalm_cache.generations.segments import SegmentSet
from kalm_cache.storage.passage_store import PassageStore

logger = logging.getLogger(__name__)


def count_dropped_ids(parent: Generation, building: Path) -> int:
    """How many passages that `parent` shows are not in the base segment of `building`, in no version.

    Where the parent cannot be read, as many as it says that it has: gc then keeps no generation behind it.
    """
    try:
        with SegmentSet(parent) as before, PassageStore(segment_folder(building)) as after:
            return _count_missing(before, after)
    except KalmCacheError as exc:
        logger.warning("generation %s cannot be read: %s", parent.name, exc)
        return parent.manifest.counts.passages


def _count_missing(before: SegmentSet, after: PassageStore) -> int:
    missing, keys = 0, iter(after.keys())
    here = next(keys, None)
    for key in before.keys():  # noqa: SIM118 (not a dict)
        while here is not None and here < key:
            here = next(keys, None)
        missing += here != key
    return missing
