"""A passage as it enters the system. Knows nothing of tokens, models or files."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

MAX_ID_BYTES = 511  # LMDB's key limit
OnMissing = Literal["error", "skip", "encode"]  # what becomes of a passage asked for that the index does not hold


@dataclass(frozen=True, slots=True)
class Passage:
    """One document of a corpus: its id, and its text (with the title, if any, in front)."""

    doc_id: str
    text: str

    def content_hash(self) -> bytes:
        """16 bytes that change when the text changes: what tells a stored passage from an edited one."""
        return hashlib.blake2b(self.text.encode("utf-8"), digest_size=16).digest()


def join_title(title: str, text: str) -> str:
    """Title and text as one string, joined by a space as BEIR's own loaders do; either may be empty."""
    return f"{title} {text}".strip() if title else text
