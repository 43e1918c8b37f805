"""A folder → the open parts of its live generation, each checked against the manifest: model, embedder, options."""

from __future__ import annotations

import logging
from collections.abc import Collection
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from kalm_cache.codec import get_codec
from kalm_cache.errors import IndexMismatchError, UsageError
from kalm_cache.first_stage import Embedder, FirstStage, FirstStageSet, load_embedder
from kalm_cache.generations.file_digests import require_valid_arrays
from kalm_cache.generations.fingerprint import Fingerprint, ServingDecoder
from kalm_cache.generations.generation import Generation, open_and_share, require_valid
from kalm_cache.generations.segments import SegmentSet
from kalm_cache.index.decoders import decoder_checkpoint, decoder_of, require_encoder, updated_generation
from kalm_cache.index.stored_metadata import StoredMetadata
from kalm_cache.model.checkpoint import open_checkpoint
from kalm_cache.model.precision import resolve_device, resolve_dtype
from kalm_cache.scoring.prefix_cache import PrefixCache, gib_with_room
from kalm_cache.scoring.query_side import QuerySide, load_query_side
from kalm_cache.storage.locks import SharedLock

MEAN = "mean"  # of `shared_prefix`
ISOLATED = "isolated"  # this, where the decoder was trained so: exact, whatever was asked for
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class OpenOptions:
    """How an index is opened; the fields are those of `PassageIndex.open`."""

    model: str | None = None
    decoder: str | None = None
    device: str | torch.device | None = None
    dtype: str | torch.dtype | None = None
    codec: str | None = None
    chunk_size: int | None = None
    passage_template: str | None = None
    query_max_length: int = 512
    prefix_cache_gib: float = 0.0
    prefix_cache_dtype: str = "bfloat16"
    shared_prefix: str | None = None
    check_first_stage: bool = True
    shards: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class IndexParts:
    """One open generation: its files, its decoder, its embedder. `lock` keeps gc away from it until it is released.

    fingerprint: as it is on disk; `generation` has a manifest as this version writes it, whichever wrote it.
    decoder: which one `query_side` is.
    shared_prefix: `mean` as it was asked for, `isolated` where the decoder was trained so, or `None`.
    view: tells apart what is cached of views of it, see `PassageIndex.within`; empty for the whole.
    """

    generation: Generation
    fingerprint: Fingerprint
    decoder: ServingDecoder
    store: SegmentSet
    metadata: StoredMetadata
    first_stage: FirstStage
    query_side: QuerySide
    embedder: Embedder
    chunk_size: int
    prefix_cache: PrefixCache | None
    shared_prefix: str | None
    lock: SharedLock
    view: str = ""


def open_parts(folder: Path, options: OpenOptions, reuse_from: IndexParts | None) -> IndexParts:
    """Open the live generation of a folder, with the decoder, embedder and prefix cache of `reuse_from` where they fit.

    Raises as `PassageIndex.open`.
    """
    check_shared_prefix(options)
    stored, lock = open_and_share(folder)
    with ExitStack() as stack:
        stack.callback(lock.release)
        check_options(stored, options.codec, options.chunk_size, options.passage_template)
        check_shards(stored, options.shards, reuse_from)
        segments = stored.segments_of(options.shards)
        require_valid(stored, segments)
        if options.check_first_stage:
            require_valid_arrays(stored, segments=segments)
        generation = _updated(stored, folder, options, reuse_from)
        decoder, query_side = _with_decoder(generation, folder, options, reuse_from)
        prefix_cache = _prefix_cache(options, query_side, reuse_from)
        embedder = _embedder(generation, folder, query_side.device, reuse_from)
        store = stack.enter_context(SegmentSet(generation, options.shards))
        metadata = StoredMetadata(store)
        first_stage = open_first_stage(store, embedder)
        stack.pop_all()
    chunk_size = options.chunk_size or generation.manifest.fingerprint.chunk_size
    return IndexParts(
        generation,
        stored.manifest.fingerprint,
        decoder,
        store,
        metadata,
        first_stage,
        query_side,
        embedder,
        chunk_size,
        prefix_cache,
        options.shared_prefix if query_side.isolated is None else ISOLATED,
        lock,
    )


def check_shared_prefix(options: OpenOptions) -> None:
    """Raise `UsageError` where prompts cannot share a prefix as it is asked for."""
    if options.shared_prefix is None:
        return
    if options.shared_prefix != MEAN:
        raise UsageError(f"shared_prefix {options.shared_prefix!r} is not known: use {MEAN}, or leave it out")
    if options.shards is not None:
        raise UsageError(
            f"shared_prefix = {MEAN} is over passages of the whole index, and shards alone were asked for: each would "
            "have a mean of its own, and their margins would not compare; leave one of the two out"
        )


def _prefix_cache(options: OpenOptions, side: QuerySide, reuse_from: IndexParts | None) -> PrefixCache | None:
    if options.shared_prefix is not None or side.isolated is not None:
        if options.prefix_cache_gib:
            logger.warning("prefix_cache_gib has no effect: no passage has a prefix of its own")
        return None
    if reuse_from is not None and reuse_from.prefix_cache is not None:
        return reuse_from.prefix_cache
    if not options.prefix_cache_gib:
        return None
    return PrefixCache(gib_with_room(options.prefix_cache_gib, side.device), options.prefix_cache_dtype)


