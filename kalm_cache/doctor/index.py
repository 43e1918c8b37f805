"""Checks of an index: its model, its disk, a sample of its records, its size. `kalm-cache verify` reads all of it."""

from __future__ import annotations

import fcntl
import os
import random
import shutil
from pathlib import Path

from kalm_cache.doctor.check import Report
from kalm_cache.errors import CheckpointError, DamagedRecordError, KalmCacheError, StoreError
from kalm_cache.generations.build_folders import unfinished_builds
from kalm_cache.generations.file_digests import require_valid_arrays
from kalm_cache.generations.generation import Generation, open_current, published_names, require_valid
from kalm_cache.generations.journal import journal_problem
from kalm_cache.generations.manifest import SegmentReceipt
from kalm_cache.generations.segments import SegmentSet
from kalm_cache.index.decoders import decoder_checkpoint, decoder_of
from kalm_cache.languages import only_english
from kalm_cache.model.checkpoint import Checkpoint, open_checkpoint
from kalm_cache.model.digests import encoder_digest
from kalm_cache.model.precision import dtype_name
from kalm_cache.model.prompts import load_prompt_tokenizer
from kalm_cache.process.system import file_system_of, is_network
from kalm_cache.settings import Settings
from kalm_cache.storage.block_file import COPIED_BYTES
from kalm_cache.storage.content_lookup import CONTENTS_FILE
from kalm_cache.storage.locks import LOCK, exclude
from kalm_cache.storage.passage_store import PASSAGES_FILE, STATES_FILE

LEAST_FREE_BYTES = 64 << 20
USUAL_PAGE_BYTES = 4096
MANY_SEGMENTS = 64  # more than tiers leave of millions of additions
SAMPLED = 64  # records of the whole index
MEMINFO = Path("/proc/meminfo")
MEMORY_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


def check_model(settings: Settings, index: Path | None) -> Report:
    """The model that `serve` would load."""
    generation, name = _live_or_none(index), model_name(settings, index)
    manifest = None if generation is None else generation.manifest
    try:
        checkpoint = open_checkpoint(name, local_files_only=True)
        dtypes = sorted(_stored_dtypes(checkpoint))
        load_prompt_tokenizer(checkpoint.folder, checkpoint.config.decoder.vocab_size)
    except CheckpointError as exc:
        return Report(str(exc), [_way_to_model(name)])
    found = f"{name} in {checkpoint.folder}, {len(checkpoint.files):,} tensors in {', '.join(dtypes)}"
    if index is None or generation is None or manifest is None:
        return Report(f"{found}; passages made by {settings.passage_template!r}")
    generation = generation.updated(checkpoint)
    digest, built_with = encoder_digest(checkpoint), generation.manifest.fingerprint.model
    found = f"{found}; encoder's digest {digest[:12]}…"
    if digest == built_with:
        return _check_decoder(f"{found}, as the index's", generation, index, name)
    advice = (
        f"the index was built with model {manifest.model!r}, digest {built_with[:12]}…: leave KALM_CACHE_MODEL out, or "
        f"run kalm-cache reindex CORPUS --index {index} --model {name}"
    )
    return Report(found, [advice])


def _check_decoder(found: str, generation: Generation, index: Path, model: str) -> Report:
    """The decoder that is set over an index, whose model has been found."""
    decoder = decoder_of(generation)
    found = f"{found}; decoder {decoder.name}, {decoder.digest[:12]}…"
    try:
        decoder_checkpoint(generation, index, model)
    except KalmCacheError as exc:
        return Report(found, [str(exc)])
    return Report(found)


def model_name(settings: Settings, index: Path | None) -> str:
    """The model that `serve` would load: that of the settings where they name one, or else the index's."""
    generation = _live_or_none(index)
    if generation is None or "model" in settings.model_fields_set:
        return settings.model
    return generation.manifest.model


def check_disk(index: Path) -> Report:
    """The disk where an index lies, or would lie: space, file system, locks."""
    folder = next(parent for parent in (index.absolute(), *index.absolute().parents) if parent.is_dir())
    free, kind, page = shutil.disk_usage(folder).free, file_system_of(folder), os.sysconf("SC_PAGE_SIZE")
    size = sum(path.stat().st_size for path in index.rglob("*") if path.is_file())
    fail, warn = [], []
    if not _has_locks(folder):
        fail.append("its file system refuses locks: use a local disk, or mount NFS with its lock service (not nolock)")
    if free < LEAST_FREE_BYTES:
        fail.append("the disk is full: free some space")
    elif free < size:
        warn.append("a re-index builds the next generation beside this one: free as much as the index takes")
    warn += _drawbacks(kind)
    if page != USUAL_PAGE_BYTES:
        warn.append(f"memory pages of {page:,} bytes: a look-up reads more than it needs")
    if not os.access(folder, os.W_OK):
        warn.append("the folder cannot be written: it can be searched, but not changed")
    space = f"{free / 2**30:,.1f} GiB free, the index takes {size / 2**30:,.2f} GiB"
    return Report(f"{folder} on {kind}, {space}; pages {page:,} B", fail, warn)


