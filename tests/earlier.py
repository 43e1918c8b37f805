"""Indexes as earlier versions left them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from kalm_cache.generations.generation import open_current
from kalm_cache.model.checkpoint import open_checkpoint


def with_one_digest(index: Path, model: Path | str) -> Path:
    """Write the live manifest as versions did that knew one digest, of the whole checkpoint; returns the index."""
    live = open_current(index)
    fingerprint = replace(live.manifest.fingerprint, model=open_checkpoint(str(model)).digest(), sensitivity=None)
    manifest = replace(live.manifest, fingerprint=fingerprint, decoder=None)
    (live.folder / "manifest.json").write_bytes(manifest.to_json())
    return index
