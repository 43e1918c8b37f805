"""The metadata of an earlier generation, for passages that stay. Its files are compared with their receipts first."""

from __future__ import annotations

from kalm_cache.errors import StoreError
from kalm_cache.generations.generation import Generation
from kalm_cache.metadata import COLUMNS, Columns
from kalm_cache.process.system import refused


def source_columns(part: Generation) -> Columns | StoreError | None:
    """The columns of the segment in view; why they cannot be read, where they are damaged; `None` where it has none."""
    folder = part.segment / COLUMNS
    prefix = folder.relative_to(part.folder).as_posix() + "/"
    receipts = {name: receipt for name, receipt in part.manifest.files.items() if name.startswith(prefix)}
    try:
        for name, receipt in receipts.items():
            if not receipt.has_digest_of(part.folder / name):
                raise StoreError(
                    f"{part.folder / name}: its SHA-256 is not that of its receipt; run kalm-cache verify --repair"
                )
        return Columns.open(part.segment) if receipts else None
    except OSError as exc:
        return StoreError(f"{folder}: cannot be read; {refused(exc, folder)}")
    except StoreError as exc:
        return exc