def check_index(index: Path) -> Report:
    """Opens the live generation, reads its first stage, and looks for unfinished work."""
    generation = open_current(index)
    require_valid(generation)
    require_valid_arrays(generation)
    manifest, counts, earlier = generation.manifest, generation.manifest.counts, len(published_names(index)) - 1
    found = (
        f"generation {generation.name}: {counts.passages:,} passages, {counts.tokens:,} tokens, r = "
        f"{manifest.fingerprint.chunk_size}, {manifest.fingerprint.codec}, {len(manifest.segments)} segments, "
        f"passages made by {manifest.passage_template!r}, language {manifest.language}; {earlier} other generations"
    )
    is_changing, builds, warn = _is_changing(index), unfinished_builds(index), []
    if 1 + len(manifest.tail) > MANY_SEGMENTS:  # shards are no reason to fold
        warn.append(f"every search looks into each of its segments: fold them: kalm-cache fold --index {index}")
    if is_changing:
        found += "; a job is changing it"
    elif builds:
        warn.append(f"{', '.join(path.name for path in builds)} was not finished: run its command again to go on")
    if problem := journal_problem(index):
        warn.append(f"JOURNAL {problem}: the next publication writes it anew")
    warn += only_english(manifest.model, manifest.embedder, manifest.language)
    return Report(found, warn=warn)


def count_files(index: Path | None) -> int:
    """Descriptors that the live generation holds when it is open: one for every store file that is mapped."""
    generation = _live_or_none(index)
    stores = {} if generation is None else generation.manifest.files
    return sum(
        name.endswith((STATES_FILE, PASSAGES_FILE, CONTENTS_FILE)) and receipt.bytes > COPIED_BYTES
        for name, receipt in stores.items()
    )


def check_records(index: Path, seed: int = 0) -> Report:
    """Reads some records and texts, at random places, and their checksums with them."""
    generation = open_current(index)
    require_valid(generation)  # first: reading a map of a file that was cut kills the process
    read, damaged = 0, []
    with SegmentSet(generation) as store:
        for doc_id in store.find_doc_ids(_sample_ordinals(generation, random.Random(seed))):
            if isinstance(doc_id, DamagedRecordError):
                if not _is_gap(doc_id):
                    damaged.append(doc_id)
                continue
            with store.snapshot() as records:
                stored = [*records.records([doc_id]), *store.find_texts([doc_id])]
            damaged += [error for error in stored if isinstance(error, DamagedRecordError)]
            read += 1
    total = generation.manifest.counts.passages
    fail = [f"{damaged[0]}; run: kalm-cache verify --repair --index {index}"] if damaged else []
    return Report(f"{read:,} of {total:,} read, {len(damaged)} damaged", fail)


def check_page_cache(index: Path) -> Report:
    """The index's size against memory: what does not fit is read from disk again and again."""
    size = sum(receipt.bytes for receipt in open_current(index).manifest.files.values())
    try:
        memory = available_memory_bytes()
    except OSError as exc:  # a container without /proc
        return Report(f"{size / 2**30:,.2f} GiB of index", warn=[f"how much memory there is cannot be read: {exc}"])
    warn = []
    if size > memory:
        warn.append(
            "searches will wait for the disk: add memory, or store less (a larger --chunk-size, --codec int8 or int4)"
        )
    return Report(f"{size / 2**30:,.2f} GiB of index, {memory / 2**30:,.1f} GiB of memory can be had", warn=warn)


def available_memory_bytes() -> int:
    """What the kernel could give without swapping, page cache included, within the control group's limit."""
    fields = dict(line.split(":") for line in MEMINFO.read_text("ascii").splitlines())
    limits = [path.read_text("ascii").strip() for path in MEMORY_LIMITS if path.is_file()]
    available = int(fields["MemAvailable"].split()[0]) << 10
    return min([available, *(int(limit) for limit in limits if limit.isdigit())])


def _live_or_none(index: Path | None) -> Generation | None:
    """`None` also where the index cannot be opened, which `check_index` reports."""
    try:
        return None if index is None else open_current(index)
    except KalmCacheError:
        return None


def _stored_dtypes(checkpoint: Checkpoint) -> set[str]:
    """The dtypes of one tensor of each file: every file's header is read, which fails where it was cut."""
    tensor_of = {file: name for name, file in checkpoint.files.items()}
    return {dtype_name(checkpoint.tensor(name).dtype) for name in tensor_of.values()}


def _way_to_model(name: str) -> str:
    if Path(name).is_dir():
        return "copy the whole folder again: config.json, safetensors, tokenizer"
    return f"a model on Hugging Face is downloaded at first use; for a machine without network: hf download {name}"


def _drawbacks(file_system: str) -> list[str]:
    if is_network(file_system):
        slow = "LMDB maps and locks its files, which is slow or unsafe over a network; use a local disk"
        return [f"{file_system}: {slow}"]
    if file_system == "tmpfs":
        return ["tmpfs: the index takes memory, and is gone after a restart"]
    if file_system == "overlay":
        return ["overlay: the index goes with its container; mount a volume"]
    return []


def _has_locks(folder: Path) -> bool:
    """Whether the folder itself can be locked, in shared mode: nothing is written for it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:  # another process holds one, so there are locks
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


def _is_changing(index: Path) -> bool:
    try:
        with exclude(index / LOCK) as free:
            return not free
    except StoreError:  # read-only, or without locks, which check_disk reports
        return False


def _sample_ordinals(generation: Generation, chance: random.Random) -> list[int]:
    """Some ordinals of passages, from each segment by its size."""
    segments = generation.manifest.segments
    stored = sum(segment.counts.passages for segment in segments)

    def sample(segment: SegmentReceipt) -> list[int]:
        ordinals = range(segment.first_ordinal, segment.next_ordinal)
        share = -(-SAMPLED * segment.counts.passages // max(stored, 1))
        return chance.sample(ordinals, min(share, len(ordinals)))

    return [ordinal for segment in segments for ordinal in sample(segment)]


def _is_gap(error: DamagedRecordError) -> bool:
    """An ordinal that no passage has: that passage was deleted, and its bytes collected."""
    return "is not there" in str(error)
