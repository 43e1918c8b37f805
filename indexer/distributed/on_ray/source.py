"""An index -> a Ray dataset of its passages: each task reads a segment, from wherever the index lies."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import ray.data

from indexer.build.batching import batched
from indexer.distributed.jobs import AnyPlace, place_of
from indexer.distributed.places.bucket import BucketPlace
from kalm_cache.errors import StoreError
from kalm_cache.generations.current import current_name
from kalm_cache.generations.generation import Generation, open_generation
from kalm_cache.generations.manifest import MANIFEST
from kalm_cache.generations.remote.root import read_remote_manifest, require_root
from kalm_cache.settings import Settings
from kalm_cache.storage.locks import share
from kalm_cache.storage.passage_store import PassageStore, doc_id_of

ROWS = 4096  # of a block


def read_passages(index: str | Path, settings: Settings | None = None) -> ray.data.Dataset:
    """What the live generation of an index shows: rows of `id` and `text`, in no order.

    All rows are of the generation that is live now. `text` is empty where none is kept.

    Args:
        index: a folder that all machines see, or a URL.
        settings: say where copies of a remote index are; `None` = those of the environment.

    Raises:
        IndexNotFoundError: nothing was published there.
        StoreError: the index cannot be read; or, in a task, gc has removed the generation meanwhile.
    """
    place = place_of(index, settings)
    if isinstance(place, BucketPlace):
        root, _ = require_root(place.store)
        generation = root.live_manifest
        manifest = read_remote_manifest(place.store, generation)[1]
    else:
        generation = current_name(place.index)
        manifest = open_generation(place.index / "generations" / generation).manifest
    segments = [{"segment": segment.name} for segment in manifest.segments]
    dataset = ray.data.from_items(segments, override_num_blocks=len(segments))
    return dataset.map_batches(partial(_read, place=place, generation=generation), batch_size=1)


def _read(batch: dict[str, Any], *, place: AnyPlace, generation: str) -> Iterator[dict[str, Any]]:
    """Blocks of the rows of one segment."""
    [segment] = batch["segment"]
    with _opened(place, generation, str(segment)) as part:
        gone = frozenset(part.tombstones_of(part.manifest.segments[0], part.tombstones()).keys)
        with PassageStore(part.segment) as store:
            for keys in batched((key for key in store.keys() if key not in gone), ROWS):  # noqa: SIM118 (not a dict)
                doc_ids = [doc_id_of(key) for key in keys]
                yield {"id": doc_ids, "text": [text or "" for text in store.texts(doc_ids)]}


@contextmanager
def _opened(place: AnyPlace, generation: str, segment: str) -> Iterator[Generation]:
    """A segment of a generation, which is named by its folder, or by the digest of its manifest."""
    if isinstance(place, BucketPlace):
        with place.fetched(generation, lambda part: part.segment_name == segment) as fetched:
            yield fetched.part(segment)
        return
    folder = place.index / "generations" / generation
    lock = share(folder / MANIFEST)
    if lock is None:
        raise StoreError(f"{folder}: was removed while it was read; read the index again")
    try:
        yield open_generation(folder).part(segment)
    finally:
        lock.release()
