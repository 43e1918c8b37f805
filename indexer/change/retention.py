"""What `add` and `delete` leave behind: a few generations to go back to, instead of one for every change ever made.

A generation costs a name for each of its files, and every change looks at them. Those that a whole build has made stay
until gc, and so does everything that somebody reads.
"""

from __future__ import annotations

import logging
from pathlib import Path

from kalm_cache.errors import KalmCacheError
from kalm_cache.generations.generation import Generation, open_generation, published_names, remove_unless_read

logger = logging.getLogger(__name__)
STEPS_KEPT = 8  # generations before the live one, at least
LOOKED_AT_FROM = 2 * STEPS_KEPT  # generations: a look costs as many manifests as steps are kept
REMOVED_AT_ONCE = 16  # by one change, so that an index with thousands of old ones does not hold it up
SMALL_CHANGES = ("add", "delete", "fold")


def retire(index: Path, live: Generation) -> None:
    """Remove generations that `add`, `delete` or `fold` made more than `STEPS_KEPT` steps before the live one.

    Called under the build lock, and does nothing while there are few. What cannot be removed now stays for the next
    change, or for gc.
    """
    names = published_names(index)
    oldest = _oldest_kept(index, live, set(names)) if len(names) > LOOKED_AT_FROM else None
    if oldest is None:
        return
    removed: list[str] = []
    for name in names[: names.index(oldest)]:
        if len(removed) == REMOVED_AT_ONCE:
            break
        try:
            generation = open_generation(index / "generations" / name)
            if generation.manifest.operation in SMALL_CHANGES and remove_unless_read(generation.folder):
                removed.append(name)
        except (KalmCacheError, OSError) as exc:
            logger.warning("generation %s stays: %s", name, exc)
    if removed:
        logger.info("removed what is more than %d changes back: generation %s", STEPS_KEPT, ", ".join(removed))


def _oldest_kept(index: Path, live: Generation, names: set[str]) -> str | None:
    """The generation `STEPS_KEPT` steps before the live one; `None` where there are not so many."""
    generation = live
    for _ in range(STEPS_KEPT):
        parent = generation.manifest.parent
        if parent is None or parent not in names:
            return None
        try:
            generation = open_generation(index / "generations" / parent)
        except KalmCacheError:
            return None
    return generation.name
