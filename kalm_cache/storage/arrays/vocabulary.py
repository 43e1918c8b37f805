"""Sorted texts → ids, in two memory-mapped arrays, so that opening reads nothing. Knows nothing of what they mean."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kalm_cache.storage.arrays.rows import load_row

BYTES_NAME = "terms.npy"
ENDS_NAME = "term_ends.npy"


class Vocabulary:
    """Terms in the order of their UTF-8 bytes; a term's id is its position."""

    def __init__(self, text: NDArray[np.uint8], ends: NDArray[np.int64]) -> None:
        """`text`: the terms' bytes one after the other; `ends` (v,): where each one ends."""
        self._text = text
        self._ends = ends

    @staticmethod
    def write(terms: Iterable[bytes], folder: Path) -> None:
        """Write `terms`, which are sorted and distinct, to two files in `folder`."""
        listed = list(terms)
        np.save(folder / ENDS_NAME, np.cumsum([len(term) for term in listed], dtype=np.int64))
        np.save(folder / BYTES_NAME, np.frombuffer(b"".join(listed), np.uint8))

    @staticmethod
    def open(folder: Path, *, mapped: bool) -> Vocabulary:
        """Raises: OSError or ValueError for files that are missing or damaged."""
        text = load_row(folder / BYTES_NAME, [np.uint8], mapped=mapped)
        ends = load_row(folder / ENDS_NAME, [np.int64], mapped=mapped)
        if (int(ends[-1]) if len(ends) else 0) != len(text):
            raise ValueError(f"{ENDS_NAME} does not end where {BYTES_NAME} does")
        if len(ends) and (ends[0] < 0 or (ends[1:] < ends[:-1]).any()):
            raise ValueError(f"{ENDS_NAME} does not rise")
        return Vocabulary(text, ends)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> bytes:
        if not 0 <= index < len(self):
            raise IndexError(index)
        start = int(self._ends[index - 1]) if index else 0
        return self._text[start : int(self._ends[index])].tobytes()

    def id_of(self, term: str) -> int | None:
        """The id of a term, None where no document has it."""
        encoded = encode_term(term)
        place = bisect_left(self, encoded)
        return place if place < len(self) and self[place] == encoded else None


def encode_term(term: str) -> bytes:
    """UTF-8; half a surrogate pair, which a text from JSON may hold, is kept as it is."""
    return term.encode("utf-8", "surrogatepass")


def decode_term(encoded: bytes) -> str:
    """Inverse of `encode_term`."""
    return encoded.decode("utf-8", "surrogatepass")
