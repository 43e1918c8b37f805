from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kalm_cache.storage.arrays.vocabulary import Vocabulary


@pytest.mark.parametrize("terms", [[], ["a"], ["a", "aa", "ab", "b", "ö", "東京"]])
def test_every_term_has_its_place_and_no_other_has_one(tmp_path: Path, terms: list[str]) -> None:
    Vocabulary.write([term.encode() for term in terms], tmp_path)
    vocabulary = Vocabulary.open(tmp_path, mapped=True)
    assert len(vocabulary) == len(terms)
    assert [vocabulary.id_of(term) for term in terms] == list(range(len(terms)))
    assert [vocabulary.id_of(term) for term in ("", "aaa", "c", "z", "東", "\ud800")] == [None] * 6


def test_files_that_do_not_fit_together_are_refused(tmp_path: Path) -> None:
    Vocabulary.write([b"one", b"two"], tmp_path)
    np.save(tmp_path / "term_ends.npy", np.array([3, 7]))
    with pytest.raises(ValueError, match="does not end"):
        Vocabulary.open(tmp_path, mapped=True)
