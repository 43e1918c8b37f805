"""Lexical search: BM25 over the library bm25s. Knows nothing of vectors or of where the texts come from."""

from __future__ import annotations

import json
import shutil
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kalm_cache.durable import publish_folder
from kalm_cache.errors import IndexMismatchError, StoreError
from kalm_cache.first_stage.analysis import ANALYSIS, terms_of
from kalm_cache.first_stage.candidates import Candidates, best_first, no_candidates

FOLDER_NAME = "bm25"
K1 = 1.2
B = 0.75


class BM25Index:
    """A bm25s index and the document number of each of its rows. Searches may run in several threads."""

    def __init__(self, numbers: NDArray[np.int64], retriever: Any) -> None:
        """`numbers` (n,) int64; `retriever` is a `bm25s.BM25`, or None where no document has a term."""
        self._numbers = numbers
        self._retriever = retriever

    @staticmethod
    def build(documents: Iterable[tuple[int, str]], folder: Path) -> BM25Index:
        """Write `folder/bm25/` from pairs of number and text, and return it opened.

        Texts are read one at a time; what stays in memory is 4 bytes for each term occurrence, and then about 40 for
        each distinct term of each document, while bm25s sorts them.
        """
        numbers, term_ids, vocabulary = _index_terms(documents)
        folder.mkdir(parents=True, exist_ok=True)
        written = folder / f"{FOLDER_NAME}.building"
        shutil.rmtree(written, ignore_errors=True)  # what a killed build left
        written.mkdir()
        if vocabulary:  # bm25s divides by the mean length: a corpus without terms has no bm25s files
            _score(term_ids, vocabulary).save(written, show_progress=False)
        np.save(written / "numbers.npy", np.frombuffer(numbers, np.int64))
        (written / "analysis.json").write_text(json.dumps({"analysis": ANALYSIS}), encoding="utf-8")
        publish_folder(written, folder / FOLDER_NAME)
        return BM25Index.open(folder)

    @staticmethod
    def open(folder: Path, mmap: bool = True) -> BM25Index:
        """Open `folder/bm25/`, its postings memory-mapped or read into memory.

        Raises:
            IndexMismatchError: the index was built with another analysis of texts.
            StoreError: a file is missing or damaged.
        """
        path = folder / FOLDER_NAME
        try:
            _check_analysis(json.loads((path / "analysis.json").read_text(encoding="utf-8"))["analysis"])
            numbers = np.load(path / "numbers.npy", mmap_mode="r" if mmap else None)
            return BM25Index(numbers, _load_retriever(path, len(numbers), mmap))
        except (OSError, EOFError, ValueError, KeyError, TypeError) as exc:
            raise StoreError(f"{path} cannot be read; run kalm-cache verify: {exc}") from exc

    @staticmethod
    def exists(folder: Path) -> bool:
        """Whether a BM25 index was built in `folder`."""
        return (folder / FOLDER_NAME).is_dir()

    @property
    def ntotal(self) -> int:
        """How many documents the index holds, those without terms included."""
        return len(self._numbers)

    def search(self, queries: Sequence[str], k: int) -> list[Candidates]:
        """One list for each query, of the `k` best documents that share a term with it (so there may be fewer)."""
        return [self._search_terms(terms, k) for terms in terms_of(queries)]

    def _search_terms(self, terms: list[str], k: int) -> Candidates:
        if self._retriever is None:
            return no_candidates()
        ids = self._retriever.get_tokens_ids(terms)
        if not ids:
            return no_candidates()
        scores = self._retriever.get_scores_from_ids(ids)  # (n,) float32
        rows = np.flatnonzero(scores)  # lucene's idf is positive: zero means that no term is shared
        return best_first(self._numbers[rows], scores[rows], k)


def _index_terms(documents: Iterable[tuple[int, str]]) -> tuple[array[int], list[array[int]], dict[str, int]]:
    """Numbers (n,), term ids of each document, and term → id."""
    numbers = array("q")
    vocabulary: dict[str, int] = {}

    def texts() -> Iterator[str]:
        for number, text in documents:
            numbers.append(number)
            yield text

    term_ids = [array("i", [vocabulary.setdefault(t, len(vocabulary)) for t in terms]) for terms in terms_of(texts())]
    return numbers, term_ids, vocabulary


def _score(term_ids: list[array[int]], vocabulary: dict[str, int]) -> Any:
    import bm25s

    retriever = bm25s.BM25(k1=K1, b=B, method="lucene")
    retriever.index((term_ids, vocabulary), create_empty_token=False, show_progress=False)
    return retriever


def _load_retriever(path: Path, documents: int, mmap: bool) -> Any:
    if not (path / "params.index.json").exists():
        return None
    import bm25s

    retriever = bm25s.BM25.load(path, mmap=mmap, show_progress=False)
    if retriever.scores["num_docs"] != documents:
        raise ValueError(f"it scores {retriever.scores['num_docs']} documents, numbers.npy holds {documents}")
    return retriever


def _check_analysis(stored: str) -> None:
    if stored != ANALYSIS:
        raise IndexMismatchError(
            f"the BM25 index was built with text analysis {stored!r}, this version uses {ANALYSIS!r}; "
            "index the corpus again"
        )