def _updated(generation: Generation, folder: Path, options: OpenOptions, reuse_from: IndexParts | None) -> Generation:
    """As `updated_generation`, without reading the checkpoint where the one before was built with the same."""
    if reuse_from is None or generation.manifest.fingerprint != reuse_from.fingerprint:
        return updated_generation(generation, folder, options.model)
    known = reuse_from.generation.manifest
    decoder = generation.manifest.decoder or ServingDecoder(known.model, decoder_of(reuse_from.generation).digest)
    return replace(generation, manifest=replace(generation.manifest, fingerprint=known.fingerprint, decoder=decoder))


def _with_decoder(
    generation: Generation, folder: Path, options: OpenOptions, reuse_from: IndexParts | None
) -> tuple[ServingDecoder, QuerySide]:
    """The decoder that answers over an updated generation."""
    if reuse_from is not None and options.decoder is None and reuse_from.decoder == decoder_of(generation):
        return reuse_from.decoder, reuse_from.query_side
    if options.decoder is None:
        checkpoint, name = decoder_checkpoint(generation, folder, options.model), decoder_of(generation).name
    else:
        checkpoint, name = open_checkpoint(options.decoder), options.decoder
        require_encoder(generation, folder, checkpoint)
    decoder = ServingDecoder.of(checkpoint, name)
    if reuse_from is not None and reuse_from.decoder.digest == decoder.digest:
        return decoder, reuse_from.query_side
    device = resolve_device(options.device)
    dtype = resolve_dtype(options.dtype, device)
    side = load_query_side(checkpoint, device=device, dtype=dtype, query_max_length=options.query_max_length)
    return decoder, side


def _embedder(generation: Generation, folder: Path, device: torch.device, reuse_from: IndexParts | None) -> Embedder:
    if reuse_from and _embedder_fields(reuse_from.generation) == _embedder_fields(generation):
        return reuse_from.embedder
    return embedder_of(generation, folder, device)


def embedder_of(generation: Generation, folder: str | Path, device: torch.device | None = None) -> Embedder:
    """The embedder that the first stage was built with, on a device. Raises `IndexMismatchError`."""
    manifest = generation.manifest
    embedder = load_embedder(
        manifest.embedder,
        query_prompt=manifest.embedder_query_prompt,
        passage_prompt=manifest.embedder_passage_prompt,
        device=None if device is None else str(device),
    )
    if embedder.digest != manifest.fingerprint.embedder:
        raise IndexMismatchError(
            f"{folder}: the first stage was built with another state of embedder {manifest.embedder!r} "
            f"({manifest.fingerprint.embedder[:12]}… there, {embedder.digest[:12]}… here); "
            f"run: kalm-cache reindex CORPUS --index {folder}"
        )
    return embedder


def open_first_stage(store: SegmentSet, embedder: Embedder) -> FirstStage:
    """The first stages of every segment as one, without deleted passages."""
    parts = [
        (FirstStage.open(segment.part.segment / "first_stage", embedder), segment.tombstone_ordinals)
        for segment in store.segments
    ]
    return FirstStageSet(parts) if len(parts) > 1 or len(parts[0][1]) else parts[0][0]


def check_options(
    generation: Generation, codec: str | None, chunk_size: int | None, passage_template: str | None = None
) -> None:
    """Raise `IndexMismatchError` where a codec, a ratio or a template was asked for that the index does not have."""
    stored, folder = generation.manifest.fingerprint, generation.folder
    if codec is not None and get_codec(codec).name != get_codec(stored.codec).name:
        raise IndexMismatchError(
            f"{folder}: the index was built with codec {stored.codec}, {codec} was asked for; "
            f"leave --codec out, or run: kalm-cache reindex CORPUS --codec {codec}"
        )
    if chunk_size is not None and (chunk_size < 1 or chunk_size % stored.chunk_size):
        raise IndexMismatchError(
            f"{folder}: the index was built with chunk size {stored.chunk_size}, {chunk_size} was asked for and is no "
            f"multiple of it; use a multiple, or run: kalm-cache reindex CORPUS --chunk-size {chunk_size}"
        )
    if passage_template is not None and passage_template != generation.manifest.passage_template:
        raise IndexMismatchError(
            f"{folder}: the index was built with passage_template {generation.manifest.passage_template!r}, "
            f"{passage_template!r} was asked for; leave it out, or run: kalm-cache reindex CORPUS --passage-template "
            f"{passage_template!r}"
        )


def check_shards(generation: Generation, shards: Collection[int] | None, before: IndexParts | None = None) -> None:
    """Raise `IndexMismatchError` where shards were asked for that the index does not have.

    So it does where the index now has another number of shards than `before`: passages are in others then.
    """
    if shards is None:
        return
    sharding, folder = generation.manifest.sharding, generation.folder
    if sharding is None:
        raise IndexMismatchError(
            f"{folder}: the index has no shards; leave --shards out, or run: kalm-cache reindex CORPUS --shards N"
        )
    unknown = [number for number in shards if not 0 <= number < sharding.count]
    shards_before = sharding if before is None else before.generation.manifest.sharding
    if shards_before is not None and shards_before != sharding:
        raise IndexMismatchError(
            f"{folder}: has {sharding.count} shards, the generation before had {shards_before.count}; say again which "
            "ones are served (--shards), and start the service anew"
        )
    if unknown:
        raise IndexMismatchError(f"{folder}: has the shards 0 to {sharding.count - 1}, {unknown[0]} was asked for")


def _embedder_fields(generation: Generation) -> tuple[str, ...]:
    manifest = generation.manifest
    prompts = manifest.embedder_query_prompt, manifest.embedder_passage_prompt
    return (manifest.embedder, manifest.fingerprint.embedder, *prompts)
