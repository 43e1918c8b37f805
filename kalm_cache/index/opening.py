"""What an index needs beside its files, checked against its manifest: model, embedder, options."""

from __future__ import annotations

from pathlib import Path

from kalm_cache.codec import get_codec
from kalm_cache.errors import IndexMismatchError
from kalm_cache.first_stage import Embedder, FirstStage, FirstStageSet, load_embedder
from kalm_cache.generations.generation import Generation
from kalm_cache.generations.segments import SegmentSet
from kalm_cache.model.checkpoint import Checkpoint, open_checkpoint


def checkpoint_of(generation: Generation, folder: str | Path, model: str | None) -> Checkpoint:
    """The model that built an index, from `model` or where the manifest says. Raises `IndexMismatchError`."""
    manifest = generation.manifest
    checkpoint = open_checkpoint(model or manifest.model)
    if checkpoint.digest() != manifest.fingerprint.model:
        raise IndexMismatchError(
            f"{folder}: built with model {manifest.model!r} (digest {manifest.fingerprint.model[:12]}…), but "
            f"{checkpoint.name!r} has digest {checkpoint.digest()[:12]}…; open it with the model that built it, "
            f"or run: kalm-cache reindex CORPUS --index {folder} --model {checkpoint.name}"
        )
    return checkpoint


def embedder_of(generation: Generation, folder: str | Path) -> Embedder:
    """The embedder that the first stage was built with. Raises `IndexMismatchError`."""
    manifest = generation.manifest
    embedder = load_embedder(
        manifest.embedder,
        query_prompt=manifest.embedder_query_prompt,
        passage_prompt=manifest.embedder_passage_prompt,
    )
    if embedder.digest != manifest.fingerprint.embedder:
        raise IndexMismatchError(
            f"{folder}: the first stage was built with another state of embedder {manifest.embedder!r} "
            f"({manifest.fingerprint.embedder[:12]}… there, {embedder.digest[:12]}… here); "
            f"run: kalm-cache reindex CORPUS --index {folder}"
        )
    return embedder


def open_first_stage(store: SegmentSet, embedder: Embedder) -> FirstStage:
    """The first stages of every segment as one, without what is hidden."""
    parts = [
        (FirstStage.open(one.part.segment / "first_stage", embedder), one.tombstone_ordinals) for one in store.segments
    ]
    return FirstStageSet(parts) if len(parts) > 1 or len(parts[0][1]) else parts[0][0]


def check_options(generation: Generation, codec: str | None, chunk_size: int | None) -> None:
    """Raise `IndexMismatchError` where a codec or a ratio was asked for that the index does not have."""
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


def same_embedder(one: Generation, other: Generation) -> bool:
    """Whether two generations' queries are embedded in the same way."""
    return _embedder_fields(one) == _embedder_fields(other)


def _embedder_fields(generation: Generation) -> tuple[str, ...]:
    manifest = generation.manifest
    prompts = manifest.embedder_query_prompt, manifest.embedder_passage_prompt
    return (manifest.embedder, manifest.fingerprint.embedder, *prompts)
