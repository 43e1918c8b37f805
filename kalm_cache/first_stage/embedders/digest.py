"""What identifies an embedder: the content of its files and its prompts, wherever the folder lies."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path


def model_digest(folder: Path, files: Iterable[Path], *, query_prompt: str, passage_prompt: str) -> str:
    """SHA-256 (hex) over the names (relative to `folder`) and contents of `files`, and over both prompts."""
    hashes = {path.relative_to(folder).as_posix(): _sha256(path) for path in files}
    meta = {"files": hashes, "query_prompt": query_prompt, "passage_prompt": passage_prompt}
    return hashlib.sha256(json.dumps(meta, sort_keys=True).encode("utf-8")).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
