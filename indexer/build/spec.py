"""What one segment is built with, as a value. `index`, `reindex`, `add`, `gc` and `repair` differ in it alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from indexer.models import BuildModels, Encoders, absolute_model_name
from indexer.reuse.reusable_segments import ReusableSegments
from kalm_cache.calibration import FittedCalibration
from kalm_cache.errors import StoreError
from kalm_cache.first_stage import CollectionStatistics
from kalm_cache.generations.fingerprint import Fingerprint, ServingDecoder
from kalm_cache.generations.generation import Generation
from kalm_cache.generations.manifest import NO_COUNTS, Manifest
from kalm_cache.generations.sharding import Shard, Sharding
from kalm_cache.metadata import Schema
from kalm_cache.settings import Settings


def refuse_to_lose(doc_id: str) -> None:
    """What a build does with a stored passage that it cannot keep, unless its spec says something else."""
    raise StoreError(f"passage {doc_id!r} is damaged, and the corpus does not have it: run kalm-cache verify --repair")


class Ordinals(Protocol):
    """Where passages that have no ordinal yet get one from."""

    @property
    def next(self) -> int:
        """Above every ordinal that was given so far, here or anywhere in the index."""

    def reserve(self, doc_ids: Sequence[str]) -> list[int]:
        """The ordinal of each id; the same when it is asked again."""


@dataclass(frozen=True, slots=True)
class NewBase:
    """What is to be published of a build.

    index: the index folder; no new passage gets an ordinal that was ever given in it.
    operation: the command, as the manifest names it.
    template: the manifest to publish, but for what follows from the build. Its fingerprint says what is stored.
    parent: the generation that was live before, if any.
    columns: of the metadata. Where a corpus shows them, they are all here when its lines have been read.
    """

    index: Path
    operation: str
    template: Manifest
    parent: Generation | None
    columns: Schema = field(default_factory=dict, kw_only=True)

    @property
    def fingerprint(self) -> Fingerprint:
        """What decides the stored bytes."""
        return self.template.fingerprint


@dataclass(frozen=True, slots=True)
class BuildSpec(NewBase):
    """What a segment is built with.

    models: what encodes, embeds and compresses.
    batch_tokens: padded tokens of a batch, at most.
    sources: sealed segments to copy, to recode, and to keep passages of.
    keep_missing: whether what the sources have and the corpus has not stays.
    on_lost: called for every id that should stay, is damaged, and of which no text is at hand.
    statistics_of: what BM25 scores with, see `BM25Index.build`.
    keep_scores: whether passages of the sources keep the BM25 scores that they have there.
    shard: of which the segment is; what `keep_missing` keeps is of it alone. `None` = of all.
    ordinals: `None` = the segment's own, above all that the index has given.
    """

    models: BuildModels
    batch_tokens: int
    sources: ReusableSegments = field(default_factory=ReusableSegments)
    keep_missing: bool = False
    on_lost: Callable[[str], None] = refuse_to_lose
    statistics_of: CollectionStatistics | None = None
    keep_scores: bool = False
    shard: Shard | None = None
    ordinals: Ordinals | None = None


def new_manifest(
    settings: Settings, encoders: Encoders, sharding: Sharding | None = None, parent: Generation | None = None
) -> Manifest:
    """The manifest of a base that these settings, their language settled, and models build, as far as known before.

    A decoder that was set over the states of the `parent` stays, where these are the states of the same model; and so
    does a calibration of the decoder.
    """
    model = absolute_model_name(settings.model)
    decoder = _decoder_set(parent, model, encoders.fingerprint) or encoders.decoder
    return Manifest(
        generation="",
        created_at="",
        model=model,
        embedder=absolute_model_name(settings.embedder),
        embedder_query_prompt=settings.embedder_query_prompt,
        embedder_passage_prompt=settings.embedder_passage_prompt,
        width=encoders.checkpoint.config.encoder.hidden_size,
        fingerprint=encoders.fingerprint,
        counts=NO_COUNTS,
        files={},
        parent=None,
        segments=[],
        next_ordinal=0,
        dense_index=settings.dense_index,
        language=settings.language,
        fold_diacritics=settings.fold_diacritics,
        passage_template=settings.passage_template,
        sharding=sharding,
        decoder=decoder,
        calibration=_calibration_of(parent, decoder, encoders.fingerprint),
        metadata=settings.metadata,
    )


def _calibration_of(
    parent: Generation | None, decoder: ServingDecoder, fingerprint: Fingerprint
) -> FittedCalibration | None:
    fitted = None if parent is None else parent.manifest.calibration
    if parent is None or fitted is None or parent.manifest.fingerprint.model != fingerprint.model:
        return None
    return fitted if fitted.decoder == decoder.digest else None


def _decoder_set(parent: Generation | None, model: str, fingerprint: Fingerprint) -> ServingDecoder | None:
    if parent is None or (parent.manifest.model, parent.manifest.fingerprint.model) != (model, fingerprint.model):
        return None
    decoder = parent.manifest.decoder
    return None if decoder is None or decoder.name == model else decoder
