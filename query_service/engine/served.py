"""The model that is served, and how it takes a text: as an index made its passages, or as the settings say."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from kalm_cache.codec import get_codec
from kalm_cache.generations.fingerprint import ServingDecoder
from kalm_cache.index.opening import ISOLATED
from kalm_cache.index.passage_index import PassageIndex
from kalm_cache.model.checkpoint import open_checkpoint
from kalm_cache.model.precision import dtype_name, resolve_device, resolve_dtype
from kalm_cache.passage import PassageTemplate
from kalm_cache.scoring.query_side import QuerySide, load_query_side
from kalm_cache.scoring.text_states import EncodedBy, encoded_by
from kalm_cache.settings import Settings
from query_service.answering.model_card import ModelCard


@dataclass(frozen=True, slots=True)
class ServedModel(ModelCard):
    """A decoder, and what texts must have in common that it scores together."""

    query_side: QuerySide


def model_of_index(index: PassageIndex) -> ServedModel:
    """The model that built an index and the decoder that answers over it, with the index's settings."""
    manifest = index.generation.manifest
    built = manifest.fingerprint
    return ServedModel(
        name=manifest.model,
        encoded_by=EncodedBy(built.model, built.sensitivity or ""),
        decoder=index.decoder,
        calibration=index.calibration,
        shared_prefix=index.shared_prefix,
        shared_prefix_passages=0 if index.stored.means is None else index.stored.means.stats().passages,
        created=int(datetime.fromisoformat(manifest.created_at).timestamp()),
        **_side(index.query_side),
        passage_template=index.passage_template,
        max_length=built.max_length,
        chunk_size=index.chunk_size,
        stored_chunk_size=built.chunk_size,
        codec=built.codec,
    )


def load_model(settings: Settings) -> ServedModel:
    """The model of the settings, to serve without an index. Loads its decoder alone.

    Raises:
        CheckpointError: the model is missing or incomplete.
        UsageError: the device, the dtype or the codec is unknown.
    """
    checkpoint, device = open_checkpoint(settings.model), resolve_device(settings.device)
    codec = get_codec(settings.codec).name
    dtype = resolve_dtype(settings.dtype, device)
    side = load_query_side(checkpoint, device=device, dtype=dtype, query_max_length=settings.query_max_length)
    return ServedModel(
        name=settings.model,
        encoded_by=encoded_by(checkpoint, codec),
        decoder=ServingDecoder.of(checkpoint, settings.model),
        calibration=None,
        shared_prefix=None if side.isolated is None else ISOLATED,
        shared_prefix_passages=0,
        created=int(time.time()),
        **_side(side),
        passage_template=PassageTemplate(settings.passage_template),
        max_length=settings.max_length,
        chunk_size=settings.chunk_size,
        stored_chunk_size=settings.chunk_size,
        codec=codec,
    )


def _side(side: QuerySide) -> dict[str, Any]:
    return {
        "query_side": side,
        "query_max_length": side.query_max_length,
        "dtype": dtype_name(side.dtype),
        "device": str(side.device),
    }
