"""A published index: opens, whole by a sample, unfinished work, memory. `kalm-cache verify` checks all of it."""

from __future__ import annotations

import random
from pathlib import Path

from kalm_cache.doctor.check import Check, verdict
from kalm_cache.errors import DamagedRecordError, StoreError
from kalm_cache.generations.build_folders import unfinished_builds as builds_in
from kalm_cache.generations.file_digests import require_valid_first_stage
from kalm_cache.generations.generation import Generation, open_current, published_names, require_valid
from kalm_cache.generations.journal import journal_problem
from kalm_cache.generations.manifest import SegmentReceipt
from kalm_cache.generations.segments import SegmentSet
from kalm_cache.storage.locks import LOCK, exclude

SAMPLED = 64  # records of the whole index
MEMINFO = Path("/proc/meminfo")
MEMORY_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


def check_index(index: Path) -> Check:
    """Opens the live generation, reads its first stage, and looks for work that was left."""
    generation = open_current(index)
    require_valid(generation)
    require_valid_first_stage(generation)
    manifest, counts, earlier = generation.manifest, generation.manifest.counts, len(published_names(index)) - 1
    found = (
        f"generation {generation.name}: {counts.passages:,} passages, {counts.tokens:,} tokens, r = "
        f"{manifest.fingerprint.chunk_size}, {manifest.fingerprint.codec}, {len(manifest.segments)} segments; "
        f"{earlier} other generations"
    )
    changing, warn = _is_changing(index), []
    builds = builds_in(index)
    if changing:
        found += "; a job is changing it"
    elif builds:
        warn.append(f"{', '.join(path.name for path in builds)} was not finished: run its command again to go on")
    if problem := journal_problem(index):
        warn.append(f"JOURNAL {problem}: the next publication writes it anew")
    return verdict("index", found, warn=warn)


def check_records(index: Path, seed: int = 0) -> Check:
    """Reads some records and texts, at random places, and their checksums with them."""
    generation = open_current(index)
    require_valid(generation)  # first: a map of a file that was cut kills the process
    read, damaged = 0, []
    with SegmentSet(generation) as store:
        for doc_id in store.find_doc_ids(_ordinals(generation, random.Random(seed))):
            if isinstance(doc_id, DamagedRecordError):
                if not _is_gap(doc_id):
                    damaged.append(doc_id)
                continue
            with store.snapshot() as records:
                found = [*records.records([doc_id]), *store.find_texts([doc_id])]
            damaged += [one for one in found if isinstance(one, DamagedRecordError)]
            read += 1
    total = generation.manifest.counts.passages
    fail = [f"{damaged[0]}; run: kalm-cache verify --repair --index {index}"] if damaged else []
    return verdict("records", f"{read:,} of {total:,} read, {len(damaged)} damaged", fail=fail)


def check_page_cache(index: Path) -> Check:
    """The index's size against memory: what does not fit is read from disk again and again."""
    size = sum(receipt.bytes for receipt in open_current(index).manifest.files.values())
    memory = available_memory_bytes()
    found = f"{size / 2**30:,.2f} GiB of index, {memory / 2**30:,.1f} GiB of memory can be had"
    warn = []
    if size > memory:
        warn.append(
            "searches will wait for the disk: add memory, or store less (a larger --chunk-size, --codec int8 or int4)"
        )
    return verdict("page cache", found, warn=warn)


def available_memory_bytes() -> int:
    """What the kernel could give without swapping, page cache included, within the control group's limit."""
    fields = dict(line.split(":") for line in MEMINFO.read_text("ascii").splitlines())
    limits = [path.read_text("ascii").strip() for path in MEMORY_LIMITS if path.is_file()]
    return min([int(fields["MemAvailable"].split()[0]) << 10, *(int(one) for one in limits if one.isdigit())])


def _is_changing(index: Path) -> bool:
    try:
        with exclude(index / LOCK) as free:
            return not free
    except StoreError:  # read-only, or without locks: check_disk's to say
        return False


def _ordinals(generation: Generation, chance: random.Random) -> list[int]:
    """Passage numbers, each shard's share by its size."""
    segments = generation.manifest.segments
    stored = sum(segment.counts.passages for segment in segments)

    def some(segment: SegmentReceipt) -> list[int]:
        ordinals = range(segment.first_ordinal, segment.next_ordinal)
        share = -(-SAMPLED * segment.counts.passages // max(stored, 1))
        return chance.sample(ordinals, min(share, len(ordinals)))

    return [ordinal for segment in segments for ordinal in some(segment)]


def _is_gap(error: DamagedRecordError) -> bool:
    """A number that no passage has: one that was deleted, and its bytes collected."""
    return "is not there" in str(error)
