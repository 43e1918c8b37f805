"""Another decoder over the same states: a generation that differs from its parent in one entry of its manifest."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from indexer.change.publish_on_parent import publish_changed
from indexer.models import absolute_model_name
from kalm_cache.errors import KalmCacheError
from kalm_cache.generations.build_folders import locked_live_generation
from kalm_cache.generations.fingerprint import ServingDecoder
from kalm_cache.generations.generation import Generation, open_current, require_valid
from kalm_cache.index.decoders import decoder_of, require_encoder, updated_generation
from kalm_cache.model.checkpoint import open_checkpoint


@dataclass(frozen=True, slots=True)
class DecoderReport:
    """Which decoder answers over an index.

    model: the checkpoint that encoded its passages; `encoder_digest` is of its encoder. decoder: the checkpoint that
    answers; `decoder_digest` is of its decoder. Digests are `None` where an earlier version built the index and its
    model is not at hand. before, before_digest: what answered when this one was set; `None` where none was set.
    """

    index: str
    generation: str
    passages: int
    model: str
    encoder_digest: str | None
    decoder: str
    decoder_digest: str | None
    before: str | None = None
    before_digest: str | None = None


def show_decoder(index: Path) -> DecoderReport:
    """Which decoder answers over an index now.

    Raises:
        IndexNotFoundError: nothing has been published here.
        StoreError: the manifest is damaged.
    """
    live = open_current(index)
    try:
        return _report(index, updated_generation(live, index))
    except KalmCacheError:  # of an earlier version, whose model is elsewhere, or another one by now
        passages, model = live.manifest.counts.passages, live.manifest.model
        return DecoderReport(str(index), live.name, passages, model, None, model, None)


def set_decoder(index: Path, name: str, model: str | None = None) -> DecoderReport:
    """Publish a generation of the live one's passages, over which the decoder of another checkpoint answers.

    Its segments are linked: nothing is encoded or copied. Where that decoder answers already, nothing is published.

    Args:
        index: the index folder.
        name: the checkpoint: alias, folder or Hugging Face id. Its encoder must be the index's.
        model: where the checkpoint lies that built an index of an earlier version; `None` = where the manifest says.

    Raises:
        IndexNotFoundError: nothing has been published here.
        IndexLockedError: another job is changing the index.
        CheckpointError: the checkpoint is missing or incomplete.
        IndexMismatchError: its encoder is another one than the index's.
        StoreError: the disk is full or cannot be written.
    """
    with locked_live_generation(index) as stored:
        require_valid(stored)
        live = updated_generation(stored, index, model)
        checkpoint = open_checkpoint(name)
        require_encoder(live, index, checkpoint)
        before, decoder = decoder_of(live), ServingDecoder.of(checkpoint, absolute_model_name(name))
        if decoder == before:
            return _report(index, live, before)
        fitted = live.manifest.calibration if decoder.digest == before.digest else None  # it is of one decoder
        published = publish_changed(index, "decoder", live, decoder=decoder, calibration=fitted)
    return _report(index, published, before)


def _report(index: Path, generation: Generation, before: ServingDecoder | None = None) -> DecoderReport:
    manifest, decoder = generation.manifest, decoder_of(generation)
    return DecoderReport(
        index=str(index),
        generation=generation.name,
        passages=manifest.counts.passages,
        model=manifest.model,
        encoder_digest=manifest.fingerprint.model,
        decoder=decoder.name,
        decoder_digest=decoder.digest,
        before=None if before is None else before.name,
        before_digest=None if before is None else before.digest,
    )
