"""Small JSON files that vouch for themselves: every field, and a SHA-256 over them. Knows nothing of what they hold.

The manifest, the journal and a segment's seal are such files. Their keys were named before the words were settled and
never change: `ON_DISK` says what each is called in the code.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

CHECKSUM = "checksum"
ON_DISK = {"segments": "shards", "next_ordinal": "next_number", "first_ordinal": "first_number"}  # in the code: on disk
_IN_CODE = {on_disk: name for name, on_disk in ON_DISK.items()}


def pack_checked(fields: Mapping[str, Any], *, indent: int | None = 2) -> bytes:
    """The file's content: `fields` under their names on disk, and a checksum over them."""
    stored = _rename(fields, ON_DISK)
    return (json.dumps(stored | {CHECKSUM: digest_of_fields(stored)}, indent=indent) + "\n").encode("utf-8")


def unpack_checked(stored: dict[str, Any]) -> dict[str, Any] | None:
    """The fields of a parsed file under the code's names; `None` where the checksum does not fit them."""
    fields = {name: value for name, value in stored.items() if name != CHECKSUM}
    if stored.get(CHECKSUM) != digest_of_fields(fields):
        return None
    renamed: dict[str, Any] = _rename(fields, _IN_CODE)
    return renamed


def digest_of_fields(fields: Mapping[str, Any]) -> str:
    """SHA-256 (hex) of the fields as sorted JSON."""
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def _rename(value: Any, names: Mapping[str, str]) -> Any:
    """The same value with the keys of its objects renamed; paths of `files` are data and stay."""
    if isinstance(value, Mapping):
        return {names.get(key, key): _rename(item, {} if key == "files" else names) for key, item in value.items()}
    return [_rename(item, names) for item in value] if isinstance(value, list) else value
