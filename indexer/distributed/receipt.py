"""What an attempt at a partition has made, as a small file beside it. Whoever has it needs to read nothing else."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from indexer.build.counts import BuildCounts
from kalm_cache.errors import StoreError
from kalm_cache.foreign_files import STRICT, Count, RelativePath, checked_fields, parse_json
from kalm_cache.generations.manifest import Counts, FileReceipt
from kalm_cache.storage.checked_json import pack_checked, unpack_checked
from kalm_cache.storage.durable import write_atomically

ATTEMPTS = "attempts"


@dataclass(frozen=True, slots=True)
class Receipt:
    """What was built.

    plan: its digest.
    partition: which one of it.
    folder: of the segment, relative to the unfinished build.
    counts: of what is stored.
    files: those of the segment, relative to its folder.
    encoded, resumed, copied, recoded: passages; how they came about decides nothing.
    """

    plan: str
    partition: Count
    folder: RelativePath
    counts: Counts
    files: dict[RelativePath, FileReceipt]
    encoded: Count
    resumed: Count
    copied: Count
    recoded: Count
    __pydantic_config__ = STRICT

    def build_counts(self) -> BuildCounts:
        """How its passages came about."""
        return BuildCounts(self.encoded, self.resumed, self.copied, self.recoded)

    def to_bytes(self) -> bytes:
        """A file's content: every field, and a checksum over them."""
        return pack_checked(asdict(self))

    def write(self, path: Path) -> None:
        """Write it durably, all or nothing: from then on the attempt is finished."""
        write_atomically(path, self.to_bytes())


def read_receipt(path: Path) -> Receipt:
    """A receipt. Raises `StoreError` where it is damaged, or not there."""
    try:
        return parse_receipt(path.read_bytes(), str(path))
    except OSError as exc:
        raise StoreError(f"{path}: cannot be read as a receipt: {exc}") from exc


def parse_receipt(content: bytes, name: str) -> Receipt:
    """Inverse of `Receipt.to_bytes`. Raises `StoreError` that begins with `name`."""
    try:
        raw = parse_json(content)
        fields = unpack_checked(raw) if isinstance(raw, dict) else None
        if fields is None:
            raise ValueError("checksum mismatch")
        return checked_fields(Receipt, fields)
    except ValueError as exc:
        raise StoreError(f"{name}: cannot be read as a receipt: {exc}") from exc
