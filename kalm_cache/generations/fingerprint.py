"""What an index was built with, as one comparable value, and which decoder answers over it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

from kalm_cache.errors import IndexMismatchError
from kalm_cache.foreign_files import STRICT, Positive
from kalm_cache.storage.checked_json import digest_of_fields

if TYPE_CHECKING:  # who only reads manifests does without torch
    from kalm_cache.model.checkpoint import Checkpoint

FORMAT_VERSION = 2


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """Everything that decides the stored bytes.

    model: `encoder_digest` of the checkpoint. In indexes of earlier versions, whose `sensitivity` is `None`, it is the
        digest of the whole checkpoint: `updated` puts the encoder's in its place.
    embedder: SHA-256 of its weights and prompts.
    sensitivity: SHA-256 of what payloads are rounded by, empty where the codec needs none or there was none.
    """

    model: str
    passage_template: str
    max_length: Positive
    chunk_size: Positive
    dtype: str
    codec: str
    embedder: str
    bm25: bool
    store_text: bool
    format_version: Positive = FORMAT_VERSION
    sensitivity: str | None = None
    __pydantic_config__ = STRICT

    def updated(self, checkpoint: Checkpoint) -> Fingerprint:
        """As this version writes it, if an earlier one built the index with `checkpoint`; else as it is."""
        if self.sensitivity is not None or checkpoint.digest() != self.model:
            return self
        from kalm_cache.model.digests import encoder_digest

        return replace(self, model=encoder_digest(checkpoint), sensitivity=rounding_of(checkpoint, self.codec))

    def digest(self) -> str:
        """SHA-256 over all fields, hex; JSON keeps neighbouring fields apart."""
        return digest_of_fields(asdict(self))

    def differences(self, other: Fingerprint) -> list[str]:
        """One phrase for every field that differs: `chunk_size 8 there, 4 here`."""
        mine, theirs = asdict(self), asdict(other)
        return [
            f"{name} {_short(mine[name])} there, {_short(theirs[name])} here"
            for name in mine
            if mine[name] != theirs[name]
        ]


@dataclass(frozen=True, slots=True)
class ServingDecoder:
    """The decoder that answers over an index: the name of its checkpoint, and its `decoder_digest`."""

    name: str
    digest: str
    __pydantic_config__ = STRICT

    @staticmethod
    def of(checkpoint: Checkpoint, name: str) -> ServingDecoder:
        """That of a checkpoint with this name. Raises `CheckpointError`."""
        from kalm_cache.model.digests import decoder_digest

        return ServingDecoder(name, decoder_digest(checkpoint))


def rounding_of(checkpoint: Checkpoint, codec: str) -> str:
    """The `Fingerprint.sensitivity` of what a checkpoint encodes and a codec stores."""
    from kalm_cache.codec.sensitivity import sensitivity_digest
    from kalm_cache.model.checkpoint import SENSITIVITY_FILE

    return sensitivity_digest(checkpoint.folder / SENSITIVITY_FILE, codec)


def require_equal(built: Fingerprint, wanted: Fingerprint, what: str, way_out: str) -> None:
    """Raise `IndexMismatchError` that names both sides of every difference, and `way_out`."""
    differences = built.differences(wanted)
    if differences:
        raise IndexMismatchError(f"{what} was built with other settings: {'; '.join(differences)}. {way_out}")


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 24 else f"{text[:12]}…"
