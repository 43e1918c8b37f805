"""Which checkpoint's decoder answers over a generation: the one that is set, where it lies, and whether it fits."""

from __future__ import annotations

from pathlib import Path

from kalm_cache.errors import IndexMismatchError
from kalm_cache.generations.fingerprint import ServingDecoder
from kalm_cache.generations.generation import Generation
from kalm_cache.model.checkpoint import Checkpoint, open_checkpoint
from kalm_cache.model.digests import encoder_digest


def updated_generation(generation: Generation, folder: Path, model: str | None = None) -> Generation:
    """The generation with the two digests of its model, also where an earlier version wrote one of both together.

    Args:
        generation: as it is on disk.
        folder: of the index, for messages.
        model: where the checkpoint lies that encoded; `None` = where the manifest says. Not opened if not needed.

    Raises:
        CheckpointError: the checkpoint is needed, and missing or incomplete.
        IndexMismatchError: it is another one than encoded.
    """
    if generation.manifest.decoder is not None:
        return generation
    checkpoint = open_checkpoint(model or generation.manifest.model)
    updated = generation.updated(checkpoint)
    if updated.manifest.decoder is None:
        raise _other_model(generation, folder, checkpoint, checkpoint.digest())
    return updated


def decoder_of(generation: Generation) -> ServingDecoder:
    """The decoder that is set over an updated generation."""
    assert generation.manifest.decoder is not None
    return generation.manifest.decoder


def decoder_checkpoint(generation: Generation, folder: Path, model: str | None = None) -> Checkpoint:
    """The checkpoint of the decoder that is set over an updated generation.

    Args:
        generation: of `updated_generation`.
        folder: of the index, for messages.
        model: where the checkpoint lies that encoded, or that of the decoder; `None` = where the manifest says.

    Raises:
        CheckpointError: it is missing or incomplete.
        IndexMismatchError: it is not the one that encoded, or that was set.
    """
    decoder = decoder_of(generation)
    if model is not None:
        checkpoint = open_checkpoint(model)
        if ServingDecoder.of(checkpoint, decoder.name) == decoder:
            return checkpoint
        require_encoder(generation, folder, checkpoint)
        if decoder.name == generation.manifest.model:
            raise _other_decoder(decoder, folder, checkpoint)
    checkpoint = open_checkpoint(decoder.name)
    if ServingDecoder.of(checkpoint, decoder.name) != decoder:
        raise _other_decoder(decoder, folder, checkpoint)
    return checkpoint


def require_encoder(generation: Generation, folder: Path, checkpoint: Checkpoint) -> None:
    """Check that a checkpoint's encoder made the states of an updated generation, so that its decoder can read them.

    Raises:
        CheckpointError: the checkpoint is damaged.
        IndexMismatchError: it is another encoder; names both.
    """
    digest = encoder_digest(checkpoint)
    if digest != generation.manifest.fingerprint.model:
        raise _other_model(generation, folder, checkpoint, digest)


def _other_model(generation: Generation, folder: Path, checkpoint: Checkpoint, digest: str) -> IndexMismatchError:
    manifest = generation.manifest
    return IndexMismatchError(
        f"{folder}: built with the encoder of model {manifest.model!r} (digest {manifest.fingerprint.model[:12]}…), "
        f"but that of {checkpoint.name!r} has digest {digest[:12]}…; open it with the model that built it, "
        f"or run: kalm-cache reindex CORPUS --index {folder} --model {checkpoint.name}"
    )


def _other_decoder(decoder: ServingDecoder, folder: Path, checkpoint: Checkpoint) -> IndexMismatchError:
    found = ServingDecoder.of(checkpoint, checkpoint.name)
    return IndexMismatchError(
        f"{folder}: answers with decoder {decoder.name!r} (digest {decoder.digest[:12]}…), but that of {found.name!r} "
        f"has digest {found.digest[:12]}…; to answer with it, run: kalm-cache decoder set {found.name} --index {folder}"
    )
