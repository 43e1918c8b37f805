"""The models of a job, loaded once, and the fingerprint of what they will write."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from kalm_cache.codec import Codec, get_codec
from kalm_cache.errors import IndexMismatchError
from kalm_cache.first_stage import Embedder, load_embedder
from kalm_cache.generations.fingerprint import Fingerprint, ServingDecoder, rounding_of
from kalm_cache.generations.manifest import Manifest
from kalm_cache.model.checkpoint import Checkpoint, open_checkpoint
from kalm_cache.model.digests import encoder_digest
from kalm_cache.model.precision import dtype_name, resolve_device, resolve_dtype
from kalm_cache.model.prompts import PASSAGE_TEMPLATE
from kalm_cache.scoring.batching import encode_tokens
from kalm_cache.scoring.passage_side import PassageSide, load_passage_side
from kalm_cache.scoring.state_codec import codec_of
from kalm_cache.settings import Settings

logger = logging.getLogger(__name__)
BUNDLED = ("tiny", "static")  # never a folder of that name
OF_AN_INDEX = (
    *("model", "dtype", "max_length", "chunk_size", "codec", "store_text", "bm25", "dense_index", "passage_template"),
    *("language", "fold_diacritics", "metadata"),
    *("embedder", "embedder_query_prompt", "embedder_passage_prompt"),
)

LoadSide = Callable[[], PassageSide]


@dataclass(frozen=True, slots=True)
class BuildModels:
    """What a build computes with.

    `passage_sides`: alike, one a device; none where nothing may have to be encoded. `on_other_devices` give one more
    each; the first call loads it.
    """

    passage_sides: tuple[PassageSide, ...]
    embedder: Embedder
    codec: Codec
    on_other_devices: tuple[LoadSide, ...] = ()


@dataclass(frozen=True, slots=True)
class Encoders:
    """The models of a job, loaded once, and the fingerprint of what they will write.

    `codec`: rounds by the checkpoint's sensitivity, where it has one. `decoder`: the checkpoint's, which answers over
    what is encoded unless another one is set. `on_other_devices`: as of `BuildModels`, one for each GPU more.
    """

    checkpoint: Checkpoint
    passage_side: PassageSide
    embedder: Embedder
    codec: Codec
    fingerprint: Fingerprint
    decoder: ServingDecoder
    on_other_devices: tuple[LoadSide, ...] = ()

    @property
    def build_models(self) -> BuildModels:
        """Those that a build computes with."""
        return BuildModels((self.passage_side,), self.embedder, self.codec, self.on_other_devices)


def load_encoders(settings: Settings) -> Encoders:
    """Load the passage side and the embedder that `settings` name.

    Raises:
        CheckpointError: a model is missing or incomplete, or its sensitivity is another model's.
        UsageError: an unknown codec, device or dtype.
    """
    get_codec(settings.codec)  # first: a typing error should not cost a model's loading
    checkpoint = open_checkpoint(settings.model)
    codec = codec_of(checkpoint, settings.codec)
    device = resolve_device(settings.device)
    dtype = resolve_dtype(settings.dtype, device)
    passage_side = load_passage_side(
        checkpoint, device=device, dtype=dtype, max_length=settings.max_length, chunk_size=settings.chunk_size
    )
    embedder = load_embedder(
        settings.embedder,
        query_prompt=settings.embedder_query_prompt,
        passage_prompt=settings.embedder_passage_prompt,
        device=str(device),
    )
    fingerprint = Fingerprint(
        model=encoder_digest(checkpoint),
        passage_template=PASSAGE_TEMPLATE,
        max_length=settings.max_length,
        chunk_size=settings.chunk_size,
        dtype=dtype_name(dtype),
        codec=codec.name,
        embedder=embedder.digest,
        bm25=settings.bm25,
        store_text=settings.store_text,
        sensitivity=rounding_of(checkpoint, codec.name),
    )
    decoder = ServingDecoder.of(checkpoint, absolute_model_name(settings.model))
    return Encoders(checkpoint, passage_side, embedder, codec, fingerprint, decoder)


def on_all_gpus(encoders: Encoders, settings: Settings) -> Encoders:
    """The same models, and for every other GPU a passage side that is loaded when there is work for it.

    Where the settings name a single device, there is none.
    """
    first = encoders.passage_side
    if first.device.type != "cuda" or settings.device not in ("auto", "cuda"):
        return encoders

    def on_gpu(number: int) -> LoadSide:
        # cached: a build of several segments loads it once
        return functools.cache(
            partial(
                load_passage_side,
                encoders.checkpoint,
                device=torch.device("cuda", number),
                dtype=first.dtype,
                max_length=first.max_length,
                chunk_size=first.chunk_size,
                tokenizer=first.tokenizer,
            )
        )

    others = [number for number in range(torch.cuda.device_count()) if number != torch.cuda.current_device()]
    return replace(encoders, on_other_devices=tuple(map(on_gpu, others)))


def batch_tokens_of(settings: Settings, side: PassageSide) -> int:
    """Tokens that are encoded together: what the settings say, or what suits the device, which is logged."""
    if settings.batch_tokens != "auto":
        return settings.batch_tokens
    tokens = encode_tokens(side.device)
    logger.info("batch_tokens auto is %d on %s", tokens, side.device)
    return tokens


def built_settings_overridden(manifest: Manifest, overrides: Settings) -> Settings:
    """The settings that a generation was built with, but for what flag, environment or file sets in `overrides`."""
    built = manifest.fingerprint
    stored = {
        "model": manifest.model,
        "dtype": built.dtype,
        "max_length": built.max_length,
        "chunk_size": built.chunk_size,
        "codec": built.codec,
        "store_text": built.store_text,
        "bm25": built.bm25,
        "dense_index": manifest.dense_index,
        "language": manifest.language,
        "fold_diacritics": manifest.fold_diacritics,
        "passage_template": manifest.passage_template,
        "metadata": manifest.metadata,
        "embedder": manifest.embedder,
        "embedder_query_prompt": manifest.embedder_query_prompt,
        "embedder_passage_prompt": manifest.embedder_passage_prompt,
    }
    is_set = overrides.model_fields_set
    return overrides.model_copy(update={name: value for name, value in stored.items() if name not in is_set})


def built_settings_kept(manifest: Manifest, overrides: Settings) -> Settings:
    """The settings that a generation was built with; of `overrides`, only what decides no stored byte counts."""
    harmless = overrides.model_copy()
    harmless.__pydantic_fields_set__.difference_update(OF_AN_INDEX)
    return built_settings_overridden(manifest, harmless)


def load_encoders_of(manifest: Manifest, overrides: Settings) -> tuple[Settings, Encoders]:
    """The models that built a generation, to add to it or to check it, and its settings with harmless `overrides`.

    Raises:
        IndexMismatchError: a model that the manifest names is another one now.
    """
    settings = built_settings_kept(manifest, overrides)
    encoders = load_encoders(settings)
    differences = manifest.fingerprint.updated(encoders.checkpoint).differences(encoders.fingerprint)
    if differences:
        raise IndexMismatchError(
            f"generation {manifest.generation} was built with other models than {settings.model!r} and "
            f"{settings.embedder!r} are now: {'; '.join(differences)}; run: kalm-cache reindex CORPUS"
        )
    return settings, encoders


def absolute_model_name(name: str) -> str:
    """A model's name as the manifest keeps it: a folder becomes absolute, so that the index opens from anywhere."""
    folder = Path(name).expanduser()
    return name if name in BUNDLED or not folder.is_dir() else str(folder.resolve())
