"""A small build to publish: one file, and its manifest. Knows nothing of models or stores."""

from __future__ import annotations

import json
from pathlib import Path

from kalm_cache.generations.build_folders import next_building_folder
from kalm_cache.generations.current import current_name
from kalm_cache.generations.fingerprint import Fingerprint
from kalm_cache.generations.generation import Generation, segment_folder
from kalm_cache.generations.manifest import Counts, Manifest, SegmentReceipt
from kalm_cache.generations.publish import publish, receipts
from kalm_cache.storage.checked_json import digest_of_fields

COUNTS = Counts(1, 2, 3, 0, 4)
FINGERPRINT = Fingerprint("m", "t", 1024, 4, "float32", "fp16", "e", True, True)


def build(index: Path, content: str = "data") -> tuple[Path, Manifest]:
    """A finished build of one file that is not published yet, and its manifest."""
    building = next_building_folder(index)
    segment_folder(building).mkdir(parents=True)
    (segment_folder(building) / "passages.lmdb").write_text(content)
    manifest = Manifest(
        generation=building.name.removesuffix(".building"),
        created_at="2026-01-01T00:00:00+00:00",
        model="tiny",
        embedder="static",
        embedder_query_prompt="",
        embedder_passage_prompt="",
        width=8,
        fingerprint=FINGERPRINT,
        counts=COUNTS,
        files=receipts(building),
        parent=live_name(index),
        segments=[SegmentReceipt("00000", COUNTS, 0, 5)],
        next_ordinal=5,
    )
    return building, manifest


def live_name(index: Path) -> str | None:
    return current_name(index) if (index / "CURRENT").exists() else None


def publish_next(index: Path, content: str = "data") -> Generation:
    return publish(index, *build(index, content))


def rewrite(path: Path, **fields: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def change_undetected(path: Path, change: dict[str, object]) -> None:
    """Change fields of a JSON file, and its checksum with them."""
    fields = json.loads(path.read_text()) | change
    del fields["checksum"]
    rewrite(path, **fields, checksum=digest_of_fields(fields))
