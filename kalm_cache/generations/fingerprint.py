"""What an index was built with, as one comparable value. Knows nothing of files."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from kalm_cache.errors import IndexMismatchError
from kalm_cache.foreign_files import STRICT, Positive
from kalm_cache.storage.checked_json import digest_of_fields

FORMAT_VERSION = 2


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """Everything that decides the stored bytes. `model` and `embedder` are SHA-256 digests of weights and settings."""

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
    __pydantic_config__ = STRICT

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


def require_equal(built: Fingerprint, wanted: Fingerprint, what: str, way_out: str) -> None:
    """Raise `IndexMismatchError` that names both sides of every difference, and `way_out`."""
    differences = built.differences(wanted)
    if differences:
        raise IndexMismatchError(f"{what} was built with other settings: {'; '.join(differences)}. {way_out}")


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 24 else f"{text[:12]}…"
